"""60,000 images embedded on Ray, killed again and again on the way: every row once, as one process has it, in constant memory.

    python benchmarks/embed_killed.py [--images 60000] [--kills 5]

The images are Fashion-MNIST's, as PNG files (Debian's package dataset-fashion-mnist). The whole job is killed (SIGKILL) when
it has written so many files more, and once in each of its lives one of its workers is; then it is started again. One process
embeds a quarter of the images, and all of them, and its peak of memory is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measuring import ROOT, target, write_result
from PIL import Image

from vggdeploy.bench.interference import peak_rss

sys.path.insert(0, str(ROOT / "tests"))
from attacks.processes import called, descendants  # of the tests

SHARD = 512


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=60_000)
    options.add_argument("--kills", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vggdeploy-embed-") as name:
        home = Path(name)
        bundle, images = make_bundle(home), make_images(home / "images", asked.images)
        few, whole = home / "few.parquet", home / "whole.parquet"
        peaks = [run_alone(bundle, sorted(images.iterdir())[:15], few), run_alone(bundle, [images], whole)]
        lives, killed = run_killed(bundle, images, home / "ray", asked.kills)
        counted = compare(home / "ray", whole)
    growth = 100 * (peaks[1] / peaks[0] - 1)
    measured = {
        "images": asked.images, "shard": SHARD, "jobs_killed": asked.kills, "workers_killed": killed, "lives": lives,
        "peak_mib_of_a_quarter": peaks[0] / 2**20, "peak_mib": peaks[1] / 2**20, **counted,
    }  # fmt: skip
    wrong = counted["missing"] + counted["twice"] + counted["other_values"] + counted["unknown"]
    return write_result(
        "embed_killed",
        measured,
        [
            target("rows that are missing, there twice, or of other values", wrong, 0, ""),
            target("growth of one process's memory from a quarter of the images to all", growth, 5, "%"),
        ],
    )


def make_bundle(home: Path) -> Path:
    from vggdeploy.export.bundle import ExportOptions, export_bundle
    from vggdeploy.train.loop import train
    from vggdeploy.train.recipe import Recipe

    recipe = Recipe(arch="vgg11_bn", width=0.125, hidden=128, dropout=0.0, dataset="digits", epochs=1)
    train(recipe, output=home / "checkpoint")
    export_bundle(home / "checkpoint", home / "bundle", ExportOptions(samples=100, outputs=("logits", "fc7")))
    return home / "bundle"


def make_images(root: Path, count: int) -> Path:
    """PNG files in sixty directories."""
    from vggdeploy.data.loaders import load_split
    from vggdeploy.spec import PreprocessSpec

    grey = PreprocessSpec(mode="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
    images = load_split("fashion-mnist", "train", grey).images
    for index in range(count):
        path = root / str(index * 60 // max(count, 1)).zfill(2) / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index % len(images), ..., 0]).save(path)
    return root


def command(bundle: Path, sources: list[Path], output: Path, *more: object) -> list[str]:
    parts = [sys.executable, "-m", "vggdeploy", "embed", bundle, *sources, "-o", output, "--output", "fc7", *more]
    return [*map(str, parts), "--variant", "onnx-fp32", "--json"]


def run_alone(bundle: Path, sources: list[Path], output: Path) -> int:
    """Bytes of its peak of resident memory."""
    process = subprocess.Popen(command(bundle, sources, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_rss(pid=process.pid) or 0)
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"embed failed with {process.returncode}")
    return peak


def run_killed(bundle: Path, images: Path, output: Path, kills: int) -> tuple[list[dict[str, Any]], int]:
    """What each start of the job found done and added; and how many workers were killed."""
    chance, lives, killed = random.Random(1), [], 0  # noqa: S311  # moments, no secrets
    asked = command(bundle, [images], output, "--ray", "local", "--shard", SHARD)
    total = -(-sum(1 for _ in images.glob("*/*")) // SHARD)
    for life in range(kills + 1):
        before = parts(output)
        stop = before + max(1, (total - before) // (kills + 2 - life) + chance.randint(-1, 1)) if life < kills else None
        process = subprocess.Popen(
            asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        said: list[tuple[str, str]] = []
        reader = threading.Thread(target=lambda p=process, s=said: s.append(p.communicate()))
        reader.start()
        shot = False
        while process.poll() is None and (stop is None or parts(output) < stop):
            if not shot and parts(output) > before and (workers := called(b"ray::MapWorker", process.pid)):
                os.kill(workers[0], signal.SIGKILL)
                shot, killed = True, killed + 1
            time.sleep(chance.uniform(0.005, 0.05))
        for pid in [process.pid, *descendants(process.pid)] if stop is not None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reader.join()
        lives.append({"found": before, "added": parts(output) - before, "killed": stop is not None})
        print(lives[-1], flush=True)
        if stop is None and process.returncode:
            sys.exit(f"the job failed with {process.returncode}: {said[0][1][-2000:]}")
        if stop is None:
            report = json.loads(said[0][0])
            lives[-1]["found_done"] = report["found_done"]
    return lives, killed


def parts(output: Path) -> int:
    return sum(1 for _ in output.glob("part-*.parquet"))


def compare(directory: Path, whole: Path) -> dict[str, int]:
    """The rows of all part files beside those of one process that nobody killed."""
    expected = {row["path"]: np.asarray(row["vector"], np.float32) for row in rows(whole)}
    seen: Counter[str] = Counter()
    other = 0
    for part in sorted(directory.glob("part-*.parquet")):
        for row in rows(part):
            seen[row["path"]] += 1
            known = expected.get(row["path"])
            other += known is not None and not np.allclose(np.asarray(row["vector"], np.float32), known, atol=1e-4)
    left = [p for p in directory.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]
    return {
        "rows": seen.total(),
        "missing": len(expected.keys() - seen.keys()),
        "unknown": len(seen.keys() - expected.keys()),
        "twice": sum(n > 1 for n in seen.values()),
        "other_values": other,
        "leftovers": len(left),
    }


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


if __name__ == "__main__":
    sys.exit(main())
