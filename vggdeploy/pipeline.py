"""The whole way: checkpoint → exported variants → parity → bundle; and the same proof again, later, anywhere."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vggdeploy.bundle import MANIFEST_NAME, REFERENCE, Bundle, GoldenFiles, Manifest, Variant, create_bundle, update_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.bundle.store import Draft, now
from vggdeploy.errors import DataError, MissingDependencyError, ParityError, UsageError, unknown_name
from vggdeploy.files import check_replaceable
from vggdeploy.optional import version
from vggdeploy.parity import Reference, check_golden, compare, reference_outputs
from vggdeploy.parity.compare import unproven
from vggdeploy.parity.synthetic import synthetic_images
from vggdeploy.records import ParityRecord, ParityReport
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.types import BatchRange, Precision, Verdict

FORMATS = ("onnx-fp32", "onnx-fp16", "torchscript-fp32")
GOLDEN_IMAGES = 32
GOLDEN_BYTES = 4 * 2**20
DEFAULT_SAMPLES = 1000
_TOOLS = ("vggdeploy", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "safetensors")

Stage = Callable[[str], None]


def tool_versions() -> dict[str, str]:
    """The versions of all that takes part, for the records."""
    found = {name: version(name) for name in _TOOLS}
    return {name: text for name, text in found.items() if text}


@dataclass(frozen=True)
class Samples:
    """Images to prove on: ``uint8 [N, H, W, C]``, labels where known, and how a record names them."""

    images: Any
    labels: Any
    data: str


def load_samples(
    dataset: str, bundle_or_checkpoint: Manifest | Checkpoint, *, limit: int | None, data_dir: Path | None
) -> Samples:
    """Test images of a data set, prepared as the model's preprocessing says.

    Raises:
        DataError: no data set is known for this model, or it cannot be found.
        UsageError: its classes are not the model's.
    """
    from vggdeploy.data.loaders import load_split

    if not dataset:
        raise DataError("no data set is known for this model", "name one: --data digits")
    found = load_split(dataset, "test", bundle_or_checkpoint.preprocess, data_dir=data_dir, limit=limit)
    if len(found.classes) != bundle_or_checkpoint.spec.classes:
        raise UsageError(
            f"{dataset} has {len(found.classes)} classes, the model {bundle_or_checkpoint.spec.classes}",
            "name the data set that the model was trained on: --data",
        )
    return Samples(found.images, found.labels, f"{found.name} test ({len(found)} images)")


def export_bundle(
    checkpoint_path: str | os.PathLike[str],
    output: Path,
    *,
    formats: Sequence[str] = FORMATS,
    outputs: Sequence[str] = ("logits",),
    input_dtype: str = "uint8",
    batch: BatchRange | None = None,
    samples: int | None = DEFAULT_SAMPLES,
    data_dir: Path | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    on_stage: Stage = lambda text: None,
) -> Bundle:
    """Export a checkpoint, prove every variant from its written bytes, and write the bundle, in one step.

    Args:
        formats: of `FORMATS`.
        outputs: names of graph outputs, see `vggdeploy.model.outputs`.
        input_dtype: ``"uint8"`` (pixels, preprocessing inside) or ``"float32"`` (normalised on the host).
        samples: test images to prove on; None for all.

    Raises:
        ParityError: a variant does not compute what was trained; nothing is written.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    if input_dtype not in ("uint8", "float32"):
        raise UsageError(f"input '{input_dtype}'", "give uint8 or float32")
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=overwrite)
    root = Path(checkpoint_path)
    checkpoint = read_checkpoint(root)
    batch = batch or BatchRange(1, 8, 256)
    with create_bundle(output, overwrite=overwrite) as draft:
        on_stage("copying the checkpoint")
        for file in (CHECKPOINT_NAME, WEIGHTS_NAME):
            _copy(root / file, draft.path(f"checkpoint/{file}"))
        chosen, note = _samples_or_synthetic(checkpoint, samples, data_dir)
        draft.manifest = _manifest(output.name, checkpoint, outputs, input_dtype, batch)
        reference, golden = _run_reference(draft, chosen, threads, on_stage)
        _save_golden(draft, golden)
        variants = _export(draft, formats, batch, on_stage)
        draft.manifest = draft.manifest.with_variants(*variants)
        bundle = draft.finish()
        records = [r for v in variants for r in _prove(bundle, v, [golden, reference], threads, on_stage)]
        _refuse_failures(records)
        draft.manifest = with_parity(draft.manifest, records, note)
    return Bundle(output, draft.manifest)


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copyfile(source, target)


