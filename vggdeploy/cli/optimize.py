"""``vggdeploy optimize``: steps that make a model smaller or faster, each proven before it enters the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Threads, split_names

if TYPE_CHECKING:
    from vggdeploy.pipeline.calibration import Int8Options
    from vggdeploy.pipeline.tuning import Structure

STRUCTURE: Any = {"rich_help_panel": "Steps prune, low-rank and qat"}
INT8: Any = {"rich_help_panel": "Step int8"}
SEARCH: Any = {"rich_help_panel": "Search: without --step"}


# Options of one step are None where they are not given: given without their step, they are refused.
def optimize(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A bundle, or a checkpoint: what 'export' or 'train' made.")
    ],
    step: Annotated[
        str,
        typer.Option(
            "--step",
            metavar="STEP,STEP…",
            show_default="search",
            help="What to do, in this order: prune, low-rank, qat, openvino-fp32, openvino-bf16, int8.",
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The bundle or checkpoint to write. Default: a bundle is changed in place."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test images to prove variants on.", show_default="1000")
    ] = None,
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
        int | None,
        typer.Option(help="Epochs of fine-tuning of each changed network; 0 for none.", show_default="3"),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate of it.", show_default="0.01", **STRUCTURE)
    ] = None,
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
            help="Percentage points below the original, at most, with 95% confidence, on the validation split; else nothing "
            "is written, and the exit code is 4. int8 leaves layers in FP32 for it. Without --step: search the fastest "
            "variant that holds it.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The data set.", show_default="the one trained on")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="cpu, cuda or cuda:INDEX, for fine-tuning.",
            show_default="a GPU, if there is one",
            **STRUCTURE,
        ),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(help="A data set, or folder:PATH.", show_default="the one trained on", **INT8),
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(help="Training images to measure ranges on.", show_default="300", **INT8)
    ] = None,
    calibration_method: Annotated[
        str | None, typer.Option(help="min-max, entropy or percentile.", show_default="min-max", **INT8)
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Of the values that a range holds.", show_default="99.99", **INT8)
    ] = None,
    int8_for: Annotated[
        str | None, typer.Option(metavar="cpu,tensorrt", help="What for.", show_default="both", **INT8)
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds for one image, at most.", **SEARCH)] = None,
    max_size_mb: Annotated[
        float | None, typer.Option(help="Megabytes (10⁶ bytes) of the variant, at most.", **SEARCH)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|tensorrt-rtx:GPU,…",
            help="What to be fast on: this machine's CPU, or GPUs that an engine is built for unmeasured.",
            **SEARCH,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME|TRIALS", help="30m, 2h; or a number of trials.", show_default="30m", **SEARCH),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same one repeats the same choices.", show_default="0", **SEARCH)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted search.", **SEARCH)] = False,
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Change a model step by step, or search the fastest variant that keeps the accuracy; every variant is proven."""
    from vggdeploy.bundle import MANIFEST_NAME, Bundle
    from vggdeploy.bundle.checkpoint import read_checkpoint
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.structure_table import steps_table
    from vggdeploy.memory import return_large_blocks_at_once
    from vggdeploy.pipeline.optimize import CHECKPOINT_STEPS, ordered
    from vggdeploy.pipeline.optimize import optimize as run
    from vggdeploy.pipeline.samples import DEFAULT_SAMPLES
    from vggdeploy.pipeline.variants import Work

    steps = split_names(step)
    hunt = {"--max-latency-ms": max_latency_ms, "--max-size-mb": max_size_mb, "--target": target, "--budget": budget,
            "--seed": seed, "--resume": resume or None}  # fmt: skip
    int8_given = {
        "data": calibration_data,
        "images": calibration_images,
        "method": calibration_method,
        "percentile": percentile,
        "targets": None if int8_for is None else tuple(split_names(int8_for)),
    }
    if not steps:
        alone = {"--keep": keep, "--rank": rank, "--lr": lr, "--distill": distill, "--device": device}
        return _search(
            source,
            output,
            drop=max_accuracy_drop,
            hunt=hunt,
            foreign={**alone, **{f"--calibration-{name}": value for name, value in int8_given.items()}},
            settings={"epochs": epochs, "dataset": data, "samples": samples, "data_dir": data_dir, "threads": threads},
            force=force,
            json=json,
        )
    _refuse(hunt)
    ordered(steps)  # a slip in a name is answered before those in options of its step
    structure = _structure(
        steps,
        {
            "--keep": keep,
            "--rank": rank,
            "--rank-keep": rank_keep,
            "--epochs": epochs,
            "--lr": lr,
            "--distill": distill,
            "--max-accuracy-drop": max_accuracy_drop,
            "--data": data,
            "--device": device,
        },
    )
    int8 = _int8(steps, int8_given, max_accuracy_drop)
    return_large_blocks_at_once()
    with render.stages() as stage:
        work = Work(
            samples=DEFAULT_SAMPLES if samples is None else samples,
            data_dir=data_dir,
            threads=threads,
            on_stage=stage,
            structure=_reporting(structure, data_dir, threads, stage),
            int8=int8,
        )
        result = run(source, steps, output=output, work=work, overwrite=force)
    is_bundle = (result / MANIFEST_NAME).is_file()
    where = result / "checkpoint" if is_bundle else result
    if json:
        render.emit_json(Bundle.open(result, only=()).manifest if is_bundle else read_checkpoint(where))
        return 0
    if set(steps) & set(CHECKPOINT_STEPS):
        steps_table(read_checkpoint(where, check_weights=False))
    if is_bundle:
        tables.bundle_table(Bundle.open(result, only=()))
        render.next_steps(f"vggdeploy verify {result}", f"vggdeploy bench {result}")
        return 0
    render.next_steps(f"vggdeploy evaluate {result}", f"vggdeploy export {result} -o BUNDLE")
    return 0


