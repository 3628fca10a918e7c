"""Runs a job's variants in vggdeploy's own sessions, and hands the raw answers back: ``python -m … ADDRESS``.

It runs on an emulated processor. Nothing is judged here: the process that started it compares the answers with the golden
outputs. Torch is imported only for a variant that needs it.
"""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

import msgspec
import numpy as np

from vggdeploy.bundle import Bundle
from vggdeploy.errors import IntegrityError, VggdeployError
from vggdeploy.parity.reference import Array
from vggdeploy.runtime import backend_for, open_session
from vggdeploy.system.optional import version
from vggdeploy.verify.fleet.exchange import About, Job


class Client:
    """The child's side of an `Exchange`."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(parts.netloc)
        self._root = parts.path

    def get(self, path: str) -> bytes:
        return self._ask("GET", path, b"")

    def send(self, path: str, data: bytes = b"") -> None:
        self._ask("POST", path, data)

    def _ask(self, method: str, path: str, data: bytes) -> bytes:
        self._connection.request(method, self._root + path, data)
        reply = self._connection.getresponse()
        found = reply.read()
        if reply.status != http.client.OK:
            raise ConnectionError(f"{path}: {reply.status} {found.decode(errors='replace')}")
        return found


def instruction_sets() -> tuple[str, ...]:
    """What the processor says it has, as NumPy read it from cpuid (on Arm: from the auxiliary vector) in this process.

    /proc/cpuinfo would be wrong: qemu-user hands out that of the machine it runs on.
    """
    found = np.show_config(mode="dicts")["SIMD Extensions"]
    return (*found["baseline"], *found.get("found", ()))


def run_variant(bundle: Bundle, job: Job, index: int, images: Array, client: Client) -> None:
    """The batches of one variant, through its session as the backend gives it: a NaN is an answer, too."""
    variant = bundle.manifest.variant(job.variants[index])
    try:
        with open_session(bundle, variant, threads=job.threads) as session:
            for place, rows in enumerate(job.batches[index]):
                answers = session.unchecked.run({job.input.name: images[slice(*rows)]})
                for output, spec in enumerate(job.outputs):
                    client.send(f"answer/{index}/{place}/{output}", np.ascontiguousarray(answers[spec.name]).tobytes())
    except VggdeployError as error:
        client.send(f"refused/{index}", error.cause.encode())
    client.send(f"finished/{index}")


def main(address: str) -> None:
    client = Client(address)
    job = msgspec.json.decode(client.get("job"), type=Job)
    # Who signed it was checked before, and the digest names all of its bytes.
    bundle = Bundle.open(job.bundle, only=job.variants, trust=())
    if bundle.manifest.digest != job.digest:
        raise IntegrityError(f"{job.bundle} was changed while it was proven", "run this again")
    libraries = {backend_for(bundle.manifest.variant(name)).library for name in job.variants}
    tools = {name: found for name in sorted(libraries) if (found := version(name))}
    client.send("about", msgspec.json.encode(About(isa=instruction_sets(), tools=tools)))
    inputs, _ = bundle.golden()
    for index in range(len(job.variants)):
        run_variant(bundle, job, index, inputs[job.input.name], client)


if __name__ == "__main__":
    main(sys.argv[1])
