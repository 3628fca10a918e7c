"""``vggdeploy refit``: the weights of another checkpoint in an engine that is not built again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, DataDir, Force, Json, Threads


def refit(
    bundle: BundlePath,
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A checkpoint of the same network: the directory that 'train' made."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this engine; may be repeated. Default: all that take other weights.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Test images to prove the exported variants on.")] = 1000,
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export a checkpoint beside engines that were built without weights (build --strip any), and prove them with its own."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render, tables
    from vggdeploy.export.bundle import ExportOptions
    from vggdeploy.export.refit import refit_bundle

    options = ExportOptions(samples=samples, data_dir=data_dir, threads=threads, overwrite=force)
    opened = Bundle.open(bundle)
    with render.progress("starting") as tell:
        fresh = refit_bundle(opened, checkpoint, output, variants=variant or (), options=options, on_progress=tell)
    if json:
        render.emit_json(fresh.manifest)
        return
    tables.bundle_table(fresh)
    render.next_steps(f"vggdeploy verify {output}")