def _manifest(
    name: str, checkpoint: Checkpoint, outputs: Sequence[str], input_dtype: str, batch: BatchRange
) -> Manifest:
    from vggdeploy.export.example import input_spec
    from vggdeploy.model.outputs import output_specs

    reference = Variant(
        name=REFERENCE, format="checkpoint", precision=Precision.FP32, path="checkpoint", batch=batch
    )
    return Manifest(
        name=name,
        created=now(),
        spec=checkpoint.spec,
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        dataset=checkpoint.dataset,
        input=input_spec(checkpoint.spec, input_dtype),
        outputs=output_specs(checkpoint.spec, outputs),
        golden=GoldenFiles(inputs={}, outputs={}, data=""),
        variants=(reference,),
        tools=tool_versions(),
    )


def _samples_or_synthetic(checkpoint: Checkpoint, limit: int | None, data_dir: Path | None) -> tuple[Samples, str]:
    """Real test images; where there are none, synthetic ones and the sentence that says so."""
    try:
        return load_samples(checkpoint.dataset, checkpoint, limit=limit, data_dir=data_dir), ""
    except (DataError, MissingDependencyError) as error:
        images = synthetic_images(_golden_count(checkpoint), checkpoint.preprocess)
        return Samples(images, None, "synthetic"), f"proven on synthetic images only: {error.cause}"


