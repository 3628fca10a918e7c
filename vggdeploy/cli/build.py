"""``vggdeploy build``: an engine from a bundle's ONNX, on a machine that need not have a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli import render
from vggdeploy.cli.options import BundlePath, Json
from vggdeploy.cli.render import escape

if TYPE_CHECKING:
    from vggdeploy.build.engines import BuildReport
    from vggdeploy.build.memory import ProfileMemory
    from vggdeploy.build.request import BuildPlan
    from vggdeploy.bundle import BuildRecord, Bundle, Manifest, PrecisionProof, RebuildSpread, SparseKernels, Variant
    from vggdeploy.types import BatchRange


def build(
    bundle: BundlePath,
    engine: Annotated[
        str | None,
        typer.Option(
            help="tensorrt (builds on the GPU's machine) or tensorrt-rtx (builds on any machine). "
            "Default: what fits the GPU that is here."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="The ONNX to build from: fp16, bf16, fp8, int8 or fp32. tf32: fp32 whose factors the GPU may round."
        ),
    ] = "fp16",
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,N…|MIN:OPT:MAX",
            help="Batch sizes that the engine is tuned for, each with a profile of its own, or one profile for a range. "
            "Default: 1, 8, 64 and the largest of the ONNX variant.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="GPU,GPU…",
            help="GPUs that a tensorrt-rtx engine is built for: turing, ampere, ada, blackwell, or sm75, sm89, … "
            "Default: the GPU that is here, and without one ampere,ada,blackwell.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cuda:INDEX", help="The GPU of this machine to build for. Default: the first.")
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="GPU memory that a layer may work in, for example 2GiB. Default: the library's."
        ),
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="How long to search for fast kernels. Default: 3.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernel times (tensorrt): read first, written afterwards.")
    ] = None,
    hardware_compatible: Annotated[
        str | None, typer.Option(metavar="ampere+|same-cc", help="Other GPUs that run it (tensorrt).")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Loads in later releases too, with this one's lean runtime (tensorrt)."
        ),
    ] = False,
    sparse: Annotated[
        bool,
        typer.Option("--sparse", help="Use 2:4 sparse kernels where the weights are so and it is faster (tensorrt)."),
    ] = False,
    strip: Annotated[
        str | None,
        typer.Option(
            metavar="identical|any",
            help="Leave the weights out: each load takes them from the bundle's ONNX. any: 'vggdeploy refit' may give it "
            "those of another checkpoint.",
        ),
    ] = None,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming", help="Let sessions keep a part of the weights in the host's memory (weight_budget)."
        ),
    ] = False,
    cuda_graph_batches: Annotated[
        str | None, typer.Option(metavar="N,N…", help="Batch sizes that a session captures as CUDA graphs.")
    ] = None,
    rebuilds: Annotated[
        int, typer.Option(help="Build that often and report the spread of bytes, time and latency.")
    ] = 1,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build anew, and keep no copy in the user cache.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a TensorRT engine into the bundle, and check the precision it computes in."""
    from vggdeploy.build.choice import choose_engine
    from vggdeploy.build.options import BuildOptions, parse_size
    from vggdeploy.build.profiles import parse_profiles
    from vggdeploy.build.request import BuildPlan, make_request
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli.options import split_numbers
    from vggdeploy.errors import unknown_name
    from vggdeploy.runtime.registry import get_engine
    from vggdeploy.system.machine import memory_kept
    from vggdeploy.types import Device, Precision

    options = BuildOptions(
        workspace=parse_size(workspace) if workspace is not None else None,
        opt_level=opt_level,
        timing_cache=timing_cache,
        hardware_compatible=hardware_compatible.strip().lower().replace("_", "-") if hardware_compatible else None,
        version_compatible=version_compatible,
        sparse=sparse,
        strip=strip.strip().lower() if strip else None,
        weight_streaming=weight_streaming,
        graph_batches=tuple(split_numbers(cuda_graph_batches)) if cuda_graph_batches is not None else (),
    )
    opened = Bundle.open(bundle, only=())  # what the build reads is checked when it reads it
    wanted = precision.strip().lower()
    if wanted not in list(Precision):
        raise unknown_name("precision", precision, list(Precision))
    gpus = [name for name in target.split(",") if name.strip()] if target is not None else None
    where = Device.parse(device) if device is not None else None
    choice = choose_engine(where, gpus) if engine is None else None
    plan = BuildPlan(
        engine=choice.backend.name if choice else get_engine(engine or "").name,
        precision=Precision(wanted),
        profiles=parse_profiles(batch) if batch is not None else None,
        targets=gpus,
        options=options,
        device=choice.device if choice else where,
    )
    if choice is not None and gpus is None:
        make_request(opened, plan)  # a call that cannot be is answered before anything is said about it
        render.note(f"[dim]engine:[/] {escape(choice.backend.title)}, since {escape(choice.reason)}")
    with memory_kept():
        result = run_build(opened, plan, rebuilds=rebuilds, use_cache=not no_cache)
    if json:
        render.emit_json(result)
        return
    show_engine(result)
    render.next_steps(f"vggdeploy verify {bundle}", f"vggdeploy inspect {bundle}")


