"""How long an architecture takes on this machine: measured by our own bench, kept, and predicted for the next one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.rounds import Plan, measure
from vggdeploy.bundle import REFERENCE, Bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, read_checkpoint
from vggdeploy.errors import BundleError, VggdeployError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.fit.family import activations_of
from vggdeploy.optimize.optimize import BUNDLE_STEPS
from vggdeploy.optimize.steps.calibration import Int8Options
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.optimize.variants import StepContext
from vggdeploy.records import from_json, to_json
from vggdeploy.records.fit import MeasuredLatency
from vggdeploy.runtime import backend_for, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.search.trial import fastest
from vggdeploy.spec import ModelSpec
from vggdeploy.system.cache import Cache, cache_home, key_of
from vggdeploy.system.files import link_tree
from vggdeploy.system.machine import fingerprint, usable_cores
from vggdeploy.types import OnProgress
from vggdeploy.verify.prove import tool_versions

STEPS = ("openvino-fp32", "openvino-bf16", "int8")
_LIMIT_BYTES = 8 * 2**20
_ENTRY_BYTES = 2**16
_SECONDS, _ROUNDS = 0.3, 3  # of each variant: enough to rank architectures; what ships is measured longer
_SAMPLES = 16
# Before anything was measured: milliseconds of a call, of a million multiply-accumulates and of a million activations.
_PRIOR = (0.02, 0.02, 0.2)
_TRUST = 0.05  # of the prior beside one measured architecture


@dataclass
class LatencyTable:
    """The architectures that were measured, and a rule for the others: a call, multiply-accumulates and activations each
    cost time. The rule is fitted to relative errors by least squares; no cost is below 0. ``took`` are the seconds of the last
    measurement, with the export and the proofs before it."""

    threads: int | None = None
    took: float = 0.0
    _rows: list[tuple[tuple[float, float, float], float]] = field(default_factory=list)

    def add(self, spec: ModelSpec, measured: MeasuredLatency) -> None:
        self._rows.append((_features(spec), measured.ms))

    def predict(self, spec: ModelSpec) -> float:
        """Milliseconds of one image."""
        return float(np.dot(_features(spec), self._costs()))

    def _costs(self) -> tuple[float, float, float]:
        prior = [((1.0, 0.0, 0.0), _PRIOR[0]), ((0.0, 1.0, 0.0), _PRIOR[1]), ((0.0, 0.0, 1.0), _PRIOR[2])]
        weighted = [(features, ms, _TRUST) for features, ms in prior] + [(f, ms, 1.0) for f, ms in self._rows]
        wanted = np.array([weight for *_, weight in weighted])
        matrix = np.array([weight * np.array(features) / ms for features, ms, weight in weighted])
        kept = [0, 1, 2]
        while True:
            found, *_ = np.linalg.lstsq(matrix[:, kept], wanted, rcond=None)
            if (found > 0).all() or len(kept) == 1:
                break
            kept.pop(int(found.argmin()))
        costs = [0.0, 0.0, 0.0]
        for place, value in zip(kept, found, strict=True):
            costs[place] = max(float(value), 0.0)
        return costs[0], costs[1], costs[2]

    def measure(
        self, checkpoint: Path, dataset: str, data_dir: Path | None, on_progress: OnProgress
    ) -> MeasuredLatency:
        """The fastest variant of a checkpoint's architecture; one that was measured on this machine before is not again.

        The files that are measured are proven on synthetic images: no test image is looked at, and no label.
        """
        spec = read_checkpoint(checkpoint, check_weights=False).spec
        cache = Cache(cache_home() / "fit", limit=_LIMIT_BYTES, suffix=".json")
        about = [fingerprint(), tool_versions(), self.threads, msgspec.to_builtins(spec), list(STEPS)]
        key = key_of(about)
        known = _known(cache.read(key, limit=_ENTRY_BYTES))
        if known is None:
            started = time.monotonic()
            known = _measured(checkpoint, dataset, data_dir, self.threads, on_progress)
            self.took = time.monotonic() - started
            cache.write(key, to_json(known))
        self.add(spec, known)
        return known


def _features(spec: ModelSpec) -> tuple[float, float, float]:
    return 1.0, macs_of(spec) / 1e6, activations_of(spec) / 1e6


def _known(data: bytes | None) -> MeasuredLatency | None:
    if data is None:
        return None
    try:
        return from_json(data, MeasuredLatency, what="a measured latency")
    except BundleError:  # of another version
        return None


def _measured(
    checkpoint: Path, dataset: str, data_dir: Path | None, threads: int | None, on_progress: OnProgress
) -> MeasuredLatency:
    with tempfile.TemporaryDirectory(
        prefix="latency-", dir=checkpoint.parent
    ) as scratch:  # the state's, if it is killed
        blind = Path(scratch) / "checkpoint"
        blind.mkdir()
        record = msgspec.structs.replace(read_checkpoint(checkpoint), dataset="", training={})
        (blind / CHECKPOINT_NAME).write_bytes(to_json(record))
        link_tree(checkpoint, blind, skip=frozenset({CHECKPOINT_NAME, "history.jsonl"}))
        assert (blind / WEIGHTS_NAME).is_file()  # noqa: S101  # what `read_checkpoint` has read
        work = StepContext(
            samples=_SAMPLES,
            data_dir=data_dir,
            threads=threads,
            on_progress=on_progress,
            int8=Int8Options(data=dataset, images=64, targets=("cpu",)),
        )
        options = ExportOptions(formats=("onnx-fp32",), samples=_SAMPLES, threads=threads)
        bundle = export_bundle(blind, Path(scratch) / "bundle", options, on_progress=on_progress)
        bundle, _ = with_steps(bundle, work)
        inputs, _ = bundle.golden()
        entries, counts = entries_of(bundle, (threads or usable_cores(),))
        done = measure(
            entries,
            inputs[bundle.manifest.input.name],
            Plan((1,), _SECONDS, _ROUNDS, threads, processes=1),
            on_progress=on_progress,
        )
        best = fastest((variant, count, row) for (variant, count), row in zip(counts, done.rows, strict=True))
        name, speed = min(best.items(), key=lambda item: item[1].latency_ms)
    return MeasuredLatency(variant=name, threads=speed.threads, ms=speed.latency_ms)


def with_steps(bundle: Bundle, work: StepContext) -> tuple[Bundle, list[str]]:
    """The bundle with every variant for CPUs that can be made and proven here, and why others are left out."""
    left = []
    for name in STEPS:
        try:
            bundle = BUNDLE_STEPS[name](bundle, work)
        except (
            VggdeployError
        ) as error:  # this CPU has no BF16, OpenVINO is not installed, the proof fails: others remain
            left.append(f"{name} is left out: {error.cause}")
    return bundle, left


def entries_of(bundle: Bundle, counts: Sequence[int], only: str = "") -> tuple[list[Entry], list[tuple[str, int]]]:
    """What is measured of a bundle: each variant that runs here, or the one that is named, with each of these numbers of
    threads. Beside it the variant and the threads of each entry."""
    entries, found = [], []
    for variant in bundle.manifest.variants:
        if variant.name == REFERENCE or not runnable(variant).runs or (only and variant.name != only):
            continue
        for count in counts:
            name = f"{variant.name} {count}"
            entries.append(Entry(bundle, variant, default_device(backend_for(variant)), name, count))
            found.append((variant.name, count))
    return entries, found
