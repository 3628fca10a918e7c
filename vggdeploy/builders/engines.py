"""From a bundle's ONNX to an engine in that bundle: build, prove the precision, record how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from vggdeploy.builders.progress import OnProgress
from vggdeploy.builders.tensorrt import Built, Configure, build_engine
from vggdeploy.builders.tensorrt_rtx import DEFAULT_TARGETS, resolve_targets, set_targets
from vggdeploy.bundle import BuildRecord, Bundle, Manifest, Variant, update_bundle
from vggdeploy.errors import BuildError, BundleError, MissingDependencyError, UsageError, unknown_name
from vggdeploy.optional import installed, require
from vggdeploy.records import SCHEMA_VERSION, ParityRecord, Record
from vggdeploy.runtime import get_backend
from vggdeploy.runtime.cuda import find_gpu
from vggdeploy.types import BatchRange, Device, Precision, TensorSpec, Verdict


@dataclass(frozen=True)
class EngineKind:
    """A row: the engine's name (its format's and its backend's, too), the library's name, module and extra."""

    name: str
    title: str
    module: str
    extra: str
    needs_gpu: bool


ENGINES: tuple[EngineKind, ...] = (
    EngineKind("tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "rtx", needs_gpu=False),
    EngineKind("tensorrt", "TensorRT", "tensorrt", "gpu", needs_gpu=True),
)
_ALIASES = {"trt": "tensorrt", "rtx": "tensorrt-rtx", "trt-rtx": "tensorrt-rtx"}


class BuildReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy build --json`` prints: the variant as the manifest has it, its bytes and their hash."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    variant: Variant
    size: int
    sha256: str


def build_into(
    bundle: Bundle,
    *,
    engine: str,
    precision: Precision = Precision.FP16,
    batch: BatchRange | None = None,
    targets: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> Bundle:
    """Build an engine from the bundle's ONNX of that precision, and add it to the bundle in one step.

    An engine of the same name is replaced. The result is `Verdict.UNPROVEN` until ``verify`` ran it.

    Args:
        engine: ``tensorrt-rtx`` (any machine) or ``tensorrt`` (a machine with the NVIDIA GPU that will run it).
        batch: the profile's minimum, optimum and maximum. Default: those of the ONNX variant.
        targets: GPU generations or compute capabilities, for TensorRT for RTX only. Default: `DEFAULT_TARGETS`.
        on_progress: called with the share that is done, from 0 to 1, and the name of the phase.

    Returns:
        The bundle as it stands now.

    Raises:
        UsageError: an unknown engine or target, or targets for an engine that has none.
        BundleError: the bundle has no ONNX of that precision, or it was altered.
        IncompatibleError: the library or the GPU that it needs is missing.
        BuildError: the library refused the model; ParityError: the built precision is not the asked one.
    """
    kind = engine_kind(engine)
    if targets is not None and kind.needs_gpu:
        raise UsageError(
            f"{kind.name} builds for the GPU of this machine, not for '{','.join(targets)}'",
            "leave --target out, or use --engine tensorrt-rtx",
        )
    source = source_variant(bundle, precision)
    library = open_library(kind)
    chosen = batch or source.batch
    sms, configure = _targets(kind, library, targets)
    name = f"{kind.name}-{precision}"
    directory = f"variants/{name}"
    with update_bundle(bundle) as draft:
        path = f"{directory}/model.engine"
        built = build_engine(
            library,
            bundle.path(source.path),
            draft.path(path),
            precision=precision,
            batch=chosen,
            configure=configure,
            on_progress=on_progress,
        )
        _check_graph(built, bundle.manifest, source)
        draft.write(f"{directory}/build.log", built.log.encode())
        variant = Variant(
            name=name,
            format=kind.name,
            precision=precision,
            path=path,
            batch=chosen,
            proof=built.proof,
            build=BuildRecord(
                library=kind.module,
                version=library.__version__,
                source=source.name,
                source_sha256=bundle.sha256(source.path),
                targets=sms,
                options={"batch": str(chosen)},
                seconds=round(built.seconds, 3),
            ),
            parity=_unproven(name, kind),
        )
        draft.manifest = bundle.manifest.with_variants(variant)
    return Bundle(bundle.root, draft.manifest)


def _targets(
    kind: EngineKind, library: ModuleType, names: Sequence[str] | None
) -> tuple[tuple[str, ...], Configure | None]:
    """The compute capabilities that the engine will run on, and what has to be set for it."""
    if kind.needs_gpu:
        return (find_gpu(Device("cuda")).capability,), None
    sms = resolve_targets(library, DEFAULT_TARGETS if names is None else names)
    return sms, partial(set_targets, library, targets=sms)


def report(bundle: Bundle, name: str) -> BuildReport:
    """The record of a variant that was built."""
    variant = bundle.manifest.variant(name)
    return BuildReport(
        bundle=str(bundle.root), variant=variant, size=bundle.size(variant), sha256=bundle.sha256(variant.path)
    )


def engine_kind(name: str) -> EngineKind:
    """The engine of that name.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    wanted = name.strip().lower().replace("_", "-")
    wanted = _ALIASES.get(wanted, wanted)
    for kind in ENGINES:
        if kind.name == wanted:
            return kind
    raise unknown_name("engine", name, [kind.name for kind in ENGINES])