def run_build(bundle: Bundle, plan: BuildPlan, *, rebuilds: int = 1, use_cache: bool = True) -> BuildReport:
    """Build with a progress bar."""
    from vggdeploy.build.cache import EngineCache
    from vggdeploy.build.engines import build_into

    with render.progress(f"building {plan.engine}-{plan.precision}") as tell:
        cache = EngineCache() if use_cache else None
        return build_into(bundle, plan, rebuilds=rebuilds, cache=cache, on_progress=tell).report()


def show_engine(result: BuildReport) -> None:
    """Size, time, targets, options, the precision read back, and what is proven about the engine here."""
    variant, record = result.variant, result.variant.build
    assert record is not None and variant.parity is not None  # noqa: S101  # build_into sets them
    made = "copied from the cache, built" if result.cached else "built"
    _show(variant, record, result.memory, f"{render.size_text(result.size)}, {made} in {record.seconds:.1f} s, ")
    reasons = render.with_path("; ".join(variant.parity.reasons), result.bundle)
    render.sentence(escape(reasons), f"  parity     {render.LIGHTS[variant.verdict]}: ")


def print_engine(manifest: Manifest, variant: Variant) -> None:
    """What ``inspect`` says about an engine; nothing for other variants."""
    from vggdeploy.build.memory import session_memory

    if variant.build is None:
        return
    render.out.print()
    _show(variant, variant.build, session_memory(manifest, variant))


def _show(variant: Variant, record: BuildRecord, memory: Sequence[ProfileMemory], made: str = "") -> None:
    from vggdeploy.runtime.registry import library_title

    library = escape(f"{library_title(record.library)} {record.version}")  # TensorRT for RTX 1.7.1.116
    batches = ", ".join(map(_sizes, variant.profiles)) if len(variant.profiles) > 1 else str(variant.batch)
    render.out.print(f"[bold]{escape(variant.name)}[/]: {made}{library}, batch {batches}")
    for name, text in facts(variant, record, memory):
        render.sentence(escape(text), f"  {name:<10} ")


def _sizes(profile: BatchRange) -> str:
    return str(profile.max) if profile.min == profile.max else f"{profile.min}–{profile.max}"


def facts(variant: Variant, record: BuildRecord, memory: Sequence[ProfileMemory]) -> Iterator[tuple[str, str]]:
    """Names and values of what is known about an engine's build."""
    tuned = f" ({record.gpu}, driver for CUDA {record.driver})" if record.gpu else ""
    yield "targets", ", ".join(record.targets) + tuned
    asked = [f"{name} {text}" for name, text in record.options.items() if name != "batch"]
    if record.graph_batches:
        asked.append(f"CUDA graphs for batches of {', '.join(map(str, record.graph_batches))}")
    if asked:
        yield "options", ", ".join(asked)
    if variant.proof is not None:
        yield "precision", precision_text(variant.proof)
    if record.sparse is not None:
        yield "sparse", sparse_text(record.sparse)
    if memory:
        yield "memory", memory_text(memory)
    if record.rebuilds is not None:
        yield "rebuilds", spread_text(record.rebuilds)


def sparse_text(sparse: SparseKernels) -> str:
    """Layers that are 2:4, and what the library says it did with them."""
    if sparse.eligible is None or sparse.chosen is None:
        said = "the library's log does not say how many kernels use it"
    else:
        said = f"by the library's log {sparse.eligible} eligible (fused layers count once), {sparse.chosen} with sparse kernels"
    from vggdeploy.errors import counted

    return f"{counted(len(sparse.layers), '2:4 layer')}; {said}"


def memory_text(memory: Sequence[ProfileMemory]) -> str:
    """What a session takes on the GPU in all, by the largest batch that it has run, and what that is made of."""
    last = memory[-1]
    totals = ", ".join(f"{render.size_text(one.total)} up to {one.batch}" for one in memory)
    weights = render.size_text(last.weights)
    kept = f"without the weights ({weights}), which may be streamed" if last.streamed else f"weights {weights}"
    told = "as the engine says" if last.asked else "predicted from the layers, since no GPU was here to ask the engine"
    each = f"{last.contexts} contexts, each with its activations ({told}) and buffers"
    return f"at least, for batches: {totals}; {kept}, {each}"


def precision_text(proof: PrecisionProof) -> str:
    """Layers and weights by type, as they were read back."""
    layers = ", ".join(f"{count} in {name}" for name, count in proof.layers.items())
    weights = ", ".join(f"{render.size_text(size)} {name}" for name, size in proof.weight_bytes.items())
    inside = ", ".join(f"{count} in {name}" for name, count in proof.engine.items())
    seen = f"; in the engine: {inside}" if inside else ""
    return f"convolutions and matrix products: {layers}; weights: {weights}{seen}"


def spread_text(spread: RebuildSpread) -> str:
    """How much rebuilds differ."""
    same = "byte for byte the same" if spread.distinct == 1 else f"{spread.distinct} different files"
    low, high = (render.size_text(size) for size in (min(spread.sizes), max(spread.sizes)))
    parts = [
        f"{spread.builds} builds, {same}",
        low if low == high else f"{low}–{high}",
        f"{min(spread.seconds):.2f}–{max(spread.seconds):.2f} s",
    ]
    if spread.p50_ms:
        parts.append(f"p50 {min(spread.p50_ms):.3f}–{max(spread.p50_ms):.3f} ms")
    else:
        parts.append("latency not measured, since it cannot run here")
    return ", ".join(parts)
