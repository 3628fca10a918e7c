"""Checkpoint → exported variants → parity → bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vggdeploy.bundle import MANIFEST_NAME, REFERENCE, Bundle, GoldenFiles, Manifest, Variant, create_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.bundle.store import Arrays, Draft, now
from vggdeploy.engine.embedding import SCORES
from vggdeploy.engine.predictions import probabilities
from vggdeploy.errors import ParityError, UsageError, counted, unknown_name
from vggdeploy.export.openvino import OPENVINO, openvino_variant, read_back
from vggdeploy.model.outputs import default_outputs, output_specs
from vggdeploy.parity import Reference, reference_outputs
from vggdeploy.parity.anchor import save_anchor
from vggdeploy.parity.batches import EXPORT_BYTES
from vggdeploy.parity.population import population_of
from vggdeploy.parity.reference import golden_pair, run_all
from vggdeploy.parity.stress import stress_input
from vggdeploy.preprocess import denormalise
from vggdeploy.records.drift import Population
from vggdeploy.runtime import open_session
from vggdeploy.system.files import check_replaceable
from vggdeploy.system.machine import release_memory
from vggdeploy.system.optional import require
from vggdeploy.types import BatchRange, ImageSource, OnProgress, Precision, silent
from vggdeploy.verify.consistency import measured_accuracy
from vggdeploy.verify.prove import prove, refuse_failures, tool_versions, with_parity
from vggdeploy.verify.samples import DEFAULT_SAMPLES, Samples, golden_count, samples_or_synthetic

if TYPE_CHECKING:
    from vggdeploy.model.deployable import Deployable

FORMATS = ("onnx-fp32", "onnx-fp16", "torchscript-fp32")  # without being asked
KNOWN = (
    *FORMATS, "onnx-bf16", "openvino-fp32", "openvino-bf16", "torch-export-fp32", "torch-export-bf16", "aoti-fp32", "aoti-bf16",
)  # fmt: skip
_SUFFIXES = {"torchscript": "pt", "torch-export": "pt2", "onnx": "onnx"}
BATCH = BatchRange(1, 8, 256)
_MEASURED = 16  # images that are measured at a time


@dataclass(frozen=True)
class ExportOptions:
    """What a bundle is made to hold, and what it is proven on.

    Attributes:
        formats: of `KNOWN`. OpenVINO's run the file of ``onnx-fp32``, AOTInductor's are compiled from that of
            ``torch-export-fp32`` or ``-bf16``, which then are written, too.
        outputs: names of graph outputs, see `vggdeploy.model.outputs`. None: the class scores, or the last features.
        input_dtype: ``"uint8"`` (pixels, preprocessing inside) or ``"float32"`` (normalised on the host).
        batch: the batch sizes that every variant takes.
        samples: test images to prove on; None for all.
        data_dir: where the data set is; default as `vggdeploy.data.loaders.open_split`.
        threads: CPU threads of each session; default the backend's own choice.
        overwrite: replace a bundle that stands there.
        name: what the bundle is called, by a server too; default the directory's name.
    """

    formats: Sequence[str] = FORMATS
    outputs: Sequence[str] | None = None
    input_dtype: str = "uint8"
    batch: BatchRange = BATCH
    samples: int | None = DEFAULT_SAMPLES
    data_dir: Path | None = None
    threads: int | None = None
    overwrite: bool = False
    name: str = ""


def export_bundle(
    checkpoint_path: str | os.PathLike[str],
    output: Path,
    options: ExportOptions = ExportOptions(),
    *,
    on_progress: OnProgress = silent,
) -> Bundle:
    """Export a checkpoint, prove every variant from its written bytes, and write the bundle, in one step.

    Raises:
        UsageError, BundleError: an option that cannot be met, or an output that may not be replaced.
        ParityError: a variant does not compute what was trained; nothing is written.
    """
    for name in options.formats:
        if name not in KNOWN:
            raise unknown_name("format", name, KNOWN)
    if options.input_dtype not in ("uint8", "float32"):
        raise UsageError(f"a graph cannot take '{options.input_dtype}' as its input", "give uint8 or float32")
    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        require(module, to="export a model", extra="train")
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=options.overwrite)
    root = Path(checkpoint_path)
    checkpoint = read_checkpoint(root)
    if options.outputs is None:
        options = replace(options, outputs=default_outputs(checkpoint.spec))
    output_specs(checkpoint.spec, options.outputs or ())  # a slip is found before half a gigabyte is copied
    if options.samples is not None and options.samples < 1:
        raise UsageError(f"{options.samples} samples were asked for", "give at least 1, for example --samples 1000")
    threads = options.threads
    with create_bundle(output, overwrite=options.overwrite) as draft:
        on_progress(None, "copying the checkpoint")
        for file in (CHECKPOINT_NAME, WEIGHTS_NAME):
            _copy(root / file, draft.path(f"checkpoint/{file}"))
        chosen, note = samples_or_synthetic(checkpoint, options.samples, options.data_dir, dtype=options.input_dtype)
        draft.manifest = _manifest(options.name or output.name, checkpoint, options)
        reference, golden, stress = _run_reference(draft, chosen, threads, on_progress)
        _save_golden(draft, golden, stress)
        accuracy = measured_accuracy(chosen.dataset, reference)
        known = _population(draft.manifest, chosen, reference)
        draft.manifest = msgspec.structs.replace(draft.manifest, reference_accuracy=accuracy, population=known)
        variants = _export(draft, options, on_progress)
        draft.manifest = draft.manifest.with_variants(*variants)
        bundle = draft.finish()
        variants = [read_back(bundle, variant) for variant in variants]
        draft.manifest = bundle.manifest.with_variants(*variants)
        records = [
            record
            for variant in variants
            for record in prove(bundle, variant, [golden, reference], threads, on_progress, memory=EXPORT_BYTES)
        ]
        refuse_failures(records, "nothing was written; run with --debug and report it")
        draft.manifest = with_parity(draft.manifest, records, note)
    return Bundle(output, draft.manifest)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:  # `shutil` names the source, also when it is the target's disk that is full
        raise OSError(error.errno, error.strerror, str(target) if source.exists() else str(source)) from error


def _manifest(name: str, checkpoint: Checkpoint, options: ExportOptions) -> Manifest:
    from vggdeploy.model.outputs import input_spec

    reference = Variant(
        name=REFERENCE, format="checkpoint", precision=Precision.FP32, path="checkpoint", batch=options.batch
    )
    return Manifest(
        name=name,
        created=now(),
        spec=checkpoint.spec,
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        dataset=checkpoint.dataset,
        input=input_spec(checkpoint.spec, options.input_dtype),
        outputs=output_specs(checkpoint.spec, options.outputs or ()),
        golden=GoldenFiles(inputs={}, outputs={}, data=""),
        variants=(reference,),
        tools=tool_versions(),
    )


def _run_reference(
    draft: Draft, chosen: Samples, threads: int | None, on_progress: OnProgress
) -> tuple[Reference, Reference, Arrays]:
    """The reference's outputs for all samples, the first few of them as the golden pair, and those for the stress images."""
    bundle = draft.finish()
    manifest = bundle.manifest
    variant = manifest.variant(REFERENCE)
    on_progress(None, f"running the FP32 reference on {counted(len(chosen.images), 'image')}")
    images = stress_input(manifest, golden_count(manifest))
    with open_session(bundle, variant, threads=threads) as session:
        everything = reference_outputs(
            session, chosen.images, data=chosen.data, labels=chosen.labels, source=chosen.source
        )
        answers = list(run_all(session, images))
    stress = {name: np.concatenate([batch[name] for batch in answers]) for name in answers[0]}
    count = min(golden_count(manifest), len(everything.images))
    outputs = {name: rows[:count] for name, rows in everything.outputs.items()}
    golden = golden_pair(everything.images[:count], outputs)
    release_memory()  # half a gigabyte of weights must be gone before the exporter takes its own
    return everything, golden, stress


