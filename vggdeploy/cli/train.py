"""``vggdeploy train``: a checkpoint from a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import DataDir, DeviceName, Force, Json, Threads
from vggdeploy.train.recipe import Recipe

if TYPE_CHECKING:
    from vggdeploy.train.record import OnProgress, TrainingRecord, TrainingResult
    from vggdeploy.types import Device

_DEFAULT = Recipe()


def train(
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint's directory.")],
    arch: Annotated[
        str, typer.Option("--arch", help="vgg11, vgg13, vgg16 or vgg19, with or without _bn.")
    ] = _DEFAULT.arch,
    dataset: Annotated[str, typer.Option("--dataset", help="digits, mnist or fashion-mnist.")] = _DEFAULT.dataset,
    width: Annotated[
        float, typer.Option(help="Width ratio: every convolution has this many times its channels.")
    ] = _DEFAULT.width,
    image_size: Annotated[int, typer.Option(help="Height and width of the input in pixels.")] = _DEFAULT.image_size,
    hidden: Annotated[int, typer.Option(help="Width of fc6 and fc7.")] = _DEFAULT.hidden,
    dropout: Annotated[float, typer.Option(help="Dropout after fc6 and fc7.")] = _DEFAULT.dropout,
    epochs: Annotated[int, typer.Option(help="Times that every training image is seen.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Images a step, at most.")] = _DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Highest learning rate of SGD.")] = _DEFAULT.lr,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = _DEFAULT.momentum,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty.")] = _DEFAULT.weight_decay,
    schedule: Annotated[
        str, typer.Option(help="How the learning rate goes on after warm-up: cosine or constant.")
    ] = _DEFAULT.schedule,
    warmup: Annotated[float, typer.Option(help="Share of all steps in which the rate rises.")] = _DEFAULT.warmup,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = _DEFAULT.label_smoothing,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16: faster where the CPU or GPU has it. Weights are FP32 always.")
    ] = _DEFAULT.precision.value,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights on one machine.")] = _DEFAULT.seed,
    data_dir: DataDir = None,
    device: DeviceName = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a VGG on a data set, and write its checkpoint."""
    from vggdeploy.cli import render
    from vggdeploy.types import Device

    recipe = Recipe(
        dataset=dataset,
        arch=arch,
        width=width,
        hidden=hidden,
        dropout=dropout,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,  # type: ignore[arg-type]  # the recipe checks it
        warmup=warmup,
        label_smoothing=label_smoothing,
        precision=precision,  # type: ignore[arg-type]  # the recipe checks it
        seed=seed,
    )
    where = Device.parse(device) if device else None
    result = _run(recipe, output, overwrite=force, data_dir=data_dir, device=where, threads=threads)
    if json:
        render.emit_json(_report(result))
        return
    _summary(result)
    bundle = output.with_name(f"{output.name.removesuffix('-ckpt')}-bundle")
    render.next_steps(f"vggdeploy export {output} -o {bundle}")


def run_training(
    recipe: Recipe,
    *,
    output: Path,
    overwrite: bool = False,
    data_dir: Path | None = None,
    device: Device | None = None,
    threads: int | None = None,
) -> TrainingRecord:
    """Train with a progress bar on stderr, and print the result on stdout; see `vggdeploy.train.loop.train`."""
    result = _run(recipe, output, overwrite=overwrite, data_dir=data_dir, device=device, threads=threads)
    _summary(result)
    return result.training


def _run(
    recipe: Recipe, output: Path, *, overwrite: bool, data_dir: Path | None, device: Device | None, threads: int | None
) -> TrainingResult:
    from vggdeploy.optional import require

    require("torch", to="train", extra="train")
    from vggdeploy.train.loop import train as train_network

    with _progress(recipe) as on_progress:
        return train_network(
            recipe,
            output=output,
            overwrite=overwrite,
            data_dir=data_dir,
            device=device,
            threads=threads,
            on_progress=on_progress,
        )


@contextmanager
def _progress(recipe: Recipe) -> Iterator[OnProgress]:
    """A bar with loss, accuracy and images/s on a terminal; in a log a line for each epoch."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vggdeploy.cli import render
    from vggdeploy.train import record

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=render.err, transient=True, disable=not render.err.is_terminal) as bar:
        task = bar.add_task(f"reading {recipe.dataset}", total=None)

        def show(now: record.Progress) -> None:
            text = f"loss {now.loss:.3f}  accuracy {now.accuracy:.1%}  {now.images_per_second:,.0f} images/s"
            bar.update(task, description=f"epoch {now.epoch}/{now.epochs}  {text}", total=now.steps, completed=now.step)
            if now.validation is not None:
                render.note(f"[dim]epoch {now.epoch}/{now.epochs}  {text}  validation {now.validation:.1%}[/]")

        yield show


def _report(result: TrainingResult) -> object:
    from vggdeploy.model.summary import summarise
    from vggdeploy.train.record import TrainingReport

    spec = result.checkpoint.spec
    return TrainingReport(
        checkpoint=result.path,
        spec=spec,
        parameters=summarise(spec).parameters,
        weights_sha256=result.checkpoint.weights_sha256,
        training=result.training,
    )


def _summary(result: TrainingResult) -> None:
    from rich.markup import escape

    from vggdeploy.cli import render

    run = result.training
    threads = f" ({run.threads} threads)" if run.device == "cpu" else ""
    render.out.print(
        f"loss {run.loss:.3f}, train accuracy {run.train_accuracy:.2%}, validation {run.validation_accuracy:.2%}, "
        f"[bold]test {run.test_accuracy:.2%}[/] of {run.samples['test']:,} images; "
        f"{run.images_per_second:,.0f} images/s on {run.device}{threads}, {run.seconds:.1f} s in all"
    )
    render.out.print(f"checkpoint: {escape(result.path)}  [dim](epoch {run.best_epoch} of {len(run.history)})[/]")
