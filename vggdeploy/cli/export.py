"""``vggdeploy export``: a checkpoint becomes a bundle of proven variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Threads


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The directory that 'train' made.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")],
    formats: Annotated[
        str, typer.Option("--formats", help="Variants to export, comma-separated.")
    ] = "onnx-fp32,onnx-fp16,torchscript-fp32",
    outputs: Annotated[str, typer.Option("--outputs", help="Graph outputs, comma-separated: logits, fc7, relu4_2, …")] = (
        "logits"
    ),
    graph_input: Annotated[
        str, typer.Option("--input", help="uint8: pixels, preprocessing inside. float32: normalised by you.")
    ] = "uint8",
    max_batch: Annotated[int, typer.Option("--max-batch", help="The largest batch the variants accept.")] = 256,
    samples: Annotated[int, typer.Option("--samples", help="Test images to prove the variants on.")] = 1000,
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export ONNX and TorchScript, prove them against the FP32 model, and write a bundle."""
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.options import split_names
    from vggdeploy.pipeline.export import export_bundle
    from vggdeploy.pipeline.memory import return_large_blocks_at_once
    from vggdeploy.types import BatchRange

    return_large_blocks_at_once()
    with render.stages() as stage:
        bundle = export_bundle(
            checkpoint,
            output,
            formats=split_names(formats),
            outputs=split_names(outputs),
            input_dtype=graph_input,
            batch=BatchRange(1, min(8, max_batch), max_batch),
            samples=samples,
            data_dir=data_dir,
            threads=threads,
            overwrite=force,
            on_stage=stage,
        )
    if json:
        render.emit_json(bundle.manifest)
        return
    tables.bundle_table(bundle)
    render.next_steps(
        f"vggdeploy build {output} --engine tensorrt-rtx",
        f"vggdeploy bench {output}",
        f"vggdeploy predict {output} IMAGE",
    )