def source_variant(bundle: Bundle, precision: Precision) -> Variant:
    """The ONNX variant to build from.

    Raises:
        BundleError: there is none of that precision; the hint names those that are there.
    """
    found = {v.precision: v for v in bundle.manifest.variants if v.format == "onnx"}
    if precision in found:
        return found[precision]
    there = ", ".join(found) or "none"
    raise BundleError(
        f"{bundle.root} has no ONNX in {precision} to build from (ONNX there: {there})",
        "choose one of those with --precision, or export again: vggdeploy export CHECKPOINT -o BUNDLE --force",
    )


def open_library(kind: EngineKind) -> ModuleType:
    """The library's module.

    Raises:
        MissingDependencyError: it is not installed; the hint says which extra brings it and what it needs.
        IncompatibleError: it is installed and does not import.
    """
    if kind.needs_gpu and not installed(kind.module):
        raise MissingDependencyError(
            f"the Python package '{kind.module}' is needed to build {kind.name} engines, and it is not installed",
            f"on the machine with the NVIDIA GPU: pip install 'vggdeploy[{kind.extra}]' (it builds only there); "
            "without a GPU: --engine tensorrt-rtx",
        )
    return require(kind.module, to=f"build {kind.name} engines", extra=kind.extra)


def _check_graph(built: Built, manifest: Manifest, source: Variant) -> None:
    """The engine's inputs and outputs have to be those that every user of the bundle relies on."""

    def plain(specs: Sequence[TensorSpec]) -> dict[str, Any]:
        return {spec.name: (spec.dtype, spec.item_shape) for spec in specs}

    if plain(built.inputs) != plain([manifest.input]) or plain(built.outputs) != plain(manifest.outputs):
        found = ", ".join(map(str, (*built.inputs, *built.outputs)))
        raise BuildError(f"{source.name} has not the manifest's inputs and outputs, but {found}", "export it again")


def _unproven(name: str, kind: EngineKind) -> ParityRecord:
    """No comparison was made: why, and what makes it."""
    here = get_backend(kind.name).probe(Device("cuda"))
    if here.runs:
        reason = "built and not run yet (vggdeploy verify)"
    else:
        reason = (
            f"built where it cannot run ({here.reason}); the golden pair proves it on its GPU: vggdeploy verify"
        )
    return ParityRecord(variant=name, backend=kind.name, device="cuda", verdict=Verdict.UNPROVEN, reasons=(reason,))
