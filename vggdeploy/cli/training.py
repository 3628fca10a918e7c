"""How a training run looks while it goes on, and at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from vggdeploy.cli import render
from vggdeploy.optional import require

if TYPE_CHECKING:
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.train.record import OnStep, TrainingReport, TrainingResult, TrainingStep
    from vggdeploy.types import Device


def speaks() -> bool:
    """Whether this process is the one that prints: of torchrun's processes only the first."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def run(
    recipe: Recipe,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    tensorboard: Path | None = None,
    data_dir: Path | None = None,
    device: Device | None = None,
    threads: int | None = None,
) -> TrainingResult:
    """Train with a progress bar on stderr; see `vggdeploy.train.loop.train`."""
    require("torch", to="train", extra="train")
    from vggdeploy.memory import memory_kept
    from vggdeploy.train.loop import TrainOptions, train

    with ExitStack() as stack:
        stack.enter_context(memory_kept())  # it changes the whole process: here it is ours
        shown: list[OnStep] = []
        if speaks():
            if tensorboard is not None:
                from vggdeploy.train.tensorboard import events

                shown.append(stack.enter_context(events(tensorboard)))
            shown.append(stack.enter_context(_bar(recipe)))

        def show(now: TrainingStep) -> None:
            for each in shown:
                each(now)

        return train(
            recipe,
            output=output,
            options=TrainOptions(overwrite=overwrite, resume=resume, data_dir=data_dir, device=device, threads=threads),
            on_step=show,
            on_note=(lambda text: render.note(f"[dim]{escape(text)}[/]")) if speaks() else None,
        )


@contextmanager
def _bar(recipe: Recipe) -> Iterator[OnStep]:
    """A bar with loss, accuracy and images/s on a terminal; in a log a line for each epoch."""
    with render.progress(f"reading {recipe.dataset}") as tell:

        def show(now: TrainingStep) -> None:
            text = f"loss {now.loss:.3f}  accuracy {now.accuracy:.1%}  {now.images_per_second:,.0f} images/s"
            tell(now.step / now.steps, f"epoch {now.epoch}/{now.epochs}  {text}")
            if now.validation is not None and now.test is not None:
                scores = f"validation {now.validation:.1%}  test {now.test:.1%}"
                render.note(f"[dim]epoch {now.epoch}/{now.epochs}  {text}  {scores}[/]")

        yield show


def draw(result: TrainingResult) -> None:
    """The curves as PNG and HTML, into the checkpoint. A run does not fail for want of a picture: it says what it needs."""
    from vggdeploy.errors import MissingDependencyError
    from vggdeploy.report.curves import write_curves

    try:
        write_curves(result.path)
    except MissingDependencyError as error:
        render.note(f"[dim]no pictures of the curves: {escape(error.cause)}; {escape(error.hint)}[/]")


def report(result: TrainingResult) -> TrainingReport:
    """What ``--json`` prints."""
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


def summary(result: TrainingResult) -> None:
    """The figures of a finished run, on stdout."""
    done = result.training
    threads = f" ({done.threads} threads)" if done.device == "cpu" else ""
    several = f", {done.processes} processes" if done.processes > 1 else ""
    render.out.print(
        f"loss {done.loss:.3f}, train accuracy {done.train_accuracy:.2%}, validation {done.validation_accuracy:.2%}, "
        f"[bold]test {done.test_accuracy:.2%}[/] of {done.samples['test']:,} images; "
        f"{done.images_per_second:,.0f} images/s on {done.device}{threads}{several} in {done.recipe.precision}, "
        f"{done.seconds:.1f} s in all"
    )
    render.out.print(f"checkpoint: {escape(result.path)}  [dim](epoch {done.best_epoch} of {len(done.history)})[/]")
