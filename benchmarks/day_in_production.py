"""A server under what a day brings: reloads, hostile requests and a shadow at 80% of its capacity, and each answer checked.

    python benchmarks/day_in_production.py [--minutes 10] [--bundle DIR]

Ten minutes of that in turns of 30 s. In the middle of each comes a reload, so that for a moment the server holds two versions;
one request in twenty is hostile. Before or after each turn a second server, which has nothing of all that, is asked for as long
and at the same rate, as a queue takes its time to grow: its latencies are what the others are compared with. A machine that is
shared gets faster and slower by the second, here by a fifth: capacity is what the server answers in nine of ten seconds, of the
last thirty in which 32 callers kept it busy, five of them before each turn. The callers have the last core for themselves, and
the servers the others: else each would slow the other down, and nobody could say whose latencies these are. A run of less than
ten minutes prints its figures, and is no result. All traffic goes to 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import msgspec
import numpy as np
from measuring import target, write_result
from serve import request_bytes
from serving import serving

import vggdeploy
from vggdeploy.bundle import Bundle, update_bundle

LOAD, HOSTILE = 0.8, 0.05  # of the capacity; of the requests
TURN = 30.0  # seconds; in the middle of a busy one there is a reload
STEADY, WINDOWS, WINDOWS_A_TURN = 0.1, 30, 5  # capacity is this quantile of the answers in so many seconds
TOLERANCE = 1e-4  # of logits: another batch adds in another order
WHOLE = 10.0  # minutes of a run that counts
CALLERS = 32  # of the closed loop that finds the capacity
CONNECTIONS = 512  # more than the server's queue: who finds none was never sent, and that is a miss of the callers'


def post(path: str, body: bytes, **headers: object) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def hostile(model: str, shape: tuple[int, ...]) -> list[bytes]:
    """Requests that have to be refused with 4xx, each of another kind."""
    infer = f"/v2/models/{model}/infer"
    tensor = {"name": "image", "shape": [1, *shape], "datatype": "UINT8", "data": [0] * math.prod(shape)}
    bad = [{**tensor, "shape": [-1]}, {**tensor, "data": [256] * math.prod(shape)}, {**tensor, "datatype": "FP64"},
           {**tensor, "name": "x"}, {**tensor, "shape": [2**31 - 1] * 8, "data": []}]  # fmt: skip
    return [
        post("/classify", b""), post("/classify", b"\x89PNG\r\n\x1a\n" + b"\0" * 200), post("/classify", b"GIF89a"),
        post("/classify", b"\xff\xd8\xff" + os.urandom(500)), post("/classify?top=0", b"x"),
        post("/classify?model=other", b"x"), post(infer, b"{"), post(infer, b"[" * 10_000),
        post(infer, b"{}", Inference_Header_Content_Length="9999"), post("/v2/models/other/infer", b"{}"),
        post(infer, gzip.compress(b"0" * 2**25), Content_Encoding="gzip"), post("/../etc/passwd", b""),
        *(post(infer, json.dumps({"inputs": [each]}).encode()) for each in bad),
    ]  # fmt: skip


@dataclass
class Tally:
    """What became of a phase's requests. ``wrong``: an answer with other numbers, a hostile request that was not refused."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    unsent: int = 0

    def add(self, other: Tally) -> None:
        self.seconds += other.seconds
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.lost += other.lost
        self.unsent += other.unsent

    def p99_ms(self) -> float:
        return float(np.quantile(self.seconds, 0.99)) * 1e3