def _refuse(hunt: dict[str, Any]) -> None:
    from vggdeploy.errors import UsageError

    given = [name for name, value in hunt.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} is for a search, which --step is not", "leave it out, or leave out --step")


def _search(
    source: Path,
    output: Path | None,
    *,
    drop: float | None,
    hunt: dict[str, Any],
    foreign: dict[str, Any],
    settings: dict[str, Any],
    force: bool,
    json: bool,
) -> int:
    from vggdeploy.cli.search import run_search
    from vggdeploy.records import Goal

    goal = None
    if drop is not None:
        goal = Goal(
            accuracy_drop=drop / 100,
            latency_ms=hunt["--max-latency-ms"],
            size_mb=hunt["--max-size-mb"],
            target=hunt["--target"] or "cpu",
        )
    chosen = {**settings, "seed": hunt["--seed"]}
    return run_search(
        source,
        output,
        goal=goal,
        budget=hunt["--budget"] or "30m",
        foreign=foreign,
        settings={name: value for name, value in chosen.items() if value is not None},
        resume=bool(hunt["--resume"]),
        force=force,
        json=json,
    )


def _structure(steps: list[str], given: dict[str, Any]) -> Structure:
    """The numbers of the steps prune, low-rank and qat.

    Raises:
        UsageError: an option of a step that is not asked for, or a value that makes no sense.
    """
    from vggdeploy.errors import UsageError
    from vggdeploy.pipeline.tuning import Job, Structure, Tuning
    from vggdeploy.types import Device

    needs = {
        "--keep": ("prune",),
        "--rank": ("low-rank",),
        "--rank-keep": ("low-rank",),
        "--max-accuracy-drop": ("prune", "low-rank", "qat", "int8"),
    }
    for option, value in given.items():
        wanted = needs.get(option, ("prune", "low-rank", "qat"))
        if value is not None and not set(wanted) & set(steps):
            raise UsageError(
                f"{option} is for the step {' or '.join(wanted)}", f"add --step {wanted[0]}, or leave it out"
            )
    tuning = {
        "epochs": given["--epochs"],
        "lr": given["--lr"],
        "distill": "" if given["--distill"] == "none" else given["--distill"],
    }
    drop = given["--max-accuracy-drop"]
    job = Job(
        tuning=Tuning(**{name: value for name, value in tuning.items() if value is not None}),
        max_drop=None if drop is None else drop / 100,
        dataset=given["--data"] or "",
        device=Device.parse(given["--device"]) if given["--device"] else None,
    )
    keep, rank = given["--keep"], given["--rank"]
    return Structure(
        keep=None if keep is None else _by_layer(keep, float, "--keep 0.5, or --keep conv4_1=0.5,fc6=0.25"),
        rank_keep=given["--rank-keep"],
        ranks=None if rank is None else _by_layer(rank, int, "--rank 64, or --rank fc6=128,conv3_1=60"),
        job=job,
    )


def _int8(steps: list[str], given: dict[str, Any], drop: float | None) -> Int8Options:
    """The options of the step int8.

    Raises:
        UsageError: some without that step, or a value that makes no sense.
    """
    from vggdeploy.errors import UsageError
    from vggdeploy.pipeline.calibration import Int8Options

    told = {name: value for name, value in given.items() if value is not None}
    if "int8" not in steps:
        if told:
            raise UsageError("options of INT8 without that step", f"add it: --step {','.join([*steps, 'int8'])}")
        return Int8Options()
    return Int8Options(**told, max_drop=None if drop is None else drop / 100)


def _by_layer(text: str, kind: type[float] | type[int], example: str) -> Any:
    """``"0.5"`` → 0.5; ``"fc6=0.5,fc7=0.25"`` → a number by layer."""
    from vggdeploy.errors import UsageError

    try:
        if "=" not in text:
            return kind(text)
        found = {}
        for part in split_names(text):
            name, _, value = part.partition("=")
            if name.strip() in found:
                raise UsageError(f"{name.strip()} is given twice", example)
            found[name.strip()] = kind(value)
        return found
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"'{text}' is not {what}, nor some by layer", example) from None


def _reporting(structure: Structure, data_dir: Path | None, threads: int | None, stage: Any) -> Structure:
    """The same, saying what is going on."""
    from dataclasses import replace

    def show(now: Any) -> None:
        if now.validation is not None:
            stage(f"fine-tuning: epoch {now.epoch}/{now.epochs}, loss {now.loss:.3f}, validation {now.validation:.2%}")

    job = replace(structure.job, data_dir=data_dir, threads=threads, on_stage=stage, on_progress=show)
    return replace(structure, job=job)
