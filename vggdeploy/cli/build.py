"""``vggdeploy build``: an engine from a bundle's ONNX, on a machine that need not have a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import BundlePath, Json

if TYPE_CHECKING:
    from vggdeploy.builders.engines import BuildReport
    from vggdeploy.bundle import Bundle


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
    json: Json = False,
) -> None:
    """Build a TensorRT engine into the bundle, and prove the precision it computes in."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render

    targets = [name for name in target.split(",") if name.strip()] if target is not None else None
    opened = Bundle.open(bundle, only=())  # what the build reads is checked when it reads it
    result = run_build(opened, engine=engine, precision=precision, batch=batch, targets=targets)
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
) -> BuildReport:
    """Build with a progress bar; the arguments are the command's, as text."""
    from vggdeploy.builders.engines import build_into, engine_kind, report
    from vggdeploy.cli import render
    from vggdeploy.errors import unknown_name
    from vggdeploy.types import BatchRange, Precision

    kind = engine_kind(engine)
    wanted = precision.strip().lower()
    if wanted not in list(Precision):
        raise unknown_name("precision", precision, list(Precision))
    sizes = BatchRange.parse(batch) if batch is not None else None
    with render.progress() as bar:
        task = bar.add_task(f"building {kind.name}-{wanted}", total=100)
        built = build_into(
            bundle,
            engine=kind.name,
            precision=Precision(wanted),
            batch=sizes,
            targets=targets,
            on_progress=lambda share, phase: bar.update(task, completed=round(100 * share), description=phase),
        )
    return report(built, f"{kind.name}-{wanted}")


def show_engine(result: BuildReport) -> None:
    """Size, time, targets, the precision read back, and what is proven about the engine here."""
    from vggdeploy.builders.engines import engine_kind
    from vggdeploy.cli import render

    variant, record, proof = result.variant, result.variant.build, result.variant.proof
    assert record is not None and proof is not None and variant.parity is not None  # noqa: S101  # build_into sets them
    out = render.out.print
    out(
        f"[bold]{variant.name}[/]: {render.size_text(result.size)} in {record.seconds:.1f} s, "
        f"{engine_kind(variant.format).title} {record.version}, batch {variant.batch}"
    )
    out(f"  targets    {', '.join(record.targets)}")
    layers = ", ".join(f"{count} in {name}" for name, count in proof.layers.items())
    weights = ", ".join(f"{render.size_text(size)} {name}" for name, size in proof.weight_bytes.items())
    out(f"  precision  convolutions and matrix products: {layers}; weights: {weights}")
    out(f"  parity     {render.LIGHTS[variant.verdict]}: {'; '.join(variant.parity.reasons)}")