def _population(manifest: Manifest, chosen: Samples, reference: Reference) -> Population | None:
    """What the test images and the answers to them are like, for whoever watches a server; None of synthetic images."""
    if chosen.source is not ImageSource.REAL:
        return None

    def batches() -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]]:
        scored = any(name in SCORES for name in reference.outputs)
        for start in range(0, len(chosen.images), _MEASURED):
            part = slice(start, start + _MEASURED)
            images = chosen.images[part]
            pixels = images if manifest.input.dtype == "uint8" else denormalise(images, manifest.preprocess)
            rows = {name: values[part] for name, values in reference.outputs.items()}
            yield pixels, probabilities(rows) if scored else None

    return population_of(batches(), data=chosen.data, classes=manifest.spec.classes or 1)


def _save_golden(draft: Draft, golden: Reference, stress: Arrays) -> None:
    assert draft.manifest is not None  # noqa: S101  # for mypy: set by the caller
    name = draft.manifest.input.name
    files = GoldenFiles(
        inputs=draft.save_arrays("golden/inputs", {name: golden.images[:]}),
        outputs=draft.save_arrays("golden/outputs", {key: rows[:] for key, rows in golden.outputs.items()}),
        data=golden.data,
        stress=draft.save_arrays("golden/stress", stress),
    )
    files = save_anchor(draft, files, draft.manifest.preprocess)
    draft.manifest = msgspec.structs.replace(draft.manifest, golden=files)


