"""New weights for engines that were built without any: a bundle of another checkpoint with the same engine files.

An engine that was built with ``--strip any`` takes its weights from its bundle's ONNX at each load. So nothing is built: the
new checkpoint is exported as ever, with a reference and a golden pair of its own, and the engine's file is put beside it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from vggdeploy.build.cache import copy_file
from vggdeploy.bundle import Bundle, Variant, update_bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.errors import ParityError, UsageError
from vggdeploy.export.bundle import KNOWN, ExportOptions, export_bundle
from vggdeploy.model.formats.chain import chain_of
from vggdeploy.model.formats.graph import operators_of
from vggdeploy.parity.compare import prove_at_load
from vggdeploy.records import ParityRecord
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.types import OnProgress, Verdict, silent


def refit_bundle(
    bundle: Bundle,
    checkpoint: str | os.PathLike[str],
    output: Path,
    *,
    variants: Sequence[str] = (),
    options: ExportOptions = ExportOptions(),
    on_progress: OnProgress = silent,
) -> Bundle:
    """A bundle of ``checkpoint`` with the engines of ``bundle``, which are not built again.

    Where an engine runs here, the golden pair of the new checkpoint decides whether it is added; elsewhere it is added as
    `Verdict.UNPROVEN`, and the pair decides at its first load.

    Args:
        variants: names of the engines. Default: all that take other weights.
        options: samples, threads and the like; formats, outputs, input and batch are those of the old bundle.

    Raises:
        UsageError: no engine takes other weights; the checkpoint is of another network, or prepares its images otherwise.
        ParityError: an exported file, or an engine with its new weights, does not compute what was trained.
        Errors of `export_bundle`.
    """
    engines = _engines(bundle, variants)
    _check_same_network(bundle, Path(checkpoint))
    sources = {engine.name: _source(bundle, engine) for engine in engines}
    fresh = export_bundle(
        checkpoint, output, _options(bundle, list(sources.values()), options), on_progress=on_progress
    )
    for engine in engines:
        on_progress(None, f"adding {engine.name}")
        fresh = _add(bundle, fresh, engine, sources[engine.name])
    return fresh


def _engines(bundle: Bundle, names: Sequence[str]) -> list[Variant]:
    chosen = [bundle.manifest.variant(name) for name in names] or [v for v in bundle.manifest.variants if _takes_any(v)]
    for engine in chosen:
        if not _takes_any(engine):
            why = "was built to get back the weights that it was built from" if engine.build else "is no engine"
            raise UsageError(f"{engine.name} {why}", "build one that takes others: vggdeploy build BUNDLE --strip any")
    if not chosen:
        raise UsageError(
            f"{bundle.root} has no engine that takes other weights", "build one: vggdeploy build BUNDLE --strip any"
        )
    return chosen


def _takes_any(variant: Variant) -> bool:
    return variant.build is not None and variant.build.options.get("strip") == "any"


def _check_same_network(bundle: Bundle, checkpoint: Path) -> None:
    new, manifest = read_checkpoint(checkpoint), bundle.manifest
    if new.spec != manifest.spec:
        raise UsageError(
            f"{checkpoint} is another network than {bundle.root}: {new.spec.title}, not {manifest.spec.title}",
            "an engine takes weights of its own network only: export and build that checkpoint",
        )
    if new.preprocess != manifest.preprocess:
        raise UsageError(
            f"{checkpoint} prepares its images otherwise than {bundle.root}, and the engine has that inside",
            f"export that checkpoint, then build: vggdeploy export {checkpoint} -o BUNDLE",
        )


def _source(bundle: Bundle, engine: Variant) -> Variant:
    """The ONNX that an engine was built from, which the export has to be able to write again."""
    record = engine.build
    name = record.source if record is not None else ""
    if name not in KNOWN:
        raise UsageError(
            f"{engine.name} was built from {name}, which no export writes", "optimise and build the new checkpoint anew"
        )
    return bundle.manifest.variant(name)


def _options(bundle: Bundle, sources: Sequence[Variant], options: ExportOptions) -> ExportOptions:
    manifest = bundle.manifest
    return dataclasses.replace(
        options,
        formats=sorted({source.name for source in sources}),
        outputs=[output.name for output in manifest.outputs],
        input_dtype=manifest.input.dtype,
        batch=sources[0].batch,
    )


def _add(old: Bundle, fresh: Bundle, engine: Variant, source: Variant) -> Bundle:
    """The fresh bundle with an engine of the old one, proven where that is possible."""
    here = fresh.manifest.variant(source.name)
    if _shape(old, source) != _shape(fresh, here):
        raise UsageError(
            f"{source.name} of the new checkpoint is another graph than the one that {engine.name} was built from",
            "build the engine anew: vggdeploy build BUNDLE",
        )
    assert engine.build is not None  # noqa: S101  # it takes other weights
    record = replace(engine.build, source_sha256=fresh.sha256(here.path))
    variant = replace(engine, build=record, parity=None, distances=(), measured=())
    file = old.main_file(engine)
    parity = _proof(fresh, variant, old)
    variant = replace(variant, parity=parity, distances=parity.distances)
    with update_bundle(fresh) as draft:
        copy_file(file.path, draft.path(variant.path))
        draft.manifest = fresh.manifest.with_variants(variant)
    added = Bundle.open(fresh.root, only=[variant.name])
    if added.sha256(variant.path) != file.sha256:  # replaced while it was copied
        raise UsageError(f"{engine.name} of {old.root} was changed meanwhile", "run this command again")
    return added


def _shape(bundle: Bundle, source: Variant) -> list[tuple[object, ...]]:
    """A graph without its names and its numbers: operators, what they compute, and the shapes of their weights."""
    manifest = bundle.manifest
    chain = chain_of(manifest.spec, manifest.input, manifest.outputs, source.path)
    with bundle.main_file(source).open() as file:
        found = operators_of(memoryview(file.map()), chain, source.path)
    return [(o.kind, o.span, o.type, [(w.dims, w.type) for w in o.weights]) for o in found]


def _proof(fresh: Bundle, variant: Variant, old: Bundle) -> ParityRecord:
    """The golden pair of the new checkpoint through the engine, where it runs here.

    Raises:
        ParityError: its answers are not those of the new weights.
    """
    device, here = default_device(backend_for(variant)), runnable(variant)
    if not here.runs:
        reason = f"new weights, not run yet ({here.reason}); the golden pair proves them there: vggdeploy verify BUNDLE"
        return ParityRecord(
            variant=variant.name, backend=variant.format, device="cuda", verdict=Verdict.UNPROVEN, reasons=(reason,)
        )
    file = old.main_file(variant)
    with open_session(fresh, variant, device=device, file=file) as session:
        record = replace(prove_at_load(session, fresh, variant, device), sha256=file.sha256)
    if record.verdict is not Verdict.PASS:
        raise ParityError(
            f"{variant.name} with the new weights misses the golden pair of the new checkpoint: {'; '.join(record.reasons)}",
            "build it anew: TensorRT may drop a bias of an engine whose weights may change (vggdeploy build BUNDLE)",
        )
    return record
