"""What `vggdeploy search --max-accuracy-drop 0.5` finds, beside the same network quantised by the recipes of others.

    python benchmarks/search.py [--arch vgg11] [--epochs 4] [--checkpoint DIR] [--budget 60m] [--found BUNDLE] [--rounds 11]

The network is the textbook's VGG-11 at full width (recipe ``classic``, Fashion-MNIST at 64 pixels), or another ``--arch``,
trained here if no checkpoint is given: most of an hour on two cores. ``--found`` takes the bundle of a search that ran
already. Every loop has a process of its own and they take turns (`turns.py`), a batch of one image; what the peers are is
in `quantised.py`. The search decided on the validation split; here everything is judged on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measuring import run_process, target, write_result
from quantised import (
    BASELINE,
    FILES,
    PEERS,
    VERSIONS,
    Job,
    Network,
    answers,
    bytes_of,
    judged,
    network,
    peers,
    quantise_by_peers,
    turns,
)
from turns import ratio, take_turns

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.loaders import load_split
from vggdeploy.records import SearchReport, from_json
from vggdeploy.search.report import REPORT_NAME
from vggdeploy.system.optional import version

OURS = "vggdeploy"
DROP = 0.5  # points
CALIBRATION = 300  # training images
CLI = (sys.executable, "-m", "vggdeploy")


def opened(name: str, job: Job, stack: ExitStack) -> Network:
    if name != OURS:
        return network(name, job)
    engine = stack.enter_context(vggdeploy.load(job.path("found"), threads=job.threads))
    return Network(lambda images: engine.run({"image": images})["logits"])


def loop(name: str, job: Job) -> Iterator[Any]:
    with ExitStack() as stack:
        yield from turns(opened(name, job, stack), np.load(job.path("images.npy")))


def trained(arch: str, epochs: int, home: Path) -> Path:
    checkpoint = home / "trained"
    size = ["--recipe", "classic", "--width", "1", "--image-size", "64"]
    run_process([*CLI, "train", "--arch", arch, *size, "--epochs", epochs, "-o", checkpoint])
    return checkpoint


def prepare(job: Job, checkpoint: Path) -> Any:
    """The original's bundle, images, and the peers' files; returns the test split."""
    run_process([*CLI, "export", checkpoint, "-o", job.bundle, "--formats", "onnx-fp32"])
    about = Bundle.open(job.bundle, only=()).manifest
    train = load_split(about.dataset, "train", about.preprocess, limit=CALIBRATION)
    test = load_split(about.dataset, "test", about.preprocess)
    np.save(job.path("calibration.npy"), train.images)
    np.save(job.path("images.npy"), test.images[:16])
    quantise_by_peers(job)
    return test


def sizes(job: Job, found: Bundle, chosen: str) -> dict[str, int | None]:
    """Bytes on disk of what each of them ships."""
    return {
        BASELINE: bytes_of(job.fp32),
        OURS: found.size(found.manifest.variant(chosen)),
        **{name: bytes_of(job.path(FILES[name])) if name in FILES else None for name in peers()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vgg11", help="of the network that is trained")
    parser.add_argument("--epochs", type=int, default=4, help="of its training")
    parser.add_argument("--checkpoint", type=Path, help="default: one is trained")
    parser.add_argument("--budget", default="60m", help="of the search")
    parser.add_argument("--found", type=Path, help="the bundle of a search that is over")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=100, help="calls of each loop in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if missing := sorted(set(PEERS) - set(peers())):
        print(f"not beside it, as it is not installed: {', '.join(missing)}", flush=True)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(directory, "inductor"))
        job = Job(directory, options.threads)
        checkpoint = options.checkpoint or trained(options.arch, options.epochs, Path(directory))
        place = options.found or job.path("search")
        if options.found is None:
            goal = ["--max-accuracy-drop", DROP, "--budget", options.budget]
            run_process([*CLI, "search", checkpoint, *goal, "-o", place])
        job.path("found").symlink_to(place.resolve())
        found = Bundle.open(place)
        report = from_json(found.path(REPORT_NAME).read_bytes(), SearchReport, what=REPORT_NAME)
        won = next(c for c in report.front if report.chose(c))
        print("quantising by the peers' recipes …", flush=True)
        test = prepare(job, checkpoint)
        names = [BASELINE, OURS, *peers()]
        times = take_turns(loop, names, job, rounds=options.rounds, steps=options.steps)
        print("accuracy on the test split …", flush=True)
        reference = answers(opened(BASELINE, job, stack), test.images)
        rows: dict[str, Any] = {BASELINE: {"accuracy": float((reference.argmax(1) == test.labels).mean())}}
        for name in names[1:]:
            rows[name] = judged(answers(opened(name, job, stack), test.images), reference, test.labels)
        on_disk = sizes(job, found, won.variant)
        weights = bytes_of(checkpoint / "model.safetensors")
        original = read_checkpoint(checkpoint, check_weights=False)
    for name, row in rows.items():
        row["median_ms"] = float(np.median(times[name])) * 1e3
        row["faster_than_onnxruntime"] = ratio(times[BASELINE], times[name])
        row["bytes"] = on_disk[name]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        r = row["faster_than_onnxruntime"]
        print(f"{row['median_ms']:8.2f} ms  {r['median']:6.2f} ×  {100 * row['accuracy']:.2f}%  {name}")
    fastest = min(peers(), key=lambda name: float(rows[name]["median_ms"]))
    best = max(rows[name]["accuracy"] for name in peers())
    measured = {
        "network": f"{original.spec.title}, {original.dataset}",
        "recipe": original.training["recipe"],
        "threads": options.threads,
        "rounds": options.rounds,
        "calls_a_round": options.steps,
        "checkpoint_bytes": weights,
        "search": {
            "command": report.command.replace(str(checkpoint), "CHECKPOINT").replace(str(place), "BUNDLE"),
            "trials": len(report.trials),
            "reason": report.reason,
            "winner": msgspec.to_builtins(won),
            "roofs": msgspec.to_builtins(report.roofs),
            "tools": report.tools,
        },
        "rows": rows,
        "not_installed": missing,
        "peer_versions": {name: version(name) for name in VERSIONS},
    }
    ours = rows[OURS]
    targets = [
        target(
            "the winner's time over plain ONNX Runtime's", 1 / ours["faster_than_onnxruntime"]["median"], 1 / 20, "×"
        ),
        target("the winner's bytes over the checkpoint's", ours["bytes"] / weights, 1 / 40, "×"),
        target("upper bound of its accuracy drop on the test split", ours["drop_upper_points"], DROP, "points"),
        target(
            f"its time over that of the fastest peer, {fastest}", ours["median_ms"] / rows[fastest]["median_ms"], 1, "×"
        ),
        target("accuracy of the most accurate peer above its own", 100 * (best - ours["accuracy"]), DROP, "points"),
    ]
    arch, epochs = original.spec.arch, original.training["recipe"]["epochs"]
    name = "search" if arch == "vgg11" else f"search_{arch}"
    return write_result(name, measured, targets, command=f"search.py --arch {arch} --epochs {epochs}")


if __name__ == "__main__":
    sys.exit(main())
