"""``vggdeploy verify``: prove a bundle's variants again, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, DataDir, Json, Rebuild, Threads


def verify(
    bundle: BundlePath,
    variant: Annotated[list[str] | None, typer.Option("--variant", help="Only this variant; may be repeated.")] = None,
    data: Annotated[str, typer.Option("--data", help="Data set to prove on. Default: the one trained on.")] = "",
    samples: Annotated[int, typer.Option("--samples", help="Test images to prove on.")] = 1000,
    max_flips: Annotated[
        float | None, typer.Option("--max-flips", metavar="PERCENT", help="Top-1 classes that may change.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option("--max-accuracy-drop", metavar="POINTS", help="Percentage points of accuracy to lose."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="Largest relative L2 distance of an output.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Name the layer at which a failing ONNX variant leaves the reference.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A directory for the pictures of --layers (PNG, HTML).")
    ] = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    record: Annotated[bool, typer.Option("--record", help="Write the verdicts to the bundle's manifest.")] = False,
    rebuild: Rebuild = False,
    json: Json = False,
) -> int:
    """Compare every variant, from its shipped bytes, with the FP32 PyTorch reference."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import layer_pictures, render, tables
    from vggdeploy.cli.invocation import with_command
    from vggdeploy.cli.rebuild import rebuilt
    from vggdeploy.pipeline.prove import Limits, exit_code, verify_bundle
    from vggdeploy.types import Verdict

    limits = Limits(
        relative_l2=tolerance,
        flip_rate=None if max_flips is None else max_flips / 100,
        accuracy_drop=None if max_accuracy_drop is None else max_accuracy_drop / 100,
    )
    if output is not None:
        layer_pictures.check(output, bundle, layers=layers)
    opened = Bundle.open(bundle)
    if rebuild:
        opened = rebuilt(opened, variants=variant or ())
    with render.stages() as stage:
        report = verify_bundle(
            opened,
            variants=variant or (),
            data=data,
            samples=samples,
            data_dir=data_dir,
            threads=threads,
            record=record,
            limits=limits,
            layers=layers,
            on_stage=stage,
        )
    report = with_command(report)
    if output is not None:
        layer_pictures.write(report, output)
    if json:
        render.emit_json(report)
    else:
        tables.parity_table(report)
        if report.verdict is Verdict.PASS:
            render.next_steps(f"vggdeploy bench {bundle}")
    return exit_code(report)