class Caller:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body.

        Raises:
            OSError, asyncio.IncompleteReadError: there was no answer.
        """
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Day:
    """Traffic at a rate, Poisson arrivals, whatever is answered.

    Args:
        expected: the logits of each image, ``float32 [N, classes]``.
    """

    def __init__(self, port: int, model: str, images: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
        self.requests = [request_bytes(image).replace(b"/MODEL/", f"/{model}/".encode()) for image in images]
        self._expected = expected
        self._bad = hostile(model, images.shape[1:])
        self._free = [Caller(port) for _ in range(CONNECTIONS)]
        self._random = np.random.default_rng(0)

    async def capacity(self, callers: int, seconds: float) -> float:
        """Answers a second to so many callers that each wait for theirs, checked like all others."""
        tally, start = Tally(), time.perf_counter()

        async def caller(number: int) -> None:
            while time.perf_counter() - start < seconds:
                await self._one(tally, self._free.pop(), number % len(self.requests), False)
                number += callers

        await asyncio.gather(*map(caller, range(callers)))
        if tally.wrong or tally.lost or set(tally.statuses) != {"good 200"}:
            raise RuntimeError(f"the closed loop got {dict(tally.statuses)}, {tally.wrong} of them wrong")
        return len(tally.seconds) / (time.perf_counter() - start)

    async def pass_by(self, rate: float, seconds: float, share: float) -> Tally:
        tally = Tally()
        arrivals = np.cumsum(self._random.exponential(1 / rate, int(rate * seconds)))
        tasks, start = [], time.perf_counter()
        for at in arrivals:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            if not self._free:
                tally.unsent += 1
                continue
            bad = self._random.random() < share
            number = int(self._random.integers(len(self._bad if bad else self.requests)))
            tasks.append(asyncio.create_task(self._one(tally, self._free.pop(), number, bad)))
        await asyncio.gather(*tasks)
        return tally

    async def _one(self, tally: Tally, caller: Caller, number: int, bad: bool) -> None:
        asked = time.perf_counter()
        try:
            status, body = await caller.ask(self._bad[number] if bad else self.requests[number])
        except (OSError, asyncio.IncompleteReadError):
            tally.lost += 1
            caller.close()
        else:
            tally.statuses[f"{'hostile' if bad else 'good'} {status}"] += 1
            if bad:
                tally.wrong += not 400 <= status < 500
            else:
                tally.seconds.append(time.perf_counter() - asked)
                tally.lost += status >= 500
                tally.wrong += status < 500 and not self._right(number, status, body)
        finally:
            self._free.append(caller)

    def _right(self, number: int, status: int, body: bytes) -> bool:
        expected = self._expected[number]
        if status != 200 or len(body) < expected.nbytes:
            return False
        logits = np.frombuffer(body[-expected.nbytes :], "<f4")
        return bool(np.allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(expected).max())))


def next_version(bundle: Path, number: int) -> None:
    """Another version with the same answers: its digest is another."""
    opened = Bundle.open(bundle)
    with update_bundle(opened) as draft:
        draft.manifest = msgspec.structs.replace(
            opened.manifest, tools={**opened.manifest.tools, "version": str(number)}
        )


async def reload(process: subprocess.Popen[bytes], bundle: Path, number: int) -> None:
    await asyncio.sleep(TURN / 2)
    await asyncio.to_thread(next_version, bundle, number)
    process.send_signal(signal.SIGHUP)


async def watched(process: subprocess.Popen[bytes], every: float, found: list[int]) -> None:
    while True:
        with suppress(OSError):
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE"))
        await asyncio.sleep(every)


async def whole_day(bundle: Path, minutes: float) -> dict[str, Any]:
    with vggdeploy.load(bundle, variant="onnx-fp32") as engine:
        inputs, _ = engine.bundle.golden()
        images = inputs["image"]
        expected = np.concatenate([engine.run({"image": images[n : n + 1]})["logits"] for n in range(len(images))])
        model = engine.bundle.manifest.name
    turns = max(1, round(60 * minutes / TURN))
    shadow_of = ("--shadow", bundle, "--sample", "5%", "--set", "shadow.variant=onnx-fp16")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1] or cores)  # the servers have it from here
    with serving(bundle) as plain, serving(bundle, *shadow_of) as server:
        os.sched_setaffinity(0, cores[-1:])
        calm, day = (Day(each.port, model, images, expected) for each in (plain, server))
        windows = deque([await calm.capacity(CALLERS, 1.0) for _ in range(WINDOWS)], maxlen=WINDOWS)
        for each in (calm, day):  # warms up what the closed loop did not
            await each.pass_by(LOAD * float(np.quantile(windows, STEADY)), TURN / 3, 0)
        memory: list[int] = []
        watch = asyncio.create_task(watched(server.process, turns * TURN / 150, memory))
        quiet, busy, by_turn, rates = Tally(), Tally(), [], []
        for turn in range(turns):
            windows.extend([await calm.capacity(CALLERS, 1.0) for _ in range(WINDOWS_A_TURN)])
            rate = LOAD * float(np.quantile(windows, STEADY))
            rates.append(rate)
            first = await calm.pass_by(rate, TURN, 0) if turn % 2 else None
            change = asyncio.create_task(reload(server.process, bundle, turn + 1))
            while_busy = await day.pass_by(rate, TURN, HOSTILE)
            await change
            alone = first or await calm.pass_by(rate, TURN, 0)
            by_turn.append([alone.p99_ms(), while_busy.p99_ms()])
            quiet.add(alone)
            busy.add(while_busy)
        watch.cancel()
        shadow = httpx.get(f"http://127.0.0.1:{server.port}/shadow").json()
        text = server.log.read_text()
    fifth = max(1, len(memory) // 5)
    return {
        "minutes": minutes, "server_cores": len(cores[:-1] or cores), "callers_cores": 1,
        "capacity_per_s": median(rates) / LOAD, "rate_per_s": median(rates), "rate_per_s_by_turn": rates,
        "requests": sum(busy.statuses.values()),
        "statuses": dict(busy.statuses), "wrong": busy.wrong + quiet.wrong, "lost": busy.lost + quiet.lost,
        "unsent": busy.unsent + quiet.unsent, "turns": turns, "reloads": text.count('"reloaded"'),
        "failed_reloads": text.count("reload failed") + text.count("reload of the shadow failed"),
        "tracebacks": text.count("traceback"), "quiet_p99_ms": quiet.p99_ms(), "p99_ms": busy.p99_ms(),
        "p99_ratio": busy.p99_ms() / quiet.p99_ms(),
        "memory_growth": median(memory[-fifth:]) / median(memory[fifth : 2 * fifth]) - 1,
        "p99_ms_quiet_and_not_by_turn": by_turn,
        "memory_mib": [round(bytes_ / 2**20, 1) for bytes_ in memory],
        "shadow": {name: shadow[name] for name in ("compared", "repeated", "shed", "errors", "verdict")},
    }  # fmt: skip


def made_bundle(home: Path) -> Path:
    """A network of the digits that takes its time: the caller shares the two cores, and has to cost little beside it."""
    from vggdeploy.export.bundle import export_bundle
    from vggdeploy.train.loop import train
    from vggdeploy.train.recipe import Recipe

    train(
        Recipe(arch="vgg11_bn", width=0.5, hidden=128, dropout=0.0, dataset="digits", image_size=64, epochs=2),
        output=home / "checkpoint",
    )
    export_bundle(home / "checkpoint", home / "bundle")
    return home / "bundle"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=WHOLE)
    parser.add_argument("--bundle", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        if given.bundle:
            shutil.copytree(given.bundle, home / "bundle")
        bundle = home / "bundle" if given.bundle else made_bundle(home)
        measured = asyncio.run(whole_day(bundle, given.minutes))
    targets = [
        target("wrong answers", measured["wrong"], 0, "answers"),
        target("lost requests", measured["lost"] + measured["unsent"], 0, "requests"),
        target("99th percentile beside the quiet one", measured["p99_ratio"], 1.5, "×"),
        target("growth of memory", measured["memory_growth"], 0.05, "of the second fifth, when four reloads are over"),
        target("reloads that did not come about", measured["turns"] - measured["reloads"], 0, "reloads"),
        target("tracebacks and failed reloads", measured["tracebacks"] + measured["failed_reloads"], 0, "lines"),
    ]
    if given.minutes < WHOLE:
        print(json.dumps(measured, indent=2))
        print(*targets, sep="\n")
        return 0 if all(each["met"] for each in targets) else 4
    return write_result("day_in_production", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
