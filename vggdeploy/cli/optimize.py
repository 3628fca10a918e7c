"""``vggdeploy optimize``: steps that make a model smaller or faster, each proven before it enters the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Modes, Threads, check_modes, split_names

if TYPE_CHECKING:
    from vggdeploy.optimize.tuning import Structure
    from vggdeploy.types import OnProgress

STRUCTURE: Any = {"rich_help_panel": "Steps prune, low-rank, sparse and qat"}
INT8: Any = {"rich_help_panel": "Steps int8 and fp8"}
_CALIBRATED = ("--step int8", "--step fp8")
_CHANGES = ("--step prune", "--step low-rank", "--step sparse", "--step qat")
MODES: Modes = {
    "--samples": (*_CALIBRATED, "--step openvino-fp32", "--step openvino-bf16", "--step torch-tf32"),
    "--keep": ("--step prune",),
    **dict.fromkeys(("--rank", "--rank-keep"), ("--step low-rank",)),
    **dict.fromkeys(("--epochs", "--lr", "--distill", "--data", "--device"), _CHANGES),
    "--max-accuracy-drop": (*_CHANGES, *_CALIBRATED),
    **dict.fromkeys(
        ("--calibration-data", "--calibration-images", "--calibration-method", "--percentile"), _CALIBRATED
    ),
    "--int8-for": ("--step int8",),
}


def optimize(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A bundle, or a checkpoint: what 'export' or 'train' made.")
    ],
    step: Annotated[
        str,
        typer.Option(
            metavar="STEP,STEP…",
            help="What to do, in this order: prune, low-rank, sparse, qat, openvino-fp32, openvino-bf16, torch-tf32, "
            "int8, fp8.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The bundle or checkpoint to write. Default: a bundle is changed in place."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Test images to prove variants on.")] = 1000,
    keep: Annotated[
        str | None,
        typer.Option(
            help="For prune: the share of the multiply-accumulates that stays, as 0.5; or of the channels of some layers, "
            "as conv4_1=0.5,fc6=0.25.",
            **STRUCTURE,
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            help="For low-rank: the rank of fc6 and fc7, as 64; or by layer, as fc6=128,conv3_1=60.", **STRUCTURE
        ),
    ] = None,
    rank_keep: Annotated[
        float | None,
        typer.Option(
            help="For low-rank, instead: the share of the multiply-accumulates that stays; ranks are chosen, those of "
            "convolutions too.",
            **STRUCTURE,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Epochs of fine-tuning of each changed network; 0 for none.", **STRUCTURE)
    ] = 3,
    lr: Annotated[float, typer.Option(help="Highest learning rate of it.", **STRUCTURE)] = 0.01,
    distill: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT|none",
            help="The teacher of the fine-tuning; none for labels alone.",
            show_default="SOURCE",
            **STRUCTURE,
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Percentage points below the original, at most, with one-sided 95% confidence, on the validation split; else "
            "nothing is written, and the exit code is 4. int8 and fp8 leave layers in FP32 for it.",
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="The data set.", show_default="the one trained on", **STRUCTURE)] = "",
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or cuda:INDEX, for fine-tuning.",
            show_default="a GPU, if there is one",
            **STRUCTURE,
        ),
    ] = None,
    calibration_data: Annotated[
        str, typer.Option(help="A data set, or folder:PATH.", show_default="the one trained on", **INT8)
    ] = "",
    calibration_images: Annotated[int, typer.Option(help="Training images to measure ranges on.", **INT8)] = 300,
    calibration_method: Annotated[str, typer.Option(help="min-max, entropy or percentile.", **INT8)] = "min-max",
    percentile: Annotated[
        float | None, typer.Option(help="Of the values that a range holds.", show_default="99.99", **INT8)
    ] = None,
    int8_for: Annotated[
        str, typer.Option(metavar="cpu,tensorrt", help="What int8 is for: either, or both.", **INT8)
    ] = "cpu,tensorrt",
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Make a model smaller or faster, step by step; every new variant is proven."""
    from vggdeploy.bundle import MANIFEST_NAME, Bundle
    from vggdeploy.bundle.checkpoint import read_checkpoint
    from vggdeploy.cli import render, tables
    from vggdeploy.optimize.optimize import CHECKPOINT_STEPS, ordered
    from vggdeploy.optimize.optimize import optimize as run
    from vggdeploy.optimize.steps.calibration import Int8Options
    from vggdeploy.optimize.tuning import Structure, Tuning, TuningJob
    from vggdeploy.optimize.variants import StepContext
    from vggdeploy.system.machine import return_large_blocks_at_once
    from vggdeploy.types import Device

    steps = split_names(step)
    ordered(steps)  # a slip in a name is answered before those in options of its step
    check_modes(context, MODES)
    limit = None if max_accuracy_drop is None else max_accuracy_drop / 100
    structure = Structure(
        keep=None if keep is None else _by_layer(keep, float, "--keep 0.5, or --keep conv4_1=0.5,fc6=0.25"),
        rank_keep=rank_keep,
        ranks=None if rank is None else _by_layer(rank, int, "--rank 64, or --rank fc6=128,conv3_1=60"),
        job=TuningJob(
            tuning=Tuning(epochs=epochs, lr=lr, distill="" if distill == "none" else distill),
            max_drop=limit,
            dataset=data,
            data_dir=data_dir,
            device=Device.parse(device) if device else None,
            threads=threads,
        ),
    )
    int8 = Int8Options(
        data=calibration_data,
        images=calibration_images,
        method=calibration_method,
        percentile=percentile,
        targets=tuple(split_names(int8_for)),
        max_drop=limit if {"int8", "fp8"} & set(steps) else None,
    )
    return_large_blocks_at_once()
    with render.progress("starting") as tell:
        work = StepContext(
            samples=samples,
            data_dir=data_dir,
            threads=threads,
            on_progress=tell,
            structure=_reporting(structure, tell),
            int8=int8,
        )
        result = run(source, steps, output=output, work=work, overwrite=force)
    is_bundle = (result / MANIFEST_NAME).is_file()
    where = result / "checkpoint" if is_bundle else result
    if json:
        render.emit_json(Bundle.open(result, only=()).manifest if is_bundle else read_checkpoint(where))
        return 0
    if set(steps) & set(CHECKPOINT_STEPS):
        tables.steps_table(read_checkpoint(where, check_weights=False))
    if is_bundle:
        tables.bundle_table(Bundle.open(result, only=()))
        render.next_steps(f"vggdeploy verify {result}", f"vggdeploy bench {result}")
        return 0
    render.next_steps(f"vggdeploy evaluate {result}", f"vggdeploy export {result} -o BUNDLE")
    return 0


def _by_layer(text: str, kind: type[float] | type[int], example: str) -> Any:
    """``"0.5"`` → 0.5; ``"fc6=0.5,fc7=0.25"`` → a number by layer."""
    from vggdeploy.errors import UsageError

    try:
        if "=" not in text:
            return kind(text)
        numbers = {}
        for part in split_names(text):
            name, _, value = part.partition("=")
            if name.strip() in numbers:
                raise UsageError(f"{name.strip()} is given twice", example)
            numbers[name.strip()] = kind(value)
        return numbers
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"'{text}' is neither {what} nor numbers by layer", example) from None


def _reporting(structure: Structure, tell: OnProgress) -> Structure:
    """The same, saying what is going on."""
    from dataclasses import replace

    def show(now: Any) -> None:
        if now.validation is not None:
            tell(
                None,
                f"fine-tuning: epoch {now.epoch}/{now.epochs}, loss {now.loss:.3f}, validation {now.validation:.2%}",
            )

    return replace(structure, job=replace(structure.job, on_progress=tell, on_step=show))
