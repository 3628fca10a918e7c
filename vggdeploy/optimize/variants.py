"""Variants that are made of a bundle's ONNX, proven like those that were exported, and added in one step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vggdeploy.bundle import Bundle, Variant, update_bundle
from vggdeploy.errors import BundleError, counted
from vggdeploy.export.openvino import openvino_variant, read_back
from vggdeploy.model.formats.admission import check_variant
from vggdeploy.optimize.steps.calibration import Int8Options
from vggdeploy.optimize.tuning import Structure
from vggdeploy.parity import Reference, reference_outputs
from vggdeploy.parity.reference import golden_reference
from vggdeploy.runtime import open_session, runnable
from vggdeploy.types import Device, OnProgress, Precision, silent
from vggdeploy.verify.prove import Limits, prove, refuse_failures, with_parity
from vggdeploy.verify.samples import DEFAULT_SAMPLES, open_samples


@dataclass
class StepContext:
    """What the steps of one run share: the test images to prove on (``samples``, None for all), and what the reference
    says about them, which is found out once. ``structure`` is what the steps on a checkpoint need, ``int8`` that step."""

    samples: int | None = DEFAULT_SAMPLES
    data_dir: Path | None = None
    threads: int | None = None
    on_progress: OnProgress = silent
    structure: Structure = field(default_factory=Structure)
    int8: Int8Options = field(default_factory=Int8Options)
    _references: dict[str, list[Reference]] = field(default_factory=dict)

    def references(self, bundle: Bundle) -> list[Reference]:
        """The golden pair, and test images where the reference runs here and a data set is known."""
        manifest = bundle.manifest
        reference = manifest.reference()
        key = bundle.sha256(reference.path)
        if key not in self._references:
            references = [golden_reference(bundle)]
            if manifest.dataset and runnable(reference).runs:
                dtype = manifest.input.dtype
                chosen = open_samples(
                    manifest.dataset, manifest, limit=self.samples, data_dir=self.data_dir, dtype=dtype
                )
                self.on_progress(None, f"running the FP32 reference on {counted(len(chosen.images), 'image')}")
                with open_session(bundle, reference, threads=self.threads) as session:
                    references.append(reference_outputs(session, chosen.images, data=chosen.data, labels=chosen.labels))
            self._references[key] = references
        return self._references[key]


def add_openvino(bundle: Bundle, precision: Precision, work: StepContext) -> Bundle:
    """Add ``openvino-fp32`` or ``openvino-bf16``, which run the file of ``onnx-fp32``. Errors: see `add_variants`."""
    return add_variants(bundle, [openvino_variant(onnx_fp32(bundle), precision)], work)


def add_torch_tf32(bundle: Bundle, work: StepContext) -> Bundle:
    """Add ``torch-tf32``: the checkpoint itself, run by PyTorch on a GPU that rounds factors to TF32.

    It is proven on the GPU that is here; without one it is `Verdict.UNPROVEN`. Errors: see `add_variants`.
    """
    reference = bundle.manifest.reference()
    variant = Variant(
        name="torch-tf32", format=reference.format, precision=Precision.TF32, path=reference.path, batch=reference.batch
    )
    return add_variants(bundle, [variant], work, device=Device("cuda"))


def onnx_fp32(bundle: Bundle) -> Variant:
    """The ONNX variant in FP32.

    Raises:
        BundleError: there is none, or its file is not what vggdeploy writes.
    """
    for variant in bundle.manifest.variants:
        if variant.format == "onnx" and variant.precision is Precision.FP32:
            check_variant(bundle, variant)
            return variant
    raise BundleError(
        f"{bundle.root} has no onnx-fp32 to work from", "export it again: vggdeploy export CHECKPOINT -o BUNDLE --force"
    )


def add_variants(
    bundle: Bundle,
    variants: Sequence[Variant],
    work: StepContext,
    *,
    files: Mapping[str, Path] | None = None,
    limits: Limits | None = None,
    device: Device | None = None,
) -> Bundle:
    """Write the files of new variants, prove each of them from what was written, and put them into the bundle.

    Args:
        files: where each new file goes in the bundle, and where it lies now. Other variants of a file that is replaced go.
        limits: of the caller, in place of the manifest's.
        device: where they are proven; default each backend's own.

    Raises:
        IncompatibleError: a variant cannot run here, so it cannot be proven here.
        ParityError: one does not compute what was trained, or not in its precision. The bundle stays as it was.
    """
    references = work.references(bundle)
    with update_bundle(bundle) as draft:
        for relative, file in (files or {}).items():
            shutil.copyfile(file, draft.path(relative))
        kept = tuple(v for v in bundle.manifest.variants if v.path not in (files or {}))
        draft.manifest = msgspec.structs.replace(bundle.manifest, variants=kept).with_variants(*variants)
        drafted = draft.finish()
        draft.manifest = drafted.manifest.with_variants(*(read_back(drafted, variant) for variant in variants))
        drafted = draft.finish()
        proven = [drafted.manifest.variant(variant.name) for variant in variants]
        records = [
            r for v in proven for r in prove(drafted, v, references, work.threads, work.on_progress, limits, device)
        ]
        refuse_failures(records, "the bundle is as it was; look for the layer: vggdeploy verify BUNDLE --layers")
        draft.manifest = with_parity(drafted.manifest, records)
    return Bundle.open(bundle.root, only=())
