"""``vggdeploy optimize``: steps that make a model smaller or faster, each proven before it enters the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Threads


def optimize(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A bundle, or a checkpoint: what 'export' or 'train' made.")
    ],
    step: Annotated[
        str,
        typer.Option("--step", metavar="STEP,STEP…", help="What to do, in this order: openvino-fp32, openvino-bf16."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The bundle or checkpoint to write. Default: a bundle is changed in place."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Test images to prove variants on.")] = 1000,
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Change a model step by step, and prove every variant that comes of it."""
    from vggdeploy.bundle import MANIFEST_NAME, Bundle
    from vggdeploy.bundle.checkpoint import read_checkpoint
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.options import split_names
    from vggdeploy.memory import return_large_blocks_at_once
    from vggdeploy.pipeline.optimize import optimize as run
    from vggdeploy.pipeline.variants import Work

    return_large_blocks_at_once()
    with render.stages() as stage:
        work = Work(samples=samples, data_dir=data_dir, threads=threads, on_stage=stage)
        result = run(source, split_names(step), output=output, work=work, overwrite=force)
    if (result / MANIFEST_NAME).is_file():
        bundle = Bundle.open(result, only=())
        if json:
            render.emit_json(bundle.manifest)
            return
        tables.bundle_table(bundle)
        render.next_steps(f"vggdeploy verify {result}", f"vggdeploy bench {result}")
        return
    if json:
        render.emit_json(read_checkpoint(result, check_weights=False))
        return
    render.next_steps(f"vggdeploy evaluate {result}", f"vggdeploy export {result} -o BUNDLE")
