"""What the proof catches: faults of every kind, planted in FP32, FP16 and INT8 files, and how often an honest file is refused.

    python benchmarks/parity_power.py [--trials 1000] [--places 2]

Each fault is planted at the first and at a middle layer that it fits, and the file is judged as `verify` does by default, and
as `load` does on another machine. *Harmful* is a fault that changes more classes than the limit allows, answers wrongly or
not at all for some batch or image, or moves the outputs by more than three times the distance on record. An honest file is
judged again with other threads, other optimisations of the graph and other images than it was recorded with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import torch
from measuring import ROOT, target, write_result

sys.path.insert(0, str(ROOT / "tests"))  # the faults are the tests' own
from attacks.faults import FAULTS, Fault, places, planted
from attacks.network import known
from fixtures.coloured import coloured_bundle

from vggdeploy.bundle import REFERENCE, Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.model.vgg import fold_batch_norm
from vggdeploy.model.weights import load_model
from vggdeploy.optimize.steps.quantiser import CPU, calibrate, quantise
from vggdeploy.parity import Reference, check_golden, compare, reference_outputs
from vggdeploy.parity.batches import promised
from vggdeploy.parity.compare import prove_at_load
from vggdeploy.parity.criteria import criteria_of
from vggdeploy.parity.metrics import distance
from vggdeploy.preprocess import normalise
from vggdeploy.records import CEILINGS, ParityRecord
from vggdeploy.runtime import open_session
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Device, ImageSource, Precision, Verdict, silent
from vggdeploy.verify.examination import Examination
from vggdeploy.verify.prove import prove, with_parity
from vggdeploy.verify.samples import open_samples
from vggdeploy.verify.segments import Graph

NETWORKS = {
    "VGG-11-BN × 1/8": ("vgg11_bn", 0.125),
    "VGG-13 × 1/8": ("vgg13", 0.125),
    "VGG-16-BN × 1/16": ("vgg16_bn", 0.0625),
}
VARIANTS = ("onnx-fp32", "onnx-fp16", "onnx-int8")
RECORD = 3.0  # times the distance on record
EXAMINED = 2
SHARES = {Precision.FP32: 0.45, Precision.FP16: 0.45, Precision.INT8: 0.1}  # of the honest trials
JITTER = 0.1  # how much a trial's weights differ from the trained ones, as a share of each


@dataclass(frozen=True)
class Judged:
    """One planted fault: what became of it."""

    fault: str
    kind: str
    precision: str
    harmful: bool
    verify: bool
    undecided: bool  # `verify` neither fails nor passes it: too few images to tell whether too many classes changed
    load: bool
    by: tuple[str, ...]


@dataclass
class Network:
    """A trained network's bundle with its distances on record, and the reference's answers for its test images."""

    bundle: Bundle
    real: Reference
    facts: dict[str, Any]

    @classmethod
    def made(cls, root: Path, arch: str, width: float) -> Network:
        root.mkdir()
        bundle = coloured_bundle(root, arch, width, each=200)
        samples = open_samples(bundle.manifest.dataset, bundle.manifest, limit=None, data_dir=None)
        with open_session(bundle, bundle.manifest.variant(REFERENCE)) as session:
            real = reference_outputs(session, samples.images, data=samples.data, labels=samples.labels)
        pair = Reference(*_golden(bundle))
        records: list[ParityRecord] = []
        for name in VARIANTS:
            variant = msgspec.structs.replace(bundle.manifest.variant(name), distances=())
            records += prove(bundle, variant, [pair, real], None, silent)
        for record in records:
            if record.verdict is Verdict.FAIL:
                sys.exit(f"an honest file failed: {record.variant}: {'; '.join(record.reasons)}")
        return cls(Bundle(bundle.root, with_parity(bundle.manifest, records)), real, known(bundle))


def _golden(bundle: Bundle) -> tuple[Any, Any, str, Any, ImageSource]:
    inputs, outputs = bundle.golden()
    return inputs["image"], outputs, "golden pair", None, ImageSource.GOLDEN


def faults_of(network: Network, count: int) -> Iterator[tuple[Fault, str, Variant]]:
    spec = network.bundle.manifest.spec
    for name in VARIANTS:
        variant = network.bundle.manifest.variant(name)
        for fault in FAULTS.values():
            fits = fault.int8 if variant.precision is Precision.INT8 else fault.floats
            where = places(fault, spec) if fits else []
            for layer in where[:: max(1, len(where) // count)][:count]:
                yield fault, layer, variant


def judged(network: Network, fault: Fault, layer: str, variant: Variant, scratch: Path) -> Judged | None:
    """Plant, and judge as `verify` and as `load` do. None where the fault cannot stand there."""
    bundle = network.bundle
    try:
        model = onnx.load(bundle.path(variant.path))
        model = planted(model, bundle.manifest.spec, fault, layer, seed=len(layer), **network.facts)
    except LookupError:
        return None
    file = scratch / "planted.onnx"
    onnx.save(model, file)
    by: list[str] = []
    harmful = loaded = undecided = False
    try:
        with open_session(bundle, variant, file=HashedFile.of(file), threads=1) as session:
            golden = check_golden(
                session, bundle, variant, Device(), sizes=promised(variant.batch), stress=True, repeated=True
            )
            real = compare(session, network.real, bundle, variant, Device(), sizes=promised(variant.batch))
            loaded = prove_at_load(session, bundle, variant, Device()).verdict is Verdict.FAIL
        by += [text for text, found in (("answers", golden), ("data", real)) if found.verdict is Verdict.FAIL]
        undecided = Verdict.INCONCLUSIVE in (golden.verdict, real.verdict)
        harmful = _harmful(fault, golden, real, variant)
    except VggdeployError:
        by, harmful, loaded = ["does not run"], True, True
    net = load_model(bundle.path(bundle.manifest.reference().path))
    if culprit(bundle, variant.precision, model, net):
        by.append("layers")
    undecided = undecided and not by
    return Judged(fault.name, fault.kind, str(variant.precision), harmful, bool(by), undecided, loaded, tuple(by))


def _harmful(fault: Fault, golden: ParityRecord, real: ParityRecord, variant: Variant) -> bool:
    if not fault.always or fault.kind == "random" or not (golden.outputs and real.outputs):
        return True
    limit = CEILINGS[variant.precision].flip_rate
    far = [
        o.relative_l2 > max(RECORD * d.relative_l2, 1e-6)
        for record in (golden, real)
        for o in record.outputs
        for d in variant.distances
        if d.source == record.source
    ]
    flipped = real.flips is not None and real.flips.flips > limit * real.flips.samples
    return any(far) or flipped


def culprit(bundle: Bundle, precision: Precision, model: onnx.ModelProto, net: Any) -> str | None:
    """The layer that `verify` names in a file of the network ``net``."""
    images = bundle.golden()[0]["image"][:EXAMINED]
    with torch.inference_mode():
        examined = Examination(Graph(model), net.eval(), precision, images, method="", threads=1)
        examined.run(normalise(images, bundle.manifest.preprocess))
    return examined.verdict(certain=precision is Precision.INT8)[0]


# Honest files.


def honest(networks: list[Network], trials: int) -> dict[str, dict[str, int]]:
    """For each precision: trials, and how many were refused by the ceiling or by the record."""
    random = np.random.default_rng(0)
    told: dict[str, Counter[str]] = {}
    for precision, share in SHARES.items():
        count = told.setdefault(str(precision), Counter(trials=0, refused=0))
        for trial in range(round(trials * share)):
            network = networks[trial % len(networks)]
            count["trials"] += 1
            count["refused"] += refused(network, precision, random)
    return {name: dict(count) for name, count in told.items()}


def refused(network: Network, precision: Precision, random: np.random.Generator) -> bool:
    """A network near the trained one: recorded on the golden images, and judged on others under other settings.

    An INT8 file is calibrated on images that are neither, as an export calibrates on training images.
    """
    bundle = network.bundle
    net = fold_batch_norm(load_model(bundle.root / "checkpoint")).eval()
    state = net.state_dict()
    for value in state.values():
        value.mul_(torch.from_numpy(1 + JITTER * random.normal(size=tuple(value.shape)).astype(np.float32)))
    golden = bundle.golden()[0]["image"]
    rest = np.arange(len(golden), len(network.real.images))  # the golden images are the first ones
    drawn = network.real.images[:][random.choice(rest, 64, replace=False)]
    calibration, others = drawn[:32], drawn[32:]
    model = _with_weights(bundle, precision, {k: v.numpy() for k, v in state.items()}, calibration)
    recorded = distance(_reference(net, bundle, golden), _answers(model, golden, threads=1, basic=False))
    later = distance(
        _reference(net, bundle, others), _answers(model, others, threads=2, basic=bool(random.integers(2)))
    )
    variant = bundle.manifest.variant(f"onnx-{precision}")
    own = tuple(msgspec.structs.replace(d, relative_l2=recorded) for d in variant.distances)
    criteria = replace(criteria_of(bundle, variant), recorded=own)
    ceiling = criteria.thresholds.relative_l2
    if culprit(bundle, precision, model, net):
        return True
    return recorded > ceiling or later > min(ceiling, criteria.allowed(ImageSource.REAL)["logits"])


def _with_weights(bundle: Bundle, precision: Precision, state: dict[str, Any], calibration: Any) -> onnx.ModelProto:
    source = "onnx-fp16" if precision is Precision.FP16 else "onnx-fp32"
    model = onnx.load(bundle.path(bundle.manifest.variant(source).path))
    for tensor in model.graph.initializer:
        if tensor.name in state:
            kind = onnx.numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name].astype(kind), tensor.name))
    if precision is not Precision.INT8:
        return model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fp32.onnx")
        onnx.save(model, path)
        batches = [{"image": calibration}]
        ranges = calibrate(path, batches, method="min-max", percentile=100, scratch=Path(folder, "scratch"))
    return quantise(model, ranges, CPU)


def _reference(net: Any, bundle: Bundle, images: Any) -> Any:
    with torch.inference_mode():
        return net(torch.from_numpy(normalise(images, bundle.manifest.preprocess))).numpy()


def _answers(model: onnx.ModelProto, images: Any, *, threads: int, basic: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.x64quantprecision", "1")
    if basic:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000, help="honest files")
    parser.add_argument("--places", type=int, default=2, help="layers of each network that a fault is planted at")
    asked = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        networks = {name: Network.made(root / arch, arch, width) for name, (arch, width) in NETWORKS.items()}
        found = [
            one
            for network in networks.values()
            for fault, layer, variant in faults_of(network, asked.places)
            if (one := judged(network, fault, layer, variant, root)) is not None
        ]
        alarms = honest(list(networks.values()), asked.trials)
    harmful = [one for one in found if one.harmful]
    missed = [one for one in harmful if not one.verify and not one.undecided]
    rows = {
        f"{fault}, {precision}": _row([one for one in found if (one.fault, one.precision) == (fault, precision)])
        for fault, precision in dict.fromkeys((one.fault, one.precision) for one in found)
    }
    trials = sum(a["trials"] for a in alarms.values())
    refusals = sum(a["refused"] for a in alarms.values())
    measured = {
        "networks": list(NETWORKS),
        "kinds": len({one.fault for one in found}),
        "planted": len(found),
        "harmful": len(harmful),
        "harmful_caught_by_verify": sum(one.verify for one in harmful),
        "harmful_undecided": [f"{one.fault} ({one.precision})" for one in harmful if one.undecided],
        "harmful_caught_at_load": sum(one.load for one in harmful),
        "caught_by_verify": sum(one.verify for one in found),
        "caught_only_by_layers": sum(one.by == ("layers",) for one in found),
        "not_failed": dict(Counter(f"{one.fault} ({one.precision})" for one in found if not one.verify)),
        "honest": alarms,
        "seconds": round(time.monotonic() - start, 1),
        "faults": rows,
    }
    targets = [
        target("harmful faults that the default verify passes", len(missed), 0, ""),
        target("honest files that are refused", 100 * refusals / max(trials, 1), 0.5, "%"),
    ]
    return write_result("parity_power", measured, targets)


def _row(found: list[Judged]) -> dict[str, Any]:
    return {
        "planted": len(found),
        "harmful": sum(one.harmful for one in found),
        "verify": sum(one.verify for one in found),
        "undecided": sum(one.undecided for one in found),
        "load": sum(one.load for one in found),
        "by": dict(Counter(way for one in found for way in one.by)),
    }


if __name__ == "__main__":
    sys.exit(main())
