"""Embedding over Ray beside one process: VGG-16 at 224 px, images a second of 1 and 2 engines, and what a billion cost.

    python benchmarks/ray_embed.py [--images 96]

Each way runs with few images and with three times as many; the rate is that of the difference, so that neither the start
of a cluster nor the opening of an engine counts. All ways have the same two cores. A cluster of this machine is used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from main_job import make_vgg16
from measuring import run_process, target, write_result
from PIL import Image

# Name → options of `vggdeploy embed`.
WAYS: dict[str, list[str]] = {
    "one process, 2 threads": ["--threads", "2"],
    "Ray, 1 engine, 2 threads": ["--ray", "local", "--ray-workers", "1", "--threads", "2", "--shard", "32"],
    "Ray, 2 engines, 1 thread": ["--ray", "local", "--ray-workers", "2", "--threads", "1", "--shard", "16"],
}
ROUNDS = 3
BILLION = 10**9


def make_images(root: Path, count: int) -> None:
    """JPEG files of 320 × 256 noise over slopes: about what a photo of that size takes to decode."""
    root.mkdir()
    random = np.random.default_rng(0)
    y, x = np.mgrid[:256, :320]
    for index in range(count):
        slopes = np.stack([x * 255 // 320, y * 255 // 256, (x + y + index) % 256], -1)
        noisy = np.clip(slopes + random.normal(0, 20, slopes.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{index:04}.jpg", quality=90)


def seconds(bundle: Path, images: Path, home: Path, options: list[str]) -> float:
    """Wall-clock time of the whole command."""
    with tempfile.TemporaryDirectory(dir=home) as directory:
        out = Path(directory) / ("out" if "--ray" in options else "out.npy")
        command = [sys.executable, "-m", "vggdeploy", "embed", bundle, images, "-o", out, "--output", "fc7", *options]
        begin = time.perf_counter()
        subprocess.run([*map(str, command), "--variant", "onnx-fp32", "--json"], check=True, capture_output=True)
        return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="of the smaller run")
    few = parser.parse_args().images
    many = 3 * few
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        make_vgg16(home / "vgg16")
        cli = [sys.executable, "-m", "vggdeploy"]
        run_process(
            [*cli, "export", home / "vgg16", "-o", home / "bundle", "--outputs", "fc7", "--formats", "onnx-fp32"]
        )
        make_images(home / "few", few)
        make_images(home / "many", many)
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        starts: dict[str, list[float]] = {name: [] for name in WAYS}
        for number in range(ROUNDS):
            for name, options in WAYS.items():
                short = seconds(home / "bundle", home / "few", home, options)
                long = seconds(home / "bundle", home / "many", home, options)
                rates[name].append((many - few) / (long - short))
                starts[name].append(short - few / rates[name][-1])
                print(f"round {number + 1}: {name}: {rates[name][-1]:.2f} images/s", flush=True)
    measured: dict[str, Any] = {}
    for name in WAYS:
        rate = float(np.median(rates[name]))
        measured[name] = {
            "images_per_s": rate,
            "rounds": rates[name],
            "start_s": float(np.median(starts[name])),
            "core_hours_for_a_billion": BILLION / rate * 2 / 3600,
        }
    plain = measured["one process, 2 threads"]["images_per_s"]
    targets = [
        target(f"{name}: time beside one process", plain / measured[name]["images_per_s"], 1.1, "×")
        for name in WAYS
        if name.startswith("Ray")
    ]
    print(json.dumps(measured, indent=1))
    return write_result("ray_embed", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
