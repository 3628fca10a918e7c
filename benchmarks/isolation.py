"""What `--isolate` costs: images decoded in this process and in a confined one, in turns; and one decoder's start and memory.

python benchmarks/isolation.py
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import write_result
from PIL import Image

from vggdeploy.bench.interference import peak_rss
from vggdeploy.engine.isolation import IsolatedDecoders
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec

ROUNDS = 41
PICTURES = (
    ("JPEG", (28, 28)),
    ("JPEG", (500, 375)),
    ("JPEG", (4000, 3000)),
    ("PNG", (500, 375)),
    ("WEBP", (500, 375)),
)
SPEC = PreprocessSpec()


def main() -> int:
    started = time.perf_counter()
    decoders = IsolatedDecoders(1, max_pixels=25_000_000)
    first = picture("PNG", (8, 8))
    decoders.prepare(first, SPEC)
    start = time.perf_counter() - started
    rows = [row(name, size, decoders) for name, size in PICTURES]
    measured = {
        "pictures": rows,
        "start_ms": start * 1e3,
        "memory_mib": (peak_rss(pid=decoders.pids[0]) or 0) / 2**20,
    }
    decoders.close()
    print(
        *(f"{r['format']} {r['width']} × {r['height']}: {r['added_ms']:+.2f} ms of {r['here_ms']:.2f}" for r in rows),
        sep="\n",
    )
    return write_result("isolation", measured, [])


def picture(name: str, size: tuple[int, int]) -> bytes:
    """Noise that was smoothed: it compresses about as a photograph does."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize(size).save(data, name)
    return data.getvalue()


def row(name: str, size: tuple[int, int], decoders: IsolatedDecoders) -> dict[str, Any]:
    data = picture(name, size)
    ways: tuple[Callable[[], Any], ...] = (lambda: prepare(data, SPEC), lambda: decoders.prepare(data, SPEC))
    seconds = np.array([[timed(way) for way in ways] for _ in range(ROUNDS)])[1:]
    here, there = np.median(seconds, axis=0) * 1e3
    return {
        "format": name, "width": size[0], "height": size[1], "bytes": len(data), "rounds": len(seconds),
        "here_ms": float(here), "isolated_ms": float(there), "added_ms": float(np.median(seconds[:, 1] - seconds[:, 0])) * 1e3,
    }  # fmt: skip


def timed(way: Callable[[], Any]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
