"""The figures of the main job: start-up, torch-free prediction, memory of a full VGG-16 export, engine overhead."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import ROOT, repeat, run_process, target, write_result

import vggdeploy
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec

WEIGHTS_BYTES = 553_430_176  # VGG-16 in FP32: 4 × 138,357,544


def make_vgg16(path: Path) -> None:
    """A full VGG-16 with fresh weights: what it computes does not matter for time and memory."""
    from vggdeploy.model.vgg import new_vgg
    from vggdeploy.model.weights import save_checkpoint

    spec = ModelSpec.named("vgg16")
    labels = tuple(f"class {i}" for i in range(spec.classes))
    save_checkpoint(path, new_vgg(spec), Checkpoint(spec=spec, preprocess=PreprocessSpec(), labels=labels))


def overhead(bundle: Path, batch: int, calls: int) -> dict[str, float]:
    """`Engine.run` beside the raw ONNX Runtime call of its own session, interleaved call by call; microseconds."""
    random = np.random.default_rng(0)
    with vggdeploy.load(bundle, variant="onnx-fp32") as engine:
        spec = engine.bundle.manifest.input
        feeds = {spec.name: random.integers(0, 256, (batch, *spec.item_shape), dtype=np.uint8)}
        raw = engine._session._session._session  # the onnxruntime.InferenceSession at the bottom
        ours: list[int] = []
        theirs: list[int] = []
        for call in range(calls + 20):
            start = time.perf_counter_ns()
            engine.run(feeds)
            middle = time.perf_counter_ns()
            raw.run(["logits"], feeds)
            end = time.perf_counter_ns()
            if call >= 20:
                ours.append(middle - start)
                theirs.append(end - middle)
    differences = (np.asarray(ours) - np.asarray(theirs)) / 1e3
    return {
        "batch": batch,
        "calls": calls,
        "engine_p50_us": float(np.median(ours)) / 1e3,
        "raw_p50_us": float(np.median(theirs)) / 1e3,
        "overhead_median_us": float(np.median(differences)),
        "ratio": float(np.median(np.asarray(ours) / np.asarray(theirs))),
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        cli = [sys.executable, "-m", "vggdeploy"]
        print("demo …", flush=True)
        demo = run_process([*cli, "demo", "-o", home / "demo"])
        digits = home / "demo" / "bundle"
        image = next((home / "demo" / "images").iterdir())
        print("clean environment …", flush=True)
        run_process([sys.executable, "-m", "venv", home / "venv"])
        clean = home / "venv" / "bin" / "python"
        run_process([clean, "-m", "pip", "install", "-q", f"{ROOT}[cpu]"])
        print("start-up …", flush=True)
        entry = home / "venv" / "bin" / "vggdeploy"
        help_times = repeat([entry, "--help"], 15)
        predict = repeat([entry, "predict", digits, image], 15)
        print("VGG-16 …", flush=True)
        make_vgg16(home / "vgg16")
        export = run_process([*cli, "export", home / "vgg16", "-o", home / "vgg16-bundle"])
        print("overhead …", flush=True)
        tiny = overhead(digits, batch=1, calls=2000)
        full = overhead(home / "vgg16-bundle", batch=1, calls=60)
    measured = {
        "demo_s": demo.seconds,
        "help": help_times,
        "predict_torch_free": predict,
        "export_vgg16": {
            "seconds": export.seconds,
            "peak_bytes": export.peak_bytes,
            "weights_bytes": WEIGHTS_BYTES,
            "peak_over_weights": export.peak_bytes / WEIGHTS_BYTES,
        },
        "engine_overhead_digits": tiny,
        "engine_overhead_vgg16": full,
    }
    targets = [
        target("demo, whole process", demo.seconds, 120, "s"),
        target("vggdeploy --help, median of whole processes", help_times["median_s"], 0.3, "s"),
        target("torch-free predict, median of whole processes", predict["median_s"], 1.0, "s"),
        target("peak memory of export and parity of VGG-16", export.peak_bytes / WEIGHTS_BYTES, 3.5, "× its weights"),
        target("Engine.run over the raw call, tiny model", tiny["overhead_median_us"], 50, "µs"),
        target("Engine.run over the raw call, VGG-16", full["ratio"], 1.02, "×"),
    ]
    return write_result("main_job", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
