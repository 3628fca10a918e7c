"""Blame: of faults planted in one layer each, how many are named at their layer by what `verify --layers` does.

    python benchmarks/blame.py [--trials 100] [--seed 0]

Two small networks are trained on drawn images, exported in FP32 and FP16, and quantised for CPUs and for TensorRT. In each
precision faults of twelve kinds are planted in turn, at layers drawn at random (`tests/attacks/faults.py` has them); one that
changes no answer is drawn again. Files without a fault are examined, too, INT8 ones by two methods of calibration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from measuring import target, write_result

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the faults and the networks are the tests'
from attacks.trials import Subject, Trial
from fixtures.coloured import coloured_bundle, int8_model

from vggdeploy.bundle import Bundle
from vggdeploy.optimize.steps.quantiser import CPU, TENSORRT

NETWORKS = {"vgg11_bn, 32 px": ("vgg11_bn", 0.125, 32), "vgg13_bn, 64 px": ("vgg13_bn", 0.1875, 64)}
# Variants of each precision; they share its trials.
PRECISIONS = {"fp32": ["onnx-fp32"], "fp16": ["onnx-fp16"], "int8": ["onnx-int8", "onnx-int8-symmetric"]}
GOAL = 0.05  # of the faults of a precision may be missed


def honest(bundle: Bundle) -> list[tuple[str, str | None]]:
    """Every file without a fault, and the layer that is named for it all the same."""
    subjects = {name: Subject(bundle, name) for names in PRECISIONS.values() for name in names}
    found = [(name, subject.blamed(subject.graph)[0]) for name, subject in subjects.items()]
    for method in ("min-max", "percentile"):  # entropy breaks the larger network, and the layer that it cuts is named
        for name, flavour in (("onnx-int8", CPU), ("onnx-int8-symmetric", TENSORRT)):
            graph = int8_model(bundle, flavour, method=method)
            found.append((f"{name}, {method}", subjects[name].blamed(graph, method=method)[0]))
    return found


def planted(bundles: list[Bundle], variants: list[str], trials: int, seed: int) -> list[Trial]:
    """``trials`` faults, shared out among the networks and the variants."""
    places = [(bundle, variant) for bundle in bundles for variant in variants]
    found: list[Trial] = []
    for index, (bundle, variant) in enumerate(places):
        share = trials // len(places) + (index < trials % len(places))
        found += Subject(bundle, variant).trials(share, seed=seed + index)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="faults of each precision")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    measured: dict[str, Any] = {"networks": list(NETWORKS), "trials": {}, "honest": {}}
    with tempfile.TemporaryDirectory() as directory:
        bundles = []
        for number, (name, (arch, width, side)) in enumerate(NETWORKS.items()):
            print(f"{name}: training and exporting …", flush=True)
            bundles.append(coloured_bundle(Path(directory) / str(number), arch, width, side=side))
        files = [(network, *one) for network, b in zip(NETWORKS, bundles, strict=True) for one in honest(b)]
        wrong = [f"{network}, {name}: {layer}" for network, name, layer in files if layer is not None]
        measured["honest"] = {"files": len(files), "blamed": wrong}
        targets = [target("files without a fault, and a layer is named", len(wrong), 0, f"of {len(files)}")]
        for precision, variants in PRECISIONS.items():
            found = planted(bundles, variants, options.trials, options.seed)
            kinds: dict[str, Counter[str]] = defaultdict(Counter)
            for trial in found:
                kinds[trial.kind].update(planted=1, named=trial.right)
            missed = [t for t in found if not t.right]
            measured["trials"][precision] = {"planted": len(found), "kinds": kinds, "missed": missed}
            targets.append(
                target(f"{precision}: faults whose layer is not named", len(missed) / len(found), GOAL, "of all")
            )
            print(f"{precision}: {len(found) - len(missed)} of {len(found)}", flush=True)
    return write_result("blame", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
