"""What it costs that INT8 is right on CPUs without VNNI: ways to that, beside the file that saturates.

    python benchmarks/saturation.py BUNDLE [--images 1000] [--rounds 11]

BUNDLE has an onnx-fp32 and a data set that is here. Distance: of the logits from FP32 on test images, computed exactly by
ONNX Runtime, and as this CPU's fast kernels compute the same file. Time: all ways in turns, one thread. On a CPU with VNNI
no kernel saturates, and the distances show only what the rounding costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measuring import target, write_result
from quantised import Network, onnxruntime_run, openvino_run
from quantised import turns as single_images
from turns import ratio, take_turns

from vggdeploy.bundle import Bundle
from vggdeploy.data.loaders import load_split
from vggdeploy.optimize.steps import headroom, quantiser
from vggdeploy.optimize.steps.bias import corrected, shifts
from vggdeploy.parity.saturation import bound_of, int8_products
from vggdeploy.runtime.onnxruntime.providers import EXACT_INT8
from vggdeploy.system.machine import int8_saturates

WAYS: dict[str, tuple[float, ...] | None] = {
    "8 bits": None,
    "7 bits where needed": (2.0,),
    "fitted": tuple(map(float, headroom._FACTORS)),
}
EXACT = "8 bits, exact kernels of ONNX Runtime"
TIMED = ("fp32 onnxruntime", "fitted onnxruntime", EXACT, "fp32 openvino", "fitted openvino")


def exact_run(path: Path) -> Network:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry(*EXACT_INT8)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Network(lambda batch: np.asarray(session.run(["logits"], {"image": batch})[0]))


def opened(name: str, home: str) -> Network:
    if name == EXACT:
        return exact_run(Path(home, "8 bits.onnx"))
    way, _, library = name.rpartition(" ")
    return {"onnxruntime": onnxruntime_run, "openvino": openvino_run}[library](Path(home, f"{way}.onnx"), 1)


def loop(name: str, home: str) -> Iterator[Any]:
    return single_images(opened(name, home), np.load(Path(home, "images.npy")))


def quantise_all(source: Path, images: np.ndarray[Any, Any], home: Path) -> dict[str, int]:
    """A file for each way; returns how many channels of it can saturate."""
    batches = [{"image": images[at : at + 32]} for at in range(0, len(images), 32)]
    ranges = quantiser.calibrate(source, batches, method="min-max", percentile=99.99, scratch=home / "scratch")
    fit, found = quantiser.fit_pairs, {}
    for way, factors in WAYS.items():
        quantiser.fit_pairs = fit if factors else lambda model, exact: None
        headroom._FACTORS = np.float32(factors or (1,))
        shift = shifts(onnx.load(source), quantiser.quantise(onnx.load(source), ranges, quantiser.CPU), batches[:4])
        model = quantiser.quantise(corrected(onnx.load(source), shift), ranges, quantiser.CPU)
        onnx.save(model, home / f"{way}.onnx")
        found[way] = sum(bound_of(product).saturating for product in int8_products(model.graph, {}))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, only=())
    about, source = bundle.manifest, bundle.path(bundle.manifest.variant("onnx-fp32").path)
    train = load_split(about.dataset, "train", about.preprocess, limit=300)
    test = load_split(about.dataset, "test", about.preprocess, limit=options.images)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "fp32.onnx").write_bytes(source.read_bytes())
        saturating = quantise_all(source, train.images, home)
        np.save(home / "images.npy", test.images[:16])

        def logits(network: Network) -> np.ndarray[Any, Any]:
            return np.concatenate([network.run(test.images[at : at + 32]) for at in range(0, len(test), 32)])

        expected = logits(onnxruntime_run(source, 1))
        rows = {}
        for way in WAYS:
            path = home / f"{way}.onnx"
            answers = {
                "exact": exact_run(path),
                "onnxruntime": onnxruntime_run(path, 1),
                "openvino": openvino_run(path, 1),
            }
            away = {
                n: float(np.linalg.norm(logits(a) - expected) / np.linalg.norm(expected)) for n, a in answers.items()
            }
            rows[way] = {"channels_that_can_saturate": saturating[way], "relative_l2": away}
            print(f"{way:20} {saturating[way]:6} channels  " + "  ".join(f"{n} {d:.5f}" for n, d in away.items()))
        seconds = take_turns(loop, TIMED, directory, rounds=options.rounds, steps=options.steps)
    times = {}
    for name, found in seconds.items():
        baseline = seconds["fp32 openvino" if name.endswith("openvino") else "fp32 onnxruntime"]
        times[name] = {"median_ms": float(np.median(found)) * 1e3, "faster_than_fp32": ratio(baseline, found)}
        print(f"{times[name]['median_ms']:8.2f} ms  {times[name]['faster_than_fp32']['median']:5.2f} ×  {name}")
    fitted = rows["fitted"]["relative_l2"]
    measured = {
        "saturating_cpu": int8_saturates(),
        "data": f"{about.dataset} test ({len(test)} images)",
        "rows": rows,
        "times": times,
    }
    targets = [
        target(
            "fitted, as the fast kernels compute it, over exact", fitted["onnxruntime"] / fitted["exact"], 1.001, "×"
        ),
        target(
            "fitted over 7 bits where needed",
            fitted["exact"] / rows["7 bits where needed"]["relative_l2"]["exact"],
            1.0,
            "×",
        ),
    ]
    return write_result("saturation", measured, targets, command=f"saturation.py BUNDLE --images {options.images}")


if __name__ == "__main__":
    sys.exit(main())
