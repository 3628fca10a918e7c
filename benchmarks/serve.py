"""The figures of the server: throughput beside the same session offline, added latency, and what overload does to it.

All traffic goes to 127.0.0.1 and is bounded in count and time: about six minutes on two cores.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from measuring import target, write_result
from serving import serving, two_bundles

import vggdeploy
from vggdeploy.engine.engine import Engine

BATCH = 8  # images of a batch, offline and served
SECONDS = 20.0  # of each measurement


def request_bytes(image: np.ndarray) -> bytes:
    """One image as a whole HTTP request of the Open Inference Protocol, with a binary tensor."""
    tensor = {
        "name": "image", "shape": [1, *image.shape], "datatype": "UINT8",
        "parameters": {"binary_data_size": image.nbytes},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + image.tobytes()
    lines = (
        "POST /v2/models/MODEL/infer HTTP/1.1", "Host: localhost", f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(body)}", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + body


class Client:
    """One connection that asks and waits: as little work as possible on the cores that are measured."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, port: int) -> Client:
        client = cls(port)
        await client._open()
        return client

    async def _open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> int:
        """The status of the answer. A connection that the server closed because it was idle is opened anew."""
        if self.reader.at_eof():
            self.writer.close()
            await self._open()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        await self.reader.readexactly(int(length[1]))
        return int(head[9:12])

    def close(self) -> None:
        self.writer.close()


def offline(engine: Engine, images: np.ndarray, seconds: float) -> float:
    """Images a second of `Engine.run`, batch after batch, in one thread."""
    name, done, start = engine.bundle.manifest.input.name, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        at = done % (len(images) - BATCH + 1)
        engine.run({name: images[at : at + BATCH]})
        done += BATCH
    return done / (time.perf_counter() - start)


async def in_process(engine: Engine, images: np.ndarray, seconds: float) -> float:
    """Images a second of AsyncEngine, asked by four batches of callers."""
    many = vggdeploy.AsyncEngine(engine, vggdeploy.AsyncLimits(max_batch=BATCH))
    name, done, end = engine.bundle.manifest.input.name, 0, time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            at = (number * 7) % len(images)
            await many.run({name: images[at : at + 1]})
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(4 * BATCH)))
    return done / (time.perf_counter() - start)


async def closed_loop(port: int, requests: list[bytes], callers: int, seconds: float) -> tuple[float, Counter[int]]:
    """Answers a second (200 only), with ``callers`` connections that each wait for their answer; all statuses."""
    clients = [await Client.connect(port) for _ in range(callers)]
    statuses: Counter[int] = Counter()
    start = time.perf_counter()

    async def caller(number: int, client: Client) -> None:
        while time.perf_counter() - start < seconds:
            statuses[await client.ask(requests[number % len(requests)])] += 1

    await asyncio.gather(*(caller(n, c) for n, c in enumerate(clients)))
    took = time.perf_counter() - start
    for client in clients:
        client.close()
    return statuses[200] / took, statuses


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Requests at ``rate`` a second, whatever is answered (Poisson arrivals): goodput, refusals, how quick those were."""
    random = np.random.default_rng(0)
    arrivals = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    free: list[Client] = [await Client.connect(port) for _ in range(256)]
    good: list[float] = []
    refused: list[float] = []
    unsent = 0
    start = time.perf_counter()

    async def one(number: int, client: Client) -> None:
        asked = time.perf_counter()
        status = await client.ask(requests[number % len(requests)])
        (good if status == 200 else refused).append(time.perf_counter() - asked)
        free.append(client)

    tasks = []
    for number, at in enumerate(arrivals):
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        if free:
            tasks.append(asyncio.create_task(one(number, free.pop())))
        else:
            unsent += 1
    sending = time.perf_counter() - start
    await asyncio.gather(*tasks)
    took = time.perf_counter() - start
    for client in free:
        client.close()
    return {
        "offered_per_s": len(arrivals) / sending,
        "goodput_per_s": len(good) / took,
        "refused": len(refused),
        "unsent": unsent,
        "refused_p99_ms": float(np.quantile(refused, 0.99)) * 1e3 if refused else None,
        "answered_p50_ms": float(np.median(good)) * 1e3,
    }


async def light_load(port: int, image: Path, engine: Engine, calls: int) -> dict[str, float]:
    """One caller with an image file: the answer's time beside `Engine.classify` of the same file, interleaved; ms."""
    data = image.read_bytes()
    request = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    client = await Client.connect(port)
    served: list[float] = []
    alone: list[float] = []
    for call in range(calls + 20):
        start = time.perf_counter()
        status = await client.ask(request)
        middle = time.perf_counter()
        engine.classify(data)
        end = time.perf_counter()
        assert status == 200
        if call >= 20:
            served.append((middle - start) * 1e3)
            alone.append((end - middle) * 1e3)
    client.close()
    difference = np.asarray(served) - np.asarray(alone)
    return {
        "served_p50_ms": float(np.median(served)),
        "engine_p50_ms": float(np.median(alone)),
        "added_p50_ms": float(np.median(difference)),
        "added_p90_ms": float(np.quantile(difference, 0.9)),
        "calls": calls,
    }


