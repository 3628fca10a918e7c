"""Months in minutes: an application that answers, loads, unloads, fails to load and reloads, and must not grow.

    python benchmarks/soak.py [--requests 200000] [--loads 2000] [--failures 2000] [--reloads 200] [--bundle DIR] [--json]

Each part warms up with a tenth of its turns; then its resident memory, open files, threads and temporary files are read
in a row of samples until its end. Growth is the median of the last fifth of the samples over that of the first fifth. Before a
sample the allocator gives back the pages that it holds free: how many, changes by a few percent from turn to turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measuring import run_process, target, write_result

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.errors import IntegrityError, VggdeployError
from vggdeploy.system.machine import release_memory

BACKEND = "onnxruntime"  # without torch: what a service has
CONCURRENT = 32
SAMPLES = 50
GROWTH = 0.02


@dataclass
class Watch:
    """Samples of what a process holds, taken between turns."""

    scratch: Path
    rss: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    def sample(self) -> None:
        release_memory()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.rss.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        self.threads.append(threading.active_count())
        self.left.append(sum(1 for _ in self.scratch.rglob("*")))

    def found(self, turns: int) -> dict[str, Any]:
        part = max(1, len(self.rss) // 5)
        first, last = median(self.rss[:part]), median(self.rss[-part:])
        return {
            "turns": turns,
            "rss_first_bytes": first,
            "rss_last_bytes": last,
            "growth": last / first - 1,
            **{name: [values[0], values[-1]] for name, values in (
                ("open_files", self.files), ("threads", self.threads), ("temporary_files", self.left)
            )},
        }  # fmt: skip


def repeat(turns: int, scratch: Path, turn: Callable[[], None]) -> dict[str, Any]:
    """One part: ``turn`` again and again."""
    for _ in range(max(3, turns // 10)):
        turn()
    watch = Watch(scratch)
    for number in range(turns):
        if number % max(1, turns // SAMPLES) == 0:
            watch.sample()
        turn()
    watch.sample()
    return watch.found(turns)


async def requests(bundle: Path, image: bytes, turns: int, scratch: Path) -> dict[str, Any]:
    """Images through `AsyncEngine`, ``CONCURRENT`` at a time; one in a hundred is no image, and fails alone."""
    limits = vggdeploy.AsyncLimits(queue=4 * CONCURRENT)
    async with vggdeploy.AsyncEngine(vggdeploy.load(bundle, backend=BACKEND), limits) as engine:

        async def some(count: int) -> None:
            async def ask(number: int) -> None:
                try:
                    await engine.classify(b"no image" if number % 100 == 99 else image, top=1)
                except VggdeployError:
                    assert number % 100 == 99  # no other request may fail

            for start in range(0, count, CONCURRENT):
                await asyncio.gather(*map(ask, range(start, min(count, start + CONCURRENT))))

        await some(turns // 10)
        watch = Watch(scratch)
        for _ in range(SAMPLES):
            watch.sample()
            await some(turns // SAMPLES)
        watch.sample()
    return watch.found(turns)


def soak(bundle: Path, image: bytes, asked: argparse.Namespace, home: Path) -> dict[str, Any]:
    """All parts, in one process, one after the other."""
    scratch = home / "tmp"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    damaged, other = home / "damaged", home / "other"
    for copy in (damaged, other):
        shutil.copytree(bundle, copy)
    file = next(damaged.rglob("*.onnx"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    def load() -> None:
        with vggdeploy.load(bundle, backend=BACKEND) as engine:
            engine.classify(image)

    def fail() -> None:
        try:
            vggdeploy.load(damaged, backend=BACKEND)
        except IntegrityError:
            return
        raise AssertionError("a damaged bundle was loaded")

    found = {"requests": asyncio.run(requests(bundle, image, asked.requests, scratch))}
    found["loads"] = repeat(asked.loads, scratch, load)
    found["failed loads"] = repeat(asked.failures, scratch, fail)
    with vggdeploy.load(bundle, backend=BACKEND) as engine:
        turn = [other, bundle]

        def reload() -> None:
            turn.reverse()
            engine.reload(turn[0])
            engine.classify(image)

        found["reloads"] = repeat(asked.reloads, scratch, reload)
    return found


def targets_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    targets = []
    for name, part in found.items():
        targets.append(target(f"{name}: growth of the resident memory", part["growth"], GROWTH, "of it"))
        for kind in ("open_files", "threads", "temporary_files"):
            grown = part[kind][1] - part[kind][0]
            targets.append(
                target(f"{name}: more {kind.replace('_', ' ')} at the end", grown, 0, kind.replace("_", " "))
            )
    return targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--loads", type=int, default=2000)
    parser.add_argument("--failures", type=int, default=2000)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--bundle", type=Path, help="of the digits; default: the demo's, made here")
    parser.add_argument("--json", action="store_true", help="print what was found; nothing is written or judged")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        os.environ["VGGDEPLOY_CACHE"] = str(home / "cache")
        if asked.bundle is None:
            run_process([sys.executable, "-m", "vggdeploy", "demo", "-o", home / "demo"])
        bundle = asked.bundle or home / "demo" / "bundle"
        inputs, _ = Bundle.open(bundle).golden()
        found = soak(bundle, png(inputs["image"][0, ..., 0]), asked, home)
        assert "torch" not in sys.modules
    if asked.json:
        print(json.dumps(found))
        return 0
    return write_result("soak", found, targets_of(found))


def png(pixels: Any) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