def _golden_count(about: Checkpoint | Manifest) -> int:
    bytes_each = about.preprocess.crop**2 * about.preprocess.channels
    return max(2, min(GOLDEN_IMAGES, GOLDEN_BYTES // bytes_each))


def _run_reference(
    draft: Draft, chosen: Samples, threads: int | None, on_stage: Stage
) -> tuple[Reference, Reference]:
    """The reference's outputs for all samples, and the first few of them as the golden pair."""
    bundle = draft.finish()
    manifest = bundle.manifest
    variant = manifest.variant(REFERENCE)
    on_stage(f"running the FP32 reference on {len(chosen.images)} images")
    images = to_input(chosen.images, manifest)
    with open_session(bundle, variant, threads=threads) as session:
        everything = reference_outputs(session, images, data=chosen.data, labels=chosen.labels)
    count = _golden_count(manifest)
    golden = Reference(
        images=images[:count],
        outputs={name: array[:count] for name, array in everything.outputs.items()},
        data=f"golden pair ({min(count, len(images))} images)",
    )
    gc.collect()  # half a gigabyte of weights must be gone before the exporter takes its own
    return everything, golden


def to_input(images: Any, manifest: Manifest) -> Any:
    """Prepared ``uint8 [N, H, W, C]`` images as the graph's input wants them."""
    from vggdeploy.preprocess import normalise

    return images if manifest.input.dtype == "uint8" else normalise(images, manifest.preprocess)


def _save_golden(draft: Draft, golden: Reference) -> None:
    assert draft.manifest is not None  # noqa: S101  # for mypy: set by the caller
    name = draft.manifest.input.name
    files = GoldenFiles(
        inputs=draft.save_arrays("golden/inputs", {name: golden.images}),
        outputs=draft.save_arrays("golden/outputs", dict(golden.outputs)),
        data=golden.data,
    )
    draft.manifest = msgspec.structs.replace(draft.manifest, golden=files)


def _export(draft: Draft, formats: Sequence[str], batch: BatchRange, on_stage: Stage) -> list[Variant]:
    """Write each format. FP16 comes last: it halves the model's weights in place."""
    from vggdeploy.export.onnx import export_onnx
    from vggdeploy.export.torchscript import export_torchscript
    from vggdeploy.model.deployable import Deployable
    from vggdeploy.model.vgg import fold_batch_norm
    from vggdeploy.model.weights import load_model

    manifest = draft.manifest
    assert manifest is not None  # noqa: S101  # for mypy: set by the caller
    model = fold_batch_norm(load_model(draft.root / "checkpoint", check_weights=False))
    names = [spec.name for spec in manifest.outputs]
    module = Deployable(model, manifest.preprocess, outputs=names, input_dtype=manifest.input.dtype).eval()
    variants = []
    for name in sorted(formats, key=lambda f: f.endswith("fp16")):
        on_stage(f"exporting {name}")
        kind, precision = name.rsplit("-", 1)
        path = f"variants/{name}/model.{'pt' if kind == 'torchscript' else 'onnx'}"
        if precision == "fp16":
            module.features.half()
            module.classifier.half()
        if kind == "torchscript":
            proof = export_torchscript(module, draft.path(path), image=manifest.input)
        else:
            proof = export_onnx(module, draft.path(path), image=manifest.input, batch=batch)
        if set(proof.layers) != {precision}:
            raise ParityError(f"{name} was asked for and {proof.layers} was written", "run with --debug and report it")
        variants.append(
            Variant(name=name, format=kind, precision=Precision(precision), path=path, batch=batch, proof=proof)
        )
    del model, module
    gc.collect()
    return variants


def _prove(
    bundle: Bundle, variant: Variant, references: Iterable[Reference], threads: int | None, on_stage: Stage
) -> list[ParityRecord]:
    """The variant against each reference, or one ``unproven`` record where it cannot run."""
    device = default_device(backend_for(variant))
    found = runnable(variant, device)
    if not found.runs:
        return [unproven(variant, f"{found.reason}; {found.fix}", device)]
    on_stage(f"proving {variant.name}")
    distinct = {r.data: r for r in references if r.data != "synthetic"}
    with open_session(bundle, variant, device=device, threads=threads) as session:
        return [compare(session, reference, bundle, variant, device) for reference in distinct.values()]


def _refuse_failures(records: Sequence[ParityRecord]) -> None:
    for record in records:
        if record.verdict is Verdict.FAIL:
            raise ParityError(
                f"{record.variant} does not compute what was trained: {'; '.join(record.reasons)}",
                "nothing was written; run with --debug and report it",
            )


def with_parity(manifest: Manifest, records: Sequence[ParityRecord], note: str = "") -> Manifest:
    """The manifest with the last record of each variant (the one with the most images) written to it."""
    changed = {}
    for record in records:
        if record.variant == REFERENCE:
            continue
        reasons = (*record.reasons, note) if note else record.reasons
        written = msgspec.structs.replace(record, reasons=reasons, tools=tool_versions())
        changed[record.variant] = msgspec.structs.replace(manifest.variant(record.variant), parity=written)
    return manifest.with_variants(*changed.values())


def verify_bundle(
    bundle: Bundle,
    *,
    variants: Sequence[str] = (),
    data: str = "",
    samples: int | None = DEFAULT_SAMPLES,
    data_dir: Path | None = None,
    threads: int | None = None,
    record: bool = False,
    on_stage: Stage = lambda text: None,
) -> ParityReport:
    """Prove the variants again, here: on the golden pair, and on real test images where torch and a data set are.

    The reference itself is checked against the golden outputs too: another torch or CPU must not move it.

    Args:
        variants: names; default all.
        data: a data set's name; default the one that the model was trained on.
        record: write the verdicts to the bundle's manifest.
    """
    from vggdeploy.parity.compare import golden_reference

    manifest = bundle.manifest
    wanted = [manifest.variant(name) for name in variants] or list(manifest.variants)
    references = [golden_reference(bundle)]
    reference = manifest.variant(REFERENCE)
    if runnable(reference).runs and (data or manifest.dataset):
        chosen = load_samples(data or manifest.dataset, manifest, limit=samples, data_dir=data_dir)
        on_stage(f"running the FP32 reference on {len(chosen.images)} images")
        images = to_input(chosen.images, manifest)
        with open_session(bundle, reference, threads=threads) as session:
            references.append(reference_outputs(session, images, data=chosen.data, labels=chosen.labels))
    records: list[ParityRecord] = []
    for variant in wanted:
        against = references[:1] if variant.name == REFERENCE else references
        records += _prove(bundle, variant, against, threads, on_stage)
    if record:
        with update_bundle(bundle) as draft:
            draft.manifest = with_parity(manifest, records)
    return ParityReport(bundle=str(bundle.root), created=now(), variants=tuple(records))