def _module(draft: Draft, manifest: Manifest) -> Deployable:
    """What is exported, in FP32: batch norm folded, preprocessing in front."""
    from vggdeploy.model.deployable import Deployable
    from vggdeploy.model.vgg import fold_batch_norm
    from vggdeploy.model.weights import load_model

    model = fold_batch_norm(load_model(draft.root / "checkpoint"))
    names = [spec.name for spec in manifest.outputs]
    return Deployable(model, manifest.preprocess, outputs=names, input_dtype=manifest.input.dtype).eval()


def _export(draft: Draft, options: ExportOptions, on_progress: OnProgress) -> list[Variant]:
    """Write each format. The FP32 ones come first: others narrow the model's weights in place."""
    from vggdeploy.export.onnx import export_onnx
    from vggdeploy.export.torch_export import export_program
    from vggdeploy.export.torchscript import export_torchscript

    manifest = draft.manifest
    assert manifest is not None  # noqa: S101  # for mypy: set by the caller
    sources = {name: _runs(name) for name in options.formats}
    written = dict.fromkeys(sources.values())
    variants = []
    module: Deployable | None = None
    held = "fp32"  # what its weights are in
    for name in sorted(written, key=lambda f: not f.endswith("fp32")):
        on_progress(None, f"exporting {name}")
        kind, precision = name.rsplit("-", 1)
        path = f"variants/{name}/model.{_SUFFIXES[kind]}"
        if module is None or held not in ("fp32", precision):
            module = None  # before the next: two are twice the memory
            module = _module(draft, manifest)
        module.narrow(Precision(precision))
        held = precision
        if kind == "torchscript":
            proof = export_torchscript(module, draft.path(path), image=manifest.input)
        elif kind == "torch-export":
            proof = export_program(module, draft.path(path), image=manifest.input, batch=options.batch)
        else:
            proof = export_onnx(module, draft.path(path), image=manifest.input, batch=options.batch)
        if set(proof.layers) != {precision}:
            raise ParityError(
                f"{name} was asked for, and the written file computes in {proof.layers}",
                "run with --debug and report it",
            )
        variants.append(
            Variant(name=name, format=kind, precision=Precision(precision), path=path, batch=options.batch, proof=proof)
        )
    del module
    release_memory()
    made = {variant.name: variant for variant in variants}
    return variants + [_borrower(name, made[source]) for name, source in sources.items() if source != name]


def _runs(name: str) -> str:
    """The variant whose file a variant runs: most have one of their own."""
    kind, precision = name.rsplit("-", 1)
    return {OPENVINO: "onnx-fp32", "aoti": f"torch-export-{precision}"}.get(kind, name)


def _borrower(name: str, source: Variant) -> Variant:
    """The variant that runs another one's file: it adds no bytes to the bundle."""
    kind, precision = name.rsplit("-", 1)
    if kind == OPENVINO:
        return openvino_variant(source, Precision(precision))
    return msgspec.structs.replace(source, name=name, format=kind)
