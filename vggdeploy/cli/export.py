"""``vggdeploy export``: a checkpoint, or weights from elsewhere, become a bundle of proven variants."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Threads
from vggdeploy.errors import UsageError

if TYPE_CHECKING:
    from vggdeploy.bundle.checkpoint import Checkpoint

ELSEWHERE: Any = {"rich_help_panel": "Weights from elsewhere"}


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="The directory that 'train' made; torchvision:vgg16; or a .pth or .safetensors of torchvision's, timm's or "
            "an nn.Sequential VGG.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")],
    formats: Annotated[
        str, typer.Option(help="Variants to export, comma-separated.")
    ] = "onnx-fp32,onnx-fp16,torchscript-fp32",
    outputs: Annotated[
        str | None,
        typer.Option(help="Graph outputs, comma-separated: logits, fc7, relu4_2, …", show_default="logits"),
    ] = None,
    graph_input: Annotated[
        str, typer.Option("--input", help="uint8: pixels, preprocessing inside. float32: normalised by you.")
    ] = "uint8",
    max_batch: Annotated[int, typer.Option(help="The largest batch the variants accept.")] = 256,
    samples: Annotated[int, typer.Option(help="Test images to prove the variants on.")] = 1000,
    weights: Annotated[
        Path | None, typer.Option(help="The file of a torchvision name, instead of a download.", **ELSEWHERE)
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="The network: vgg11 … vgg19_bn. Default: from the shapes.", **ELSEWHERE)
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Convolutions x channels between pools: 1x64,1x128,2x256.", **ELSEWHERE)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width in pixels. Default: from fc6.", **ELSEWHERE)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", help="What follows each linear layer: relu,relu,none; avg,none behind a global pool.", **ELSEWHERE
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A text file, a label a line, a JSON list, or imagenet.", **ELSEWHERE)
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Mean of each channel, or one for all, 0–1. Default: ImageNet's.", **ELSEWHERE),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Deviation of each channel, or one for all, 1/255 to 1. Default: ImageNet's.", **ELSEWHERE),
    ] = None,
    resize: Annotated[
        int | None, typer.Option(help="Shorter side before the crop. Default: 8/7 of the size.", **ELSEWHERE)
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="nearest, bilinear, bicubic or lanczos. Default: bilinear.", **ELSEWHERE)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What the bundle is called, by its server too.", show_default="its directory's name"),
    ] = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export ONNX and TorchScript, prove them against the FP32 model, and write a bundle."""
    from vggdeploy.bundle.checkpoint import read_checkpoint
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.options import split_names
    from vggdeploy.cli.render import escape
    from vggdeploy.export.bundle import ExportOptions, export_bundle
    from vggdeploy.export.source import SourceOptions, checkpoint_of
    from vggdeploy.system.machine import return_large_blocks_at_once
    from vggdeploy.types import MAX_BATCH, BatchRange

    if not 1 <= max_batch <= MAX_BATCH:
        raise UsageError(
            f"--max-batch is {max_batch}, which is out of range", f"give 1 to {MAX_BATCH}, for example --max-batch 32"
        )
    return_large_blocks_at_once()
    about = SourceOptions(
        weights=weights,
        arch=arch,
        blocks=blocks,
        image_size=image_size,
        head=head,
        labels=labels,
        mean=_per_channel(mean),
        std=_per_channel(std),
        resize=resize,
        interpolation=interpolation,
    )
    with (
        # The bar of a download is its own.
        render.progress("" if source.startswith("torchvision:") else f"reading {source}") as tell,
        checkpoint_of(source, output, about, overwrite=force) as (checkpoint, report),
    ):
        for line in report.lines() if report else ():
            render.note(escape(line))
        bundle = export_bundle(
            checkpoint,
            output,
            ExportOptions(
                formats=split_names(formats),
                outputs=None if outputs is None else split_names(outputs),
                input_dtype=graph_input,
                batch=BatchRange(1, min(8, max_batch), max_batch),
                samples=samples,
                data_dir=data_dir,
                threads=threads,
                overwrite=force,
                name=name or name_of(output, read_checkpoint(checkpoint, check_weights=False)),
            ),
            on_progress=tell,
        )
    if json:
        render.emit_json(bundle.manifest)
        return
    tables.bundle_table(bundle)
    render.next_steps(
        f"vggdeploy bench {output}",
        f"vggdeploy {'predict' if bundle.manifest.spec.classes else 'embed'} {output} IMAGE",
        f"vggdeploy build {output} --engine tensorrt-rtx",
    )


# Directories whose names say nothing of what lies in them.
_ANY = frozenset(("artifacts", "b", "bundle", "export", "exported", "model", "out", "output"))


def name_of(output: Path, checkpoint: Checkpoint) -> str:
    """The name of a bundle that got none: its directory's, or, where that could be any bundle's, the network and its data."""
    directory = Path(os.path.abspath(output)).name  # noqa: PTH100  # of "." too
    if directory.lower() not in _ANY:
        return directory
    data = re.sub(
        r"[^A-Za-z0-9._-]+", "-", Path(checkpoint.dataset.partition(":")[2] or checkpoint.dataset).name
    ).strip("-")
    return f"{checkpoint.spec.arch}-{data}" if data else checkpoint.spec.arch


def _per_channel(text: str | None) -> tuple[float, ...] | None:
    """``"0.485,0.456,0.406"`` → three numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"'{text}' is not a list of numbers", "give one for each channel, such as 0.5,0.5,0.5"
        ) from None
