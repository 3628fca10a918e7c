"""What `serve --otlp` costs: throughput, and the server's processor time an answer, with traces and metrics on and off.

Both servers run the whole time and are asked in turns, so that a machine that gets slower does so for both. Processor time is
hardly touched by what else runs on the machine; a server that computes all the time answers as many fewer as it takes more.
The collector is a process of its own on the same cores. All traffic goes to 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from measuring import target, write_result
from serve import closed_loop, request_bytes
from serving import serving, two_bundles

from vggdeploy.bundle import Bundle

TURNS = 12  # pairs of an on and an off turn
SECONDS = 10.0  # of a turn
# It counts the spans of what it is sent, and says so when its input ends.
COLLECTOR = """
import gzip, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
bodies = []
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            bodies.append((body, self.headers.get("content-encoding")))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
count = 0
for body, encoding in bodies:
    request = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding else body)
    count += sum(len(scope.spans) for group in request.resource_spans for scope in group.scope_spans)
print(count, flush=True)
"""


class Collector:
    """The process, and how many spans it has got by its end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COLLECTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def close(self) -> int:
        """The number of spans that came."""
        spans, _ = self._process.communicate("")
        return int(spans)


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector()
    try:
        yield found
    finally:
        found._process.kill()
        found._process.wait()


def requests_for(bundle: Path) -> list[bytes]:
    """Random images of the bundle's size, each a whole request."""
    manifest = Bundle.open(bundle).manifest
    images = np.random.default_rng(0).integers(0, 256, (32, *manifest.input.item_shape), dtype=np.uint8)
    return [request_bytes(image).replace(b"MODEL", manifest.name.encode(), 1) for image in images]


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % of the median's bootstrap distribution."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def process_of(port: int) -> int:
    """The server that listens on this port."""
    inodes = {
        fields[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and int(fields[1].split(":")[1], 16) == port
    }
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            opened = str(link.readlink())
        except OSError:  # it was closed meanwhile
            continue
        if opened.startswith("socket:[") and opened[8:-1] in inodes:
            return int(link.parts[2])
    raise LookupError(port)


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def turns(off: int, on: int, requests: list[bytes], callers: int, pairs: int, seconds: float) -> dict[str, Any]:
    """Answers a second of both servers, in turns whose order alternates; and the answers that tracing was on for."""
    rates: dict[str, list[float]] = {"off": [], "on": []}
    spent: dict[str, list[float]] = {"off": [], "on": []}
    ports = {"off": off, "on": on}
    processes = {name: process_of(port) for name, port in ports.items()}
    traced = 0
    for port in (off, on):
        traced = sum((await closed_loop(port, requests, callers, 2.0))[1].values())
    for number in range(pairs):
        for name in ("off", "on") if number % 2 else ("on", "off"):
            before = processor_seconds(processes[name])
            rate, statuses = await closed_loop(ports[name], requests, callers, seconds)
            assert set(statuses) == {200}, statuses
            rates[name].append(rate)
            spent[name].append((processor_seconds(processes[name]) - before) / statuses[200])
            traced += statuses[200] if name == "on" else 0
    ratios = np.asarray(rates["on"]) / np.asarray(rates["off"])
    costs = np.asarray(spent["on"]) / np.asarray(spent["off"])
    return {
        "callers": callers,
        "off_per_s": float(np.median(rates["off"])),
        "on_per_s": float(np.median(rates["on"])),
        "on_over_off": float(np.median(ratios)),
        "on_over_off_95": list(interval(ratios)),
        "processor_on_over_off": float(np.median(costs)),
        "processor_on_over_off_95": list(interval(costs)),
        "processor_added_us": float(np.median(np.asarray(spent["on"]) - np.asarray(spent["off"]))) * 1e6,
        "rounds": rates,
        "processor_rounds": spent,
        "traced": traced,
    }


def measure(bundle: Path, callers: int, pairs: int, seconds: float) -> dict[str, Any]:
    with collector() as sink:
        with serving(bundle, "--max-batch", 8) as off, serving(bundle, "--max-batch", 8, "--otlp", sink.url) as on:
            measured = asyncio.run(turns(off.port, on.port, requests_for(bundle), callers, pairs, seconds))
        measured["spans"] = sink.close()
    # Nothing was sampled away, and next to nothing dropped: a server that sends nothing costs nothing, too.
    measured["spans_over_expected"] = measured["spans"] / (5 * measured["traced"])
    return measured


def main(pairs: int = TURNS, seconds: float = SECONDS) -> int:
    with tempfile.TemporaryDirectory() as directory:
        digits, vgg16 = two_bundles(Path(directory))
        measured = {
            "vgg16": measure(vgg16, 32, pairs, seconds),
            "digits": measure(digits, 32, pairs, seconds / 2),
        }
    for name, found in measured.items():
        print(name, {key: value for key, value in found.items() if key != "rounds"}, flush=True)
    targets = [
        target(
            "processor time that tracing adds to an answer, VGG-16",
            (measured["vgg16"]["processor_on_over_off"] - 1) * 100, 1.0, "%",
        ),
        target("throughput that tracing takes, VGG-16", (1 - measured["vgg16"]["on_over_off"]) * 100, 1.0, "%"),
        target(
            "spans that did not arrive, of both models",
            (1 - min(found["spans_over_expected"] for found in measured.values())) * 100, 0.1, "%",
        ),
    ]  # fmt: skip
    return write_result("tracing", measured, targets)


if __name__ == "__main__":
    sys.exit(main(*(int(sys.argv[1]), float(sys.argv[2])) if len(sys.argv) == 3 else ()))
