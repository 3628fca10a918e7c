"""INT8 on a CPU: our variants beside the quantisers of OpenVINO and ONNX Runtime as a user has them.

    python benchmarks/int8.py [--checkpoint DIR] [--rounds 11] [--steps 4]

Speed: a VGG-16 for 224 pixels with random weights, batch 1. Every loop has a process of its own and they take turns
(`turns.py`); all of them read the same ONNX graph's input, uint8 pixels. Accuracy: a checkpoint of Fashion-MNIST, trained
here if none is given; every recipe is calibrated on the same training images, and judged on all 10,000 test images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from measuring import run_process, target, write_result
from turns import ratio, take_turns

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.data.loaders import load_split
from vggdeploy.files import sha256_of
from vggdeploy.optional import import_silent, installed, version
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.spec import ModelSpec, PreprocessSpec

BASELINE = "onnxruntime FP32"
OURS = ("vggdeploy onnx-int8", "vggdeploy openvino-int8")
FILES = {
    OURS[0]: "ours.onnx",
    OURS[1]: "ours.onnx",
    "openvino + nncf": "nncf.xml",
    "onnxruntime quantize_static": "ort.onnx",
}
CALIBRATION = {"speed": 64, "accuracy": 300}  # what speed is does not depend on the ranges
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Job:
    """What every process needs, in plain values. ``home`` holds the bundle, the quantised files and images.npy."""

    home: str
    threads: int

    def path(self, name: str) -> Path:
        return Path(self.home, name)

    @property
    def fp32(self) -> Path:
        return self.path("bundle") / "variants" / "onnx-fp32" / "model.onnx"


def onnxruntime_run(path: Path, threads: int) -> Callable[[Array], Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(session.run(["logits"], {"image": batch})[0])


def openvino_run(path: Path, threads: int) -> Callable[[Array], Array]:
    ov = import_silent("openvino")
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda batch: np.array(request.infer({"image": batch}, share_inputs=True)["logits"])


def our_run(job: Job, name: str) -> Callable[[Array], Array]:
    """Our session of that file, opened as a bundle's would be."""
    from vggdeploy.bundle import Variant
    from vggdeploy.runtime import open_session
    from vggdeploy.types import Precision

    kind = "openvino" if "openvino" in name else "onnx"
    bundle, path = Bundle.open(job.path("bundle"), only=()), job.path(FILES[name])
    batch = bundle.manifest.variant("onnx-fp32").batch
    variant = Variant(name=f"{kind}-int8", format=kind, precision=Precision.INT8, path="ours", batch=batch)
    session = open_session(bundle, variant, threads=job.threads, file=(path, sha256_of(path)))
    session.__enter__()  # until the process ends
    return lambda images: session.run({"image": images})["logits"]


def run_of(name: str, job: Job) -> Callable[[Array], Array]:
    warnings.simplefilter("ignore")
    if name in OURS:
        return our_run(job, name)
    if name == BASELINE:
        return onnxruntime_run(job.fp32, job.threads)
    opened = openvino_run if name.startswith("openvino") else onnxruntime_run
    return opened(job.path(FILES[name]), job.threads)


def loop(name: str, job: Job) -> Iterator[Any]:
    images, run = np.load(job.path("images.npy")), run_of(name, job)
    run(images[:1])
    yield "open"
    for index in cycle(range(len(images))):
        run(images[index : index + 1])
        yield None


def quantise_all(job: Job, images: Array) -> None:
    """The FP32 file by every recipe: ours, NNCF's and ONNX Runtime's defaults for x86."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    from vggdeploy.optimize.int8 import CPU, calibrate, quantise

    batches = [{"image": images[at : at + 4]} for at in range(0, len(images), 4)]
    with tempfile.TemporaryDirectory(dir=job.home) as scratch:
        ranges = calibrate(job.fp32, iter(batches), method="min-max", percentile=99.99, scratch=Path(scratch))
    onnx.save(quantise(onnx.load(job.fp32), ranges, CPU), job.path("ours.onnx"))

    quant_pre_process(job.fp32, job.path("prepared.onnx"))
    quantize_static(
        job.path("prepared.onnx"),
        job.path("ort.onnx"),
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    ov, nncf = import_silent("openvino"), import_silent("nncf")
    single = [images[at : at + 1] for at in range(len(images))]
    found = nncf.quantize(ov.Core().read_model(job.fp32), nncf.Dataset(single), subset_size=len(single))
    ov.save_model(found, job.path("nncf.xml"))


class Reader:
    """Batches, as `quantize_static` asks for them."""

    def __init__(self, batches: list[dict[str, Array]]) -> None:
        self._rest = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rest, None)


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
    found = take_turns(loop, [BASELINE, *FILES], job, rounds=rounds, steps=steps)
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
    outputs = {}
    for name in (BASELINE, *FILES):
        run = run_of(name, job)
        outputs[name] = np.concatenate([run(test.images[at : at + 50]) for at in range(0, len(test), 50)])
    reference = outputs[BASELINE]
    right = reference.argmax(1) == test.labels
    rows: dict[str, Any] = {BASELINE: {"accuracy": float(right.mean())}}
    for name, file in FILES.items():
        classes = outputs[name].argmax(1)
        drop = paired_drop(right, classes == test.labels)
        rows[name] = {
            "accuracy": float((classes == test.labels).mean()),
            "drop_points": 100 * drop.drop,
            "drop_upper_points": 100 * drop.upper,
            "flips": int((classes != reference.argmax(1)).sum()),
            "relative_l2": float(np.linalg.norm(outputs[name] - reference) / np.linalg.norm(reference)),
            "bytes": job.path(file).stat().st_size + _bytes_beside(job.path(file)),
        }
    return {"data": f"{about.dataset} test ({len(test)} images)", "network": str(about.spec.arch), "rows": rows}


def _bytes_beside(path: Path) -> int:
    weights = path.with_suffix(".bin")
    return weights.stat().st_size if path.suffix == ".xml" else 0


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
    if not installed("nncf"):
        sys.exit("the peer needs NNCF: pip install nncf")
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
        r, judged = row["faster_than_onnxruntime"], right["rows"][name]
        print(f"{row['median_ms']:8.1f} ms  {r['median']:5.2f} ×  {100 * judged['accuracy']:.2f}%  {name}")
    best = min(row["median_ms"] for name, row in rows.items() if name not in OURS)
    ours = min(rows[name]["median_ms"] for name in OURS)
    worst = max(right["rows"][name]["drop_upper_points"] for name in OURS)
    measured = {
        "network": f"{options.arch} at {options.size} px, random weights",
        "threads": options.threads,
        "rows": rows,
        "accuracy": right,
        "peer_versions": {name: version(name) for name in ("onnxruntime", "openvino", "nncf")},
    }
    targets = [
        target("our fastest INT8 over the fastest peer's", ours / best, 1.02, "×"),
        target("upper bound of our accuracy drop", worst, 0.5, "points"),
    ]
    return write_result("int8", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