async def measure(
    digits: Path, digit: Path, vgg16: Path, seconds: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    random = np.random.default_rng(0)
    with vggdeploy.load(digits, variant="onnx-fp32") as engine:
        print("light load …", flush=True)
        with serving(digits) as server:
            light = await light_load(server.port, digit, engine, 300)
    engine = vggdeploy.load(vgg16, variant="onnx-fp32")
    images = random.integers(0, 256, (4 * BATCH, *engine.bundle.manifest.input.item_shape), dtype=np.uint8)
    name = engine.bundle.manifest.name.encode()
    requests = [request_bytes(image).replace(b"MODEL", name, 1) for image in images]
    print("throughput …", flush=True)
    engine.warm_up([1, BATCH])
    rounds: dict[str, list[float]] = {"offline": [], "in_process": [], "served": []}
    for _ in range(3):  # in turns, so that a machine that gets slower does so for all
        rounds["offline"].append(offline(engine, images, seconds / 2))
        rounds["in_process"].append(await in_process(engine, images, seconds / 2))
        with serving(vgg16, "--max-batch", BATCH) as server:
            await closed_loop(server.port, requests, 4 * BATCH, 2)
            rounds["served"].append((await closed_loop(server.port, requests, 4 * BATCH, seconds / 2))[0])
    engine.close()
    rate = {key: float(np.median(found)) for key, found in rounds.items()}
    ratios = {
        k: float(np.median(np.asarray(rounds[k]) / np.asarray(rounds["offline"]))) for k in ("in_process", "served")
    }
    print("overload …", flush=True)
    queue = 4 * BATCH
    with serving(vgg16, "--max-batch", BATCH, "--queue", queue) as server:
        capacity, _ = await closed_loop(server.port, requests, queue, seconds)
        over = await open_loop(server.port, requests, 2 * capacity, seconds)
    kept = over["goodput_per_s"] / capacity
    measured = {
        "light_load_digits": light,
        "throughput_vgg16": {"batch": BATCH, "images_per_s": rate, "over_offline": ratios, "rounds": rounds},
        "overload_vgg16": {"queue": queue, "capacity_per_s": capacity, "goodput_over_capacity": kept, **over},
    }
    targets = [
        target("latency that the server adds to Engine.classify of a file, median", light["added_p50_ms"], 2.0, "ms"),
        at_least("AsyncEngine over the same session offline, VGG-16", ratios["in_process"], 0.9),
        at_least("the server over the same session offline, VGG-16", ratios["served"], 0.9),
        at_least("goodput at twice the capacity, over the capacity", kept, 0.9),
        target(
            "time until a request is refused at twice the capacity, p99", over["refused_p99_ms"] or 0.0, 100.0, "ms"
        ),
    ]
    return measured, targets


def at_least(what: str, found: float, limit: float) -> dict[str, Any]:
    """A target of the form "at least"."""
    return {"what": what, "found": f"{found:.3g} ×", "target": f"≥ {limit:g} ×", "met": found >= limit}


def main(seconds: float = SECONDS) -> int:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        digits, vgg16 = two_bundles(home)
        digit = next((home / "demo" / "images").iterdir())
        measured, targets = asyncio.run(measure(digits, digit, vgg16, seconds))
    return write_result("serve", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
