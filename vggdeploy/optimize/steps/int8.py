"""INT8 and FP8 variants of a bundle: calibrate once, quantise for CPUs and for TensorRT, keep in FP32 what loses too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vggdeploy.bundle import Bundle, QuantisationRecord, Variant
from vggdeploy.errors import TargetError, counted
from vggdeploy.export.openvino import openvino_variant
from vggdeploy.model.layers import layer_names
from vggdeploy.optimize.steps.calibration import (
    DEFAULT_PERCENTILE,
    NAMES,
    CalibrationData,
    Int8Options,
    load_calibration,
)
from vggdeploy.optimize.tuning import Hits, first_hits, hits_of
from vggdeploy.optimize.variants import StepContext, add_variants, onnx_fp32
from vggdeploy.parity import Reference, compare, reference_outputs
from vggdeploy.parity.bounds import accuracy_drop
from vggdeploy.parity.criteria import criteria_of
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.records import AccuracyDrop, ParityRecord
from vggdeploy.runtime import CheckedSession, open_session
from vggdeploy.system.files import scratch_directory
from vggdeploy.system.optional import installed, require, version
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Device, Precision, Verdict
from vggdeploy.verify.prove import Limits
from vggdeploy.verify.samples import Samples

_CALIBRATION_BYTES = 8 * 2**20  # of a batch's pixels: the calibrator holds every activation of it
_RANKED_IMAGES = 64
_SHIFT_IMAGES = 128
_BATCH = 64


def add_int8(bundle: Bundle, work: StepContext) -> Bundle:
    """Add ``onnx-int8`` and ``openvino-int8``, which share a file, and ``onnx-int8-symmetric``, which engines are built from.

    Raises: see `_add`.
    """
    return _add(bundle, work, work.int8.targets)


def add_fp8(bundle: Bundle, work: StepContext) -> Bundle:
    """Add ``onnx-fp8``, which engines are built from. ONNX Runtime runs it on CPUs, products in FP32. Errors: see `_add`."""
    return _add(bundle, work, ("fp8",))


def _add(bundle: Bundle, work: StepContext, targets: Sequence[str]) -> Bundle:
    """
    Raises:
        UsageError, DataError: data that cannot be calibrated on; see `load_calibration`.
        TargetError: the accuracy target is missed with all but one layer in FP32, or there are too few images to tell.
        ParityError: a variant that held on the validation images misses the test images. The bundle stays as it was.
        BuildError: the quantiser refuses the graph.
    """
    for module in ("onnx", "onnxruntime"):
        require(module, to="quantise to 8 bits", extra="optimize")
    from vggdeploy.optimize.steps.quantiser import calibrate, check_method

    options = work.int8
    check_method(options.method)
    source = onnx_fp32(bundle)
    data = load_calibration(options.data, bundle.manifest, images=options.images, data_dir=work.data_dir)
    with scratch_directory(bundle.root) as scratch, bundle.main_file(source).open() as file:
        path = file.path
        work.on_progress(None, f"measuring ranges on {data.ranges.data}")
        ranges = calibrate(
            path,
            _batches(bundle, data.ranges),
            method=options.method,
            percentile=options.percentile or DEFAULT_PERCENTILE,
            scratch=scratch,
        )
        work.on_progress(None, f"running FP32 on {data.judged.data}")
        with open_session(bundle, source, threads=work.threads) as session:
            reference = reference_outputs(session, data.judged.images, data=data.judged.data, labels=data.judged.labels)
        before = _trained_hits(bundle, options.data, len(data.judged.images))
        judge = _Judge(bundle, source, path, ranges, reference, scratch, work, before)
        made = [judge.variant(target, data) for target in targets]
        files = {variant.path: written for variant, written in made}
        variants = [variant for variant, _ in made]
        if "cpu" in targets and installed("openvino"):
            cpu = variants[targets.index("cpu")]
            on_openvino = openvino_variant(cpu, Precision.INT8)
            variants.append(msgspec.structs.replace(on_openvino, quantisation=cpu.quantisation))
        limits = Limits(accuracy_drop=options.max_drop)
        return add_variants(bundle, variants, work, files=files, limits=limits)


def _trained_hits(bundle: Bundle, dataset: str, count: int) -> Hits | None:
    """Which of the judged images the network had right before steps changed its structure; None where none did."""
    if bundle.manifest.origin is not None:  # a slim bundle
        return None
    name = dataset or bundle.manifest.dataset
    return first_hits(bundle.checkpoint().origin, name, "validation", count)


def _batches(bundle: Bundle, samples: Samples) -> Iterator[dict[str, Any]]:
    images, name = samples.images, bundle.manifest.input.name
    size = max(1, min(32, _CALIBRATION_BYTES // images[:1].nbytes // 16))
    return ({name: images[start : start + size]} for start in range(0, len(images), size))


@dataclass
class _Judge:
    """Quantises, and looks at what that costs on the validation images. ``before``: which of them the network had right that
    was trained, where steps have changed it since: the limit is for all that was lost."""

    bundle: Bundle
    source: Variant
    path: Path
    ranges: Any
    reference: Reference
    scratch: Path
    work: StepContext
    before: Hits | None = None
    _ranking: Sequence[str] = ()
    _shifts: Mapping[str, Any] = field(default_factory=dict)
    _lost: AccuracyDrop | None = None

    def variant(self, target: str, data: CalibrationData) -> tuple[Variant, Path]:
        """The variant for a target, and its file: as many layers in INT8 as the limits allow.

        Raises:
            TargetError: the limits are missed even with one layer quantised.
        """
        from vggdeploy.optimize.steps.quantiser import CPU, FP8, TENSORRT, weighted_nodes
        from vggdeploy.parity.saturation import read_saturation

        self._check_images()
        names = weighted_nodes(self.path)
        flavour = {"cpu": CPU, "tensorrt": TENSORRT, "fp8": FP8}[target]
        self._measure_shifts(flavour, data)
        kept: list[str] = []
        while True:
            self.work.on_progress(None, f"quantising for {target}{_left(kept)}")
            variant, file = self._quantised(NAMES[target], flavour, kept)
            record = self._compare(variant, file, self.reference)
            if self._holds(record) and self._keeps_what_was_trained(variant, file):
                break
            self._ranking = self._ranking or self._rank(list(names), flavour)
            if len(kept) >= len(names) - 1:
                raise self._missed(variant, record)
            kept.append(self._ranking[len(kept)])
        in_int8 = flavour.precision is Precision.INT8
        about = QuantisationRecord(
            library="onnxruntime",
            version=version("onnxruntime") or version("onnxruntime-gpu") or "",
            method=self.options.method,
            percentile=self._percentile,
            data=data.ranges.data,
            images=len(data.ranges.images),
            activations=("int8" if flavour.symmetric else "uint8") if in_int8 else "float8e4m3fn",
            kept=tuple(names[name] for name in kept),
            bias_corrected=True,
            saturation=read_saturation(file, layer_names(self.bundle.manifest.spec)) if in_int8 else None,
        )
        return msgspec.structs.replace(variant, quantisation=about), file

    @property
    def options(self) -> Int8Options:
        return self.work.int8

    @property
    def _percentile(self) -> float | None:
        return (self.options.percentile or DEFAULT_PERCENTILE) if self.options.method == "percentile" else None

    def _check_images(self) -> None:
        """A bound needs images: of 143 that all stay right, one in a hundred may still be lost."""
        limit, labels = self.options.max_drop, self.reference.labels
        if limit is None or labels is None:
            return
        least = accuracy_drop(0, 0, len(labels)).upper
        if least > limit:
            raise TargetError(
                f"{self.reference.data} cannot promise a drop of at most {100 * limit:g} points: without a single error the "
                f"bound is {100 * least:.2f}",
                f"allow more (--max-accuracy-drop {np.ceil(1000 * least) / 10:g}), or calibrate on a larger data set",
            )

    def _measure_shifts(self, flavour: Any, data: CalibrationData) -> None:
        import onnx

        from vggdeploy.optimize.steps.bias import shifts
        from vggdeploy.optimize.steps.quantiser import quantise

        self.work.on_progress(None, "measuring what rounding does to the means")
        quantised = quantise(onnx.load(self.path), self.ranges, flavour)
        few = replace(data.ranges, images=data.ranges.images[:_SHIFT_IMAGES])
        self._shifts = shifts(onnx.load(self.path), quantised, _batches(self.bundle, few))

    def _quantised(
        self, name: str, flavour: Any, kept: Sequence[str], only: Sequence[str] = ()
    ) -> tuple[Variant, Path]:
        import onnx

        from vggdeploy.optimize.steps.bias import corrected
        from vggdeploy.optimize.steps.quantiser import check, proof, quantise

        narrow = {n: s for n, s in self._shifts.items() if n not in kept and (not only or n in only)}
        model = corrected(onnx.load(self.path), narrow)
        model = quantise(model, self.ranges, flavour, keep=kept, only=only)
        found = proof(model)
        check(found, flavour.precision)
        file = self.scratch / f"{name}.onnx"
        file.unlink(missing_ok=True)
        onnx.save(model, file)
        variant = Variant(
            name=name,
            format="onnx",
            precision=flavour.precision,
            path=f"variants/{name}/model.onnx",
            batch=self.source.batch,
            proof=found,
        )
        return variant, file

    def _compare(self, variant: Variant, file: Path, reference: Reference) -> ParityRecord:
        criteria = criteria_of(self.bundle, variant)  # the accuracy is judged by `_holds`, at a single look
        with self._opened(variant, file) as session:
            return compare(session, reference, self.bundle, variant, Device(), criteria=criteria)

    def _holds(self, record: ParityRecord) -> bool:
        limit = self.options.max_drop
        promised = limit is None or record.drop is None or _single_look(record.drop).upper <= limit
        return record.verdict is not Verdict.FAIL and promised

    def _keeps_what_was_trained(self, variant: Variant, file: Path) -> bool:
        limit, images = self.options.max_drop, self.reference.images
        if limit is None or self.before is None:
            return True
        assert self.reference.labels is not None  # noqa: S101  # a data set's split has them
        places = [slice(start, start + _BATCH) for start in range(0, len(images), _BATCH)]
        with self._opened(variant, file) as session:
            right = hits_of(session, ((images[part], self.reference.labels[part]) for part in places))
        self._lost = paired_drop(self.before, right)
        return self._lost.upper <= limit

    def _opened(self, variant: Variant, file: Path) -> CheckedSession:
        return open_session(self.bundle, variant, threads=self.work.threads, file=HashedFile.of(file))

    def _rank(self, names: Sequence[str], flavour: Any) -> list[str]:
        """The layers by what quantising each of them alone does to the outputs, worst first."""
        few = replace(
            self.reference,
            images=self.reference.images[:_RANKED_IMAGES],
            outputs={name: array[:_RANKED_IMAGES] for name, array in self.reference.outputs.items()},
            labels=None,
        )
        errors = {}
        for index, name in enumerate(names):
            self.work.on_progress(None, f"sensitivity of layer {index + 1} of {len(names)}")
            record = self._compare(*self._quantised("alone", flavour, (), only=(name,)), few)
            errors[name] = max((o.relative_l2 for o in record.outputs), default=np.inf)
        return sorted(names, key=lambda name: -errors[name])

    def _missed(self, variant: Variant, record: ParityRecord) -> TargetError:
        bound = (
            f"accuracy may fall by {_single_look(record.drop).upper:.2%}" if record.drop else "no labels to judge by"
        )
        if self._holds(record) and self._lost:
            bound = f"against the network as it was trained, accuracy may fall by {self._lost.upper:.2%}"
        if record.verdict is Verdict.FAIL:
            bound = "; ".join(record.reasons)
        return TargetError(
            f"{variant.name} misses its limits with one layer in {variant.precision.upper()}: {bound}",
            "allow more (--max-accuracy-drop), try --calibration-method percentile, or fine-tune for it: --step qat,int8",
        )


def _single_look(drop: AccuracyDrop) -> AccuracyDrop:
    """The same counts with the tighter bounds for a number of images that is not raised afterwards: the whole split."""
    return accuracy_drop(drop.lost, drop.won, drop.samples)


def _left(kept: Sequence[str]) -> str:
    return f", {counted(len(kept), 'layer')} in FP32" if kept else ""
