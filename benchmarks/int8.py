"""INT8 on a CPU: our variants beside the recipes of OpenVINO, ONNX Runtime, Olive and PyTorch as a user has them.

    python benchmarks/int8.py [--checkpoint DIR] [--rounds 11] [--steps 4]

Speed: a VGG-16 for 224 pixels with random weights, batch 1. Every loop has a process of its own and they take turns
(`turns.py`); what they are is in `quantised.py`. Accuracy: a checkpoint of Fashion-MNIST, trained here if none is given;
every recipe is calibrated on the same training images, and judged on all 10,000 test images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    quantise_by_peers,
)
from quantised import peers as installed_peers
from quantised import turns as single_images
from turns import ratio, take_turns

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.data.loaders import load_split
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.optional import version
from vggdeploy.system.sealed import HashedFile

OURS = ("vggdeploy onnx-int8", "vggdeploy openvino-int8")
OUR_FILE = "ours.onnx"
CALIBRATION = {"speed": 64, "accuracy": 300}  # what speed is does not depend on the ranges


def our_network(job: Job, name: str) -> Network:
    """Our session of our file, opened as a bundle's would be."""
    from vggdeploy.bundle import QuantisationRecord, Variant
    from vggdeploy.parity.saturation import read_saturation
    from vggdeploy.runtime import open_session
    from vggdeploy.types import Precision

    kind = "openvino" if "openvino" in name else "onnx"
    bundle, path = Bundle.open(job.bundle, only=()), job.path(OUR_FILE)
    batch = bundle.manifest.variant("onnx-fp32").batch
    about = QuantisationRecord(
        library="onnxruntime", version="", method="min-max", data="", images=0, activations="uint8",
        saturation=read_saturation(path, {}),
    )  # fmt: skip
    variant = Variant(
        name=f"{kind}-int8", format=kind, precision=Precision.INT8, path="ours", batch=batch, quantisation=about
    )
    session = open_session(bundle, variant, threads=job.threads, file=HashedFile.of(path))
    session.__enter__()  # until the process ends
    return Network(lambda images: session.run({"image": images})["logits"])


def opened(name: str, job: Job) -> Network:
    return our_network(job, name) if name in OURS else network(name, job)


def loop(name: str, job: Job) -> Iterator[Any]:
    return single_images(opened(name, job), np.load(job.path("images.npy")))


def quantise_all(job: Job, images: np.ndarray[Any, Any]) -> None:
    """The FP32 file by every recipe, ours too."""
    import onnx

    from vggdeploy.optimize.steps.quantiser import CPU, calibrate, quantise

    np.save(job.path("calibration.npy"), images)
    batches = ({"image": images[at : at + 4]} for at in range(0, len(images), 4))
    with tempfile.TemporaryDirectory(dir=job.home) as scratch:
        ranges = calibrate(job.fp32, batches, method="min-max", percentile=99.99, scratch=Path(scratch))
    onnx.save(quantise(onnx.load(job.fp32), ranges, CPU), job.path(OUR_FILE))
    quantise_by_peers(job)


def export(job: Job, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "vggdeploy", "export", checkpoint, "-o", job.path("bundle")]
    run_process([*command, "--formats", "onnx-fp32", "--samples", "64"])


def speed(job: Job, *, arch: str, size: int, rounds: int, steps: int) -> dict[str, Any]:
    from vggdeploy.model.vgg import new_vgg
    from vggdeploy.model.weights import save_checkpoint

    spec = ModelSpec.named(arch, image_size=size)
    labels = tuple(f"class {i}" for i in range(spec.classes))
    preprocess = PreprocessSpec(resize=size * 8 // 7, crop=size)
    save_checkpoint(job.path("random"), new_vgg(spec), Checkpoint(spec=spec, preprocess=preprocess, labels=labels))
    export(job, job.path("random"))
    images = np.random.default_rng(0).integers(0, 256, (CALIBRATION["speed"], size, size, 3), np.uint8)
    np.save(job.path("images.npy"), images[:16])
    print("quantising …", flush=True)
    quantise_all(job, images)
    found = take_turns(loop, [BASELINE, *OURS, *installed_peers()], job, rounds=rounds, steps=steps)
    return {
        name: {"median_ms": float(np.median(times)) * 1e3, "faster_than_onnxruntime": ratio(found[BASELINE], times)}
        for name, times in found.items()
    }


def accuracy(job: Job, checkpoint: Path) -> dict[str, Any]:
    export(job, checkpoint)
    about = Bundle.open(job.path("bundle"), only=()).manifest
    train = load_split(about.dataset, "train", about.preprocess, limit=CALIBRATION["accuracy"])
    test = load_split(about.dataset, "test", about.preprocess)
    quantise_all(job, train.images)
    reference = answers(opened(BASELINE, job), test.images)
    rows: dict[str, Any] = {BASELINE: {"accuracy": float((reference.argmax(1) == test.labels).mean())}}
    for name in (*OURS, *installed_peers()):
        file = OUR_FILE if name in OURS else FILES.get(name)
        rows[name] = judged(answers(opened(name, job), test.images), reference, test.labels)
        rows[name]["bytes"] = bytes_of(job.path(file)) if file else None
    return {"data": f"{about.dataset} test ({len(test)} images)", "network": str(about.spec.arch), "rows": rows}


def trained(home: Path) -> Path:
    """A quarter-width VGG-11 with batch norm at 64 pixels: some minutes on two cores."""
    checkpoint = home / "trained"
    command = [sys.executable, "-m", "vggdeploy", "train", "--dataset", "fashion-mnist", "--arch", "vgg11_bn"]
    run_process([*command, "--width", "0.25", "--image-size", "64", "--epochs", "3", "-o", checkpoint])
    return checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="of a data set that is here; default: one is trained")
    parser.add_argument("--arch", default="vgg16", help="of the speed part")
    parser.add_argument("--size", type=int, default=224, help="pixels, of the speed part")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=4, help="calls of each loop in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if missing := sorted(set(PEERS) - set(installed_peers())):
        print(f"not beside it, as it is not installed: {', '.join(missing)}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        homes = {name: Path(directory, name) for name in ("speed", "accuracy")}
        for home in homes.values():
            home.mkdir()
        rows = speed(
            Job(str(homes["speed"]), options.threads),
            arch=options.arch, size=options.size, rounds=options.rounds, steps=options.steps,
        )  # fmt: skip
        print("accuracy …", flush=True)
        job = Job(str(homes["accuracy"]), options.threads)
        right = accuracy(job, options.checkpoint or trained(homes["accuracy"]))
    for name, row in rows.items():
        r, accurate = row["faster_than_onnxruntime"], right["rows"][name]["accuracy"]
        print(f"{row['median_ms']:8.1f} ms  {r['median']:5.2f} ×  {100 * accurate:.2f}%  {name}")
    best = min(row["median_ms"] for name, row in rows.items() if name not in OURS)
    ours = min(rows[name]["median_ms"] for name in OURS)
    worst = max(right["rows"][name]["drop_upper_points"] for name in OURS)
    measured = {
        "network": f"{options.arch} at {options.size} px, random weights",
        "threads": options.threads,
        "rows": rows,
        "accuracy": right,
        "not_installed": missing,
        "peer_versions": {name: version(name) for name in VERSIONS},
    }
    targets = [
        target("our fastest INT8 over the fastest peer's", ours / best, 1.02, "×"),
        target("upper bound of our accuracy drop", worst, 0.5, "points"),
    ]
    return write_result("int8", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
