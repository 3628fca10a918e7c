"""Runs a job's variants in vggdeploy's own sessions, and hands the raw answers back: ``python -m … ADDRESS``.

It runs on an emulated processor. Nothing is judged here: the process that started it compares the answers with the golden
outputs. Torch is imported only for a variant that needs it.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np

from vggdeploy.bundle import Bundle
from vggdeploy.errors import IntegrityError, VggdeployError
from vggdeploy.parity.reference import Array
from vggdeploy.runtime import backend_for, open_session
from vggdeploy.system import machine
from vggdeploy.system.cache import cache_home
from vggdeploy.system.optional import version
from vggdeploy.verify.fleet.exchange import About, Job

# What NumPy's names (of version 2.4, and before it) mean as flags of /proc/cpuinfo, as far as vggdeploy asks for them.
_FLAGS = {
    "X86_V2": "ssse3 sse4_1",
    "SSSE3": "ssse3",
    "SSE41": "sse4_1",
    "X86_V3": "avx avx2 fma f16c",
    "AVX2": "avx avx2",
    "FMA3": "fma",
    "F16C": "f16c",
    "X86_V4": "avx512f avx512bw",
    "AVX512F": "avx512f",
    "AVX512_SKX": "avx512bw",
    "AVX512_ICL": "avx512_vnni",
    "AVX512_SPR": "avx512_fp16",
}


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
    """What the processor says it has, as NumPy read it from cpuid (on Arm: from the auxiliary vector) in this process."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]
    return (*found["baseline"], *found.get("found", ()))


def describe_processor(isa: Sequence[str], file: Path) -> None:
    """Let vggdeploy read this processor's features from ``file``.

    /proc/cpuinfo would be wrong: qemu-user hands through that of the machine it runs on. A session would then be set up for
    instructions that are not there, and INT8 that saturates here would be left as it is.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    flags = " ".join(_FLAGS.get(name, name.lower()) for name in isa)
    file.write_text(f"model name : emulated\nflags : {flags}\n")
    machine.CPUINFO = file


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
    isa = instruction_sets()
    describe_processor(isa, cache_home() / "cpuinfo")
    client = Client(address)
    job = msgspec.json.decode(client.get("job"), type=Job)
    # Who signed it was checked before, and the digest names all of its bytes.
    bundle = Bundle.open(job.bundle, only=job.variants, trust=())
    if bundle.manifest.digest != job.digest:
        raise IntegrityError(f"{job.bundle} was changed while it was proven", "run this again")
    libraries = {backend_for(bundle.manifest.variant(name)).library for name in job.variants}
    tools = {name: found for name in sorted(libraries) if (found := version(name))}
    client.send("about", msgspec.json.encode(About(isa=isa, tools=tools)))
    inputs, _ = bundle.golden()
    for index in range(len(job.variants)):
        run_variant(bundle, job, index, inputs[job.input.name], client)


if __name__ == "__main__":
    main(sys.argv[1])
