"""How much memory a server takes: one is started, answers full batches, and is looked at."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from vggdeploy.bench.interference import peak_rss
from vggdeploy.bench.remote.clients import HttpClient, chosen_model
from vggdeploy.bench.remote.target import parse_url
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import IncompatibleError, VggdeployError, one_line
from vggdeploy.system.machine import machine
from vggdeploy.system.optional import require

MIB = 2**20
REQUESTS = 20  # of full batches: from the second on the peak hardly grows
_START_SECONDS = 300.0
# The server, which ends with the command that measures it, also when that is killed.
_SERVE = """
import os, signal, sys
from vggdeploy.system.ending import end_with_parent
end_with_parent(signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the command that wanted it has ended")
from vggdeploy.cli.app import run
sys.exit(run(sys.argv[2:]))
"""
_PAUSE = 0.05


@dataclass(frozen=True)
class Measured:
    """``peak`` is what was resident at most, in bytes."""

    peak: int
    requests: int
    batch: int
    threads: int
    cpu: str


def measure_server(bundle: Bundle, variant: Variant, *, threads: int, batch: int) -> Measured:
    """Start ``vggdeploy serve`` with this variant, and ask it.

    Raises:
        MissingDependencyError: what serves over HTTP is not installed.
        IncompatibleError: the server does not start here, or the system does not tell what it takes.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(module, to="measure what a server takes", extra="serve")
    command = [sys.executable, "-P", "-c", _SERVE, str(os.getpid()), "serve", str(bundle.root.resolve())]
    command += ["--variant", variant.name, "--threads", str(threads), "--max-batch", str(batch), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "VGGDEPLOY_TOKEN"}
    home = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    with (
        tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace", prefix="vggdeploy-serve-") as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment, process_group=0) as process,
    ):
        try:
            _ask(_address(process, said), bundle, batch)
            peak = peak_rss(pid=process.pid)
        except (OSError, http.client.HTTPException) as error:
            raise IncompatibleError(f"the server did not answer: {error}", "see: vggdeploy serve BUNDLE") from error
        finally:
            process.kill()
    if peak is None:
        raise IncompatibleError("this system does not tell what a process takes", "package on Linux")
    return Measured(peak, REQUESTS, batch, threads, machine().cpu)


def _address(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """The URL that the server says it has, once it is ready."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        said.seek(0)
        text = said.read()
        found = re.search(r"serving .*? at (http://\S+)", " ".join(text.split()))
        if found is not None and _ready(text):
            return found[1]
        time.sleep(_PAUSE)
    said.seek(0)
    lines = [line for line in said.read().splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
    raise IncompatibleError(
        f"the server did not start here, so nothing was measured: {one_line(why).removeprefix('error: ')[:300]}",
        "package where the variant runs: vggdeploy doctor",
    )


def _ready(text: str) -> bool:
    for line in text.splitlines():
        if line.startswith("{"):
            entry: Any = json.loads(line) if line.endswith("}") else {}
            if entry.get("message") == "ready":
                return True
    return False


def _ask(url: str, bundle: Bundle, batch: int) -> None:
    client = HttpClient(parse_url(url))
    try:
        model = chosen_model(client, "")
    finally:
        client.close()
    client = HttpClient(replace(parse_url(url), model=model))
    try:
        about = client.model()
        inputs, _ = bundle.golden()
        images = np.take(inputs[bundle.manifest.input.name], range(batch), axis=0, mode="wrap")
        request = client.prepare(about, images)
        for _ in range(REQUESTS):
            if not client.outputs(client.infer(request)):
                raise VggdeployError("the server answers without outputs", "see: vggdeploy serve BUNDLE")
    finally:
        client.close()
