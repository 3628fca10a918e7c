"""``vggdeploy verify``: prove a bundle's variants again, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli import render
from vggdeploy.cli.options import (
    BundlePath,
    DataDir,
    DeviceName,
    Json,
    Modes,
    Rebuild,
    Threads,
    check_modes,
    samples_from,
)
from vggdeploy.cli.render import escape
from vggdeploy.errors import UsageError

if TYPE_CHECKING:
    from vggdeploy.records import ParityReport

_FLEET = ("--fleet",)
MODES: Modes = {
    "-o": ("--layers",),
    "--samples": ("without --data golden",),
    "--target": _FLEET,
    "--timeout": _FLEET,
    "--prepare": _FLEET,
}


def verify(
    context: typer.Context,
    bundle: BundlePath,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; may be repeated.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only this backend's variants; may be repeated.")] = None,
    device: DeviceName = None,
    data: Annotated[
        str,
        typer.Option(
            help="Data set to prove on, folder:PATH for your own, golden for the golden pair alone. "
            "Default: the one trained on.",
        ),
    ] = "",
    samples: Annotated[str, typer.Option(metavar="N|all", help="Test images to prove on.")] = "1000",
    max_flips: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Share of top-1 classes that may change.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Percentage points of accuracy that may be lost.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest relative L2 distance of an output.")] = None,
    min_cosine: Annotated[float | None, typer.Option(help="Smallest cosine similarity of a sample.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Name the layer at which a failing ONNX variant leaves the reference.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A directory for the pictures of --layers (PNG, HTML).")
    ] = None,
    strict_preprocess: Annotated[
        bool,
        typer.Option(
            "--strict-preprocess",
            help="Compare decoding, resizing and cropping with golden arrays and torchvision, too.",
        ),
    ] = False,
    fleet: Annotated[
        bool,
        typer.Option("--fleet", help="Also run the golden pair on emulated CPUs, in WebAssembly and in Chromium."),
    ] = False,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="With --fleet: only this target; may be repeated.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="With --fleet: for one variant on one target.")
    ] = 600,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="With --fleet: fetch what is missing into the user's cache (npm, apt-get, pip)."
        ),
    ] = False,
    data_dir: DataDir = None,
    threads: Threads = None,
    record: Annotated[bool, typer.Option("--record", help="Write the verdicts to the bundle's manifest.")] = False,
    rebuild: Rebuild = False,
    json: Json = False,
) -> int:
    """Compare every variant, from its shipped bytes, with the FP32 PyTorch reference."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import tables
    from vggdeploy.cli.options import rebuilt, with_command
    from vggdeploy.types import Device, Verdict
    from vggdeploy.verify.fleet.fleet import FleetOptions
    from vggdeploy.verify.fleet.targets import find_targets
    from vggdeploy.verify.prove import Limits
    from vggdeploy.verify.verify import VerifyOptions, exit_code, verify_bundle

    check_modes(context, MODES)
    limits = Limits.in_percent(
        tolerance=tolerance, min_cosine=min_cosine, max_flips=max_flips, max_accuracy_drop=max_accuracy_drop
    )
    if output is not None:
        check_pictures(output, bundle)
    count = samples_from(samples)
    targets = find_targets(target or ())
    where = Device.parse(device) if device else None
    opened = Bundle.open(bundle)
    if rebuild:
        opened = rebuilt(opened, backends=backend or (), variants=variant or (), device=device)
    with render.progress("starting") as tell:
        for chosen in targets if prepare else ():
            chosen.prepare(tell)
        report = verify_bundle(
            opened,
            VerifyOptions(
                variants=variant or (),
                backends=backend or (),
                device=where,
                data=data,
                samples=count,
                data_dir=data_dir,
                threads=threads,
                record=record,
                limits=limits,
                layers=layers,
                strict_preprocess=strict_preprocess,
                fleet=FleetOptions(targets, timeout, threads, limits) if fleet else None,
            ),
            on_progress=tell,
        )
    report = with_command(report)
    if output is not None:
        write_pictures(report, output)
    if json:
        render.emit_json(report)
    else:
        tables.parity_table(report)
        if report.verdict is Verdict.PASS:
            render.next_steps(f"vggdeploy bench {bundle}")
    return exit_code(report)


def check_pictures(output: Path, bundle: Path) -> None:
    """Find out before the work whether pictures can be drawn, and may stand there.

    Raises:
        UsageError: the files of a bundle are fixed.
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    from vggdeploy.report.pictures import need_plots

    if output.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"{output} is part of a bundle, whose files are fixed", "give another directory: -o DIR")
    need_plots()


def write_pictures(report: ParityReport, output: Path) -> None:
    """Draw, and say where: on stderr, so that ``--json`` stays one document."""
    from vggdeploy.report.pictures import write_layers

    for file in write_layers(report.layers, output):
        render.note(f"[dim]picture:[/] {escape(str(file))}")
    if not report.layers:
        render.note("[dim]no picture: no ONNX variant failed, so no layers were compared[/]")
