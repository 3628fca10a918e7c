"""``vggdeploy build``: an engine from a bundle's ONNX, on a machine that need not have a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vggdeploy.cli import render
from vggdeploy.cli.options import BundlePath, Json

if TYPE_CHECKING:
    from vggdeploy.build.engines import BuildReport, BundledEngine
    from vggdeploy.build.options import BuildOptions
    from vggdeploy.bundle import BuildRecord, Bundle, PrecisionProof, RebuildSpread, Variant


def build(
    bundle: BundlePath,
    engine: Annotated[
        str, typer.Option(help="tensorrt-rtx (builds on any machine) or tensorrt (builds on the GPU's machine).")
    ] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="The ONNX to build from: fp16, fp32 or int8.")] = "fp16",
    batch: Annotated[
        str | None, typer.Option(metavar="MIN:OPT:MAX", help="Batch sizes of the engine. Default: the ONNX variant's.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="GPU,GPU…",
            help="GPUs that a tensorrt-rtx engine is built for: turing, ampere, ada, blackwell, or sm75, sm89, … "
            "Default: ampere,ada,blackwell.",
        ),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="GPU memory that a layer may work in, for example 2GiB. Default: the library's."
        ),
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option("--opt-level", metavar="0-5", help="How long to search for fast kernels. Default: 3.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="Kernel times (tensorrt): read first, written afterwards."),
    ] = None,
    hardware_compatible: Annotated[
        str | None,
        typer.Option("--hardware-compatible", metavar="ampere+|same-cc", help="Other GPUs that run it (tensorrt)."),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Loads in later releases too, with this one's lean runtime (tensorrt)."
        ),
    ] = False,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Use 2:4 sparse kernels where the weights are sparse.")
    ] = False,
    cuda_graph_batches: Annotated[
        str | None,
        typer.Option(
            "--cuda-graph-batches", metavar="N,N…", help="Batch sizes that a session captures as CUDA graphs."
        ),
    ] = None,
    rebuilds: Annotated[
        int, typer.Option("--rebuilds", help="Build that often and report the spread of bytes, time and latency.")
    ] = 1,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build anew, and keep no copy in the user cache.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a TensorRT engine into the bundle, and prove the precision it computes in."""
    from vggdeploy.build.options import BuildOptions, parse_size
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.options import split_numbers
    from vggdeploy.system.machine import memory_kept

    targets = [name for name in target.split(",") if name.strip()] if target is not None else None
    options = BuildOptions(
        workspace=parse_size(workspace) if workspace is not None else None,
        opt_level=opt_level,
        timing_cache=timing_cache,
        hardware_compatible=hardware_compatible.strip().lower().replace("_", "-") if hardware_compatible else None,
        version_compatible=version_compatible,
        sparse=sparse,
        graph_batches=tuple(split_numbers(cuda_graph_batches)) if cuda_graph_batches is not None else (),
    )
    opened = Bundle.open(bundle, only=())  # what the build reads is checked when it reads it
    with memory_kept():
        result = run_build(
            opened,
            engine=engine,
            precision=precision,
            batch=batch,
            targets=targets,
            options=options,
            rebuilds=rebuilds,
            use_cache=not no_cache,
        )
    if json:
        render.emit_json(result)
        return
    show_engine(result)
    render.next_steps(f"vggdeploy verify {bundle}", f"vggdeploy inspect {bundle}")


def run_build(
    bundle: Bundle,
    *,
    engine: str,
    precision: str = "fp16",
    batch: str | None = None,
    targets: Sequence[str] | None = None,
    options: BuildOptions | None = None,
    rebuilds: int = 1,
    use_cache: bool = True,
) -> BuildReport:
    """Build with a progress bar; the arguments are the command's, as text."""
    from vggdeploy.build.cache import EngineCache
    from vggdeploy.build.engines import build_into
    from vggdeploy.build.options import BuildOptions
    from vggdeploy.build.request import BuildPlan
    from vggdeploy.cli import render
    from vggdeploy.errors import unknown_name
    from vggdeploy.runtime.registry import get_engine
    from vggdeploy.types import BatchRange, Precision

    name = get_engine(engine).name
    wanted = precision.strip().lower()
    if wanted not in list(Precision):
        raise unknown_name("precision", precision, list(Precision))
    plan = BuildPlan(
        engine=name,
        precision=Precision(wanted),
        batch=BatchRange.parse(batch) if batch is not None else None,
        targets=targets,
        options=options or BuildOptions(),
    )
    with render.progress(f"building {name}-{wanted}") as tell:
        added: BundledEngine = build_into(
            bundle,
            plan,
            rebuilds=rebuilds,
            cache=EngineCache() if use_cache else None,
            on_progress=tell,
        )
    return added.report()


def show_engine(result: BuildReport) -> None:
    """Size, time, targets, options, the precision read back, and what is proven about the engine here."""
    from rich.markup import escape

    from vggdeploy.cli import render

    variant, record = result.variant, result.variant.build
    assert record is not None and variant.parity is not None  # noqa: S101  # build_into sets them
    out = render.out.print
    made = "copied from the cache, built" if result.cached else "built"
    out(
        f"[bold]{escape(variant.name)}[/]: {render.size_text(result.size)}, {made} in {record.seconds:.1f} s, "
        f"{escape(library_text(record))}, batch {variant.batch}"
    )
    for name, text in facts(variant):
        out(f"  {name:<10} {escape(text)}")
    out(f"  parity     {render.LIGHTS[variant.verdict]}: {escape('; '.join(variant.parity.reasons))}")


def print_engine(variant: Variant) -> None:
    """What ``inspect`` says about an engine; nothing for other variants."""
    if variant.build is None:
        return
    render.out.print(f"\n[bold]{escape(variant.name)}[/]: {escape(library_text(variant.build))}, batch {variant.batch}")
    for name, text in facts(variant):
        render.out.print(f"  {name:<10} {escape(text)}")


def library_text(record: BuildRecord) -> str:
    """``TensorRT for RTX 1.7.1.116``."""
    from vggdeploy.runtime.registry import library_title

    return f"{library_title(record.library)} {record.version}"


def facts(variant: Variant) -> Iterator[tuple[str, str]]:
    """Names and values of what is known about an engine's build."""
    record = variant.build
    if record is None:
        return
    tuned = f" ({record.gpu}, driver for CUDA {record.driver})" if record.gpu else ""
    yield "targets", ", ".join(record.targets) + tuned
    asked = [f"{name} {text}" for name, text in record.options.items() if name != "batch"]
    if record.graph_batches:
        asked.append(f"CUDA graphs for batches of {', '.join(map(str, record.graph_batches))}")
    if asked:
        yield "options", ", ".join(asked)
    if variant.proof is not None:
        yield "precision", precision_text(variant.proof)
    if record.rebuilds is not None:
        yield "rebuilds", spread_text(record.rebuilds)


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
