"""``vggdeploy train``: a checkpoint from a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy.cli.options import DataDir, DeviceName, Force, Json, Threads

if TYPE_CHECKING:
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.train.record import OnProgress, TrainingRecord, TrainingResult
    from vggdeploy.types import Device


# Options that are not given are None, so that the recipe's own value stands; the defaults in the help are tested against it.
def train(
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint's directory.")],
    arch: Annotated[
        str | None, typer.Option(help="vgg11, vgg13, vgg16 or vgg19, with or without _bn. Default: vgg11_bn.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="digits, mnist or fashion-mnist. Default: digits.")] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Width ratio: every convolution has this many times its channels. Default: 1.0."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of the input in pixels. Default: 32.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of fc6 and fc7. Default: 4096.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout after fc6 and fc7. Default: 0.5.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times that every training image is seen. Default: 6.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, at most. Default: 64.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate of SGD. Default: 0.05.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of SGD. Default: 0.9.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty. Default: 0.0005.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="How the learning rate goes on after warm-up: cosine or constant. Default: cosine."),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of all steps in which the learning rate rises. Default: 0.2.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Label smoothing. Default: 0.1.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, or bf16: faster where CPU or GPU has it. Weights are FP32 always. Default: fp32."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same weights on one machine. Default: 0.")
    ] = None,
    data_dir: DataDir = None,
    device: DeviceName = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a VGG on a data set, and write its checkpoint."""
    from vggdeploy.cli import render
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.types import Device

    given: dict[str, Any] = {
        "dataset": dataset,
        "arch": arch,
        "width": width,
        "hidden": hidden,
        "dropout": dropout,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup": warmup,
        "label_smoothing": label_smoothing,
        "precision": precision,
        "seed": seed,
    }
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
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
