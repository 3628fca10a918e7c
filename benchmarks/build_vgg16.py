"""From the checkpoint of a full VGG-16 to its FP16 engine: time and peak memory of each stage, beside a bare script.

    python benchmarks/build_vgg16.py [--runs 9]

The build is measured as whole processes, taking turns with `bare_build.py` on the same ONNX file: ours also checks the
hashes of what it reads, proves the precision, and writes a bundle that no power cut can tear.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, Process, run_process, target, write_result

from vggdeploy.bundle import Bundle
from vggdeploy.system.files import link_tree

BATCH = "1:8:256"
TARGETS = "sm80,sm86,sm89,sm120,sm121"  # what ampere,ada,blackwell means
PAUSE = 5.0  # s
BARE = ROOT / "benchmarks" / "bare_build.py"


def summary(runs: list[Process]) -> dict[str, float]:
    seconds = [run.seconds for run in runs]
    return {
        "min_s": min(seconds),
        "median_s": float(np.median(seconds)),
        "max_s": max(seconds),
        "runs": len(runs),
        "peak_bytes": max(run.peak_bytes for run in runs),
    }


def interleaved(bundle: Path, onnx: Path, home: Path, runs: int) -> dict[str, list[Process]]:
    """Ours, the bare script, ours from the cache, …: what slows the machine down slows all of them down.

    Each starts without an engine on the disk (a bundle of hard links), and after a pause: a virtual machine gives freed
    memory back to its host after a second or two, and getting it again costs up to half of a build. Without the pause,
    whoever touches memory first after the one before it finds it warm.
    """
    found: dict[str, list[Process]] = {"build": [], "bare": [], "cached": []}
    work = home / "work"
    cli = [sys.executable, "-m", "vggdeploy", "build", work / "bundle", "--batch", BATCH, "--target", TARGETS]
    commands = {
        "build": [*cli, "--no-cache"],
        "bare": [sys.executable, BARE, onnx, work / "bare.engine", TARGETS, BATCH],
        "cached": cli,
    }
    for run in range(runs + 1):
        for name, command in commands.items():
            shutil.rmtree(work, ignore_errors=True)
            link_tree(bundle, work / "bundle")
            time.sleep(PAUSE)
            process = run_process(command)
            if run:  # the first turn reads the libraries from the disk, and fills the cache
                found[name].append(process)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs: int = parser.parse_args().runs
    with tempfile.TemporaryDirectory(dir=ROOT / "artifacts") as directory:
        home = Path(directory)
        os.environ["VGGDEPLOY_CACHE"] = str(home / "cache")
        cli = [sys.executable, "-m", "vggdeploy"]
        print("checkpoint …", flush=True)
        # In a process of its own: Linux counts what the parent had at the fork as the child's peak.
        make = (
            f"from pathlib import Path; from main_job import make_vgg16; make_vgg16(Path({str(home / 'checkpoint')!r}))"
        )
        run_process([sys.executable, "-c", make], cwd=ROOT / "benchmarks")
        print("export …", flush=True)
        bundle = home / "bundle"
        export = run_process([*cli, "export", home / "checkpoint", "-o", bundle])
        opened = Bundle.open(bundle, only=())
        source = opened.manifest.variant("onnx-fp16")
        onnx = shutil.copyfile(opened.path(source.path), home / "fp16.onnx")
        print(f"build, {runs} runs beside the bare script …", flush=True)
        found = interleaved(bundle, onnx, home, runs)
        done = Bundle.open(home / "work" / "bundle")
        built = done.manifest.variant("tensorrt-rtx-fp16")
        size = done.size(built)
        verify = run_process([*cli, "verify", done.root, "--variant", "tensorrt-rtx-fp16"])
    ratios = [ours.seconds / bare.seconds for ours, bare in zip(found["build"], found["bare"], strict=True)]
    memory = max(p.peak_bytes for p in found["build"]) / max(p.peak_bytes for p in found["bare"])
    assert built.build is not None and built.proof is not None
    measured: dict[str, Any] = {
        "stages": {
            "export": {"seconds": export.seconds, "peak_bytes": export.peak_bytes},
            "build": summary(found["build"]),
            "build_from_cache": summary(found["cached"]),
            "verify": {"seconds": verify.seconds, "peak_bytes": verify.peak_bytes},
        },
        "checkpoint_to_engine_s": export.seconds + float(np.median([p.seconds for p in found["build"]])),
        "bare_script": summary(found["bare"]),
        "build_over_bare": {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)},
        "peak_over_bare": memory,
        "engine": {
            "bytes": size,
            "library": f"{built.build.library} {built.build.version}",
            "targets": built.build.targets,
            "batch": BATCH,
            "layers": built.proof.layers,
            "library_s": built.build.seconds,
        },
    }
    targets = [
        target(
            "vggdeploy build over the bare script, whole processes, median",
            measured["build_over_bare"]["median"],
            1.5,
            "×",
        ),
        target("its peak memory over the bare script's", memory, 1.2, "×"),
    ]
    return write_result("build_vgg16", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
