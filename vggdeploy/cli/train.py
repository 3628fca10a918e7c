"""``vggdeploy train``: a checkpoint from a data set."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy.cli import render
from vggdeploy.cli.options import DataDir, DeviceName, Force, Json, Threads, split_names
from vggdeploy.cli.render import escape
from vggdeploy.errors import counted
from vggdeploy.system.optional import require

if TYPE_CHECKING:
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.train.record import OnScoring, OnStep, Scoring, TrainingReport, TrainingResult, TrainingStep


# What belongs to a run, not to the recipe.
_RUN = ("output", "recipe", "resume", "skip_bad", "tensorboard", "data_dir", "device", "threads", "force", "json")


_CLASSIC = (
    "classic departs from Dive into Deep Learning, section 8.2: images are normalised, a twelfth is held out, 4 epochs of 10, "
    "bf16 where it is faster; to the letter: --recipe textbook"
)


# Options that are not given are None, so that the recipe's own value stands; the defaults in the help are those without
# --recipe, and tested.
def train(
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint's directory.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="classic, textbook, modern, fast, or a TOML file. Options override its values."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="digits, mnist, fashion-mnist, cifar10 or folder:PATH. Default: digits.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="With folder:PATH: leave out images that cannot be used, and name them.")
    ] = False,
    per_class: Annotated[
        int | None, typer.Option(help="Train on so many images of each class only; 0 for all. Default: 0.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(help="Take so many images of each split only, for a short try; 0 for all. Default: 0.")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="Any of flip,crop,shift,rotate,colour, with commas; or none. Default: none.")
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option("--normalise/--no-normalise", help="Take off mean and std of the data set. Default: True."),
    ] = None,
    hold_out: Annotated[
        bool | None,
        typer.Option(
            "--hold-out/--no-hold-out", help="Keep images back for validation; else the test's do. Default: True."
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="vgg11, vgg13, vgg16 or vgg19, with or without _bn; or init, the network of --init. Default: vgg11_bn."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Any other stack: convolutions x channels of each block, as in 1x64,1x128,2x256.")
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Width ratio: every convolution has this many times its channels. Default: 1.0."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of the input in pixels. Default: 32.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="1 for grey, 3 for RGB, 0 for what the data set has. Default: 0.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of fc6 and fc7. Default: 4096.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout after fc6 and fc7. Default: 0.5.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: a checkpoint, torchvision:NAME, a .pth or .safetensors.")
    ] = None,
    fresh: Annotated[
        str | None,
        typer.Option(
            help="With --init, what starts anew: nothing, head, classifier; auto is head if classes differ. Default: auto."
        ),
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(help="With --init: features, or the number of first convolutions. Default: none.")
    ] = None,
    unfreeze_every: Annotated[
        int | None,
        typer.Option(help="Every so many epochs train one more frozen block, the last first; 0 for never. Default: 0."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Times that every training image is seen. Default: 6.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="End after so many steps, for a short try; 0 for all epochs. Default: 0.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, at most. Default: 64.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adamw or muon. Default: sgd.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; with muon an angle in radians. Default: 0.05.")
    ] = None,
    lr_features: Annotated[
        float | None, typer.Option(help="Highest learning rate of the convolutions, where it is another one.")
    ] = None,
    lr_rest: Annotated[
        float | None,
        typer.Option(help="Highest learning rate of biases and batch norms (with muon of linear layers, too)."),
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of SGD and Muon; β₁ of AdamW. Default: 0.9.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Pull of weights (not of biases and batch norms) to 0. Default: 0.0005.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="The learning rate after warm-up: cosine, step, one-cycle or constant. Default: cosine."),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of all steps in which the learning rate rises. Default: 0.2.")
    ] = None,
    step_every: Annotated[
        int | None, typer.Option(help="With --schedule step: after how many epochs. Default: 2.")
    ] = None,
    step_factor: Annotated[float | None, typer.Option(help="With --schedule step: by how much. Default: 0.1.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Label smoothing. Default: 0.1.")] = None,
    distill: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="A teacher: learn from its answers beside the labels.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="With --distill: how much the teacher's answers are softened. Default: 4.0.")
    ] = None,
    distill_weight: Annotated[
        float | None, typer.Option(help="With --distill: the share of the loss that is the teacher's. Default: 0.9.")
    ] = None,
    quantisation_aware: Annotated[
        bool | None,
        typer.Option(
            "--quantisation-aware/--no-quantisation-aware", help="Train with the rounding of INT8. Default: False."
        ),
    ] = None,
    keep_zeros: Annotated[
        bool | None,
        typer.Option("--keep-zeros/--no-keep-zeros", help="Weights that begin as 0 stay 0. Default: False."),
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of all gradients together; 0 for any. Default: 0.0.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Weights to keep: of the best epoch in validation, or the last. Default: best.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better validation; 0 for never. Default: 0.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16 (GPU). Weights are FP32 always. Default: auto.")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the network first (torch.compile).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same weights on one machine. Default: 0.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the interrupted run of this output. It needs no other option."),
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write TensorBoard events into this directory, as they come.")
    ] = None,
    data_dir: DataDir = None,
    device: DeviceName = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a VGG on a data set, and write its checkpoint."""
    # Before any other local: the recipe's keys are the options' names.
    given = {name.rstrip("_"): value for name, value in locals().items() if name not in _RUN and value is not None}
    from msgspec.structs import replace

    from vggdeploy.data.folder import skipping
    from vggdeploy.train.recipe_file import resolve_recipe
    from vggdeploy.types import Device

    if augment is not None:
        given["augment"] = tuple(name for name in split_names(augment) if name != "none")
    with _told_how_to_go_on(output, tensorboard):
        resolved = resolve_recipe(recipe or (_interrupted(output) if resume else None), given)
        if recipe == "classic":
            render.note(f"[dim]{_CLASSIC}[/]")
        if skip_bad:
            resolved = replace(resolved, dataset=skipping(resolved.dataset))
        result = run(
            resolved,
            output,
            tensorboard=tensorboard,
            overwrite=force,
            resume=resume,
            data_dir=data_dir,
            device=Device.parse(device) if device else None,
            threads=threads,
            save_on_interrupt=True,
        )
    if not speaks():
        return
    draw(result)
    if json:
        render.emit_json(report_of(result))
        return
    print_summary(result)
    bundle = output.with_name(f"{output.name.removesuffix('-ckpt')}-bundle")
    render.next_steps(f"vggdeploy export {output} -o {bundle}")


def _interrupted(output: Path) -> Recipe:
    """The recipe of the run that goes on."""
    require("torch", to="train", extra="train")
    from vggdeploy.train.state import Saver

    return Saver(output).standing().recipe


@contextmanager
def _told_how_to_go_on(output: Path, tensorboard: Path | None) -> Iterator[None]:
    """After Ctrl-C and SIGTERM the line that goes on, where there is something to go on from."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        from vggdeploy.train.state import Saver

        saver = Saver(output)
        if speaks() and saver.found():
            step = saver.standing().step
            render.note(f"{step:,} {'step is' if step == 1 else 'steps are'} saved in {escape(str(saver.directory))}")
            events = ["--tensorboard", str(tensorboard)] if tensorboard else []
            line = shlex.join(["vggdeploy", "train", "-o", str(output), *events, "--resume"])
            render.next_steps(line if "TORCHELASTIC_RUN_ID" not in os.environ else f"{line}, with torchrun as before")
        raise


def speaks() -> bool:
    """Whether this process is the one that prints: of torchrun's processes only the first."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def run(
    recipe: Recipe,
    output: Path,
    *,
    tensorboard: Path | None = None,
    **options: Any,
) -> TrainingResult:
    """Train with a progress bar on stderr; ``options`` are those of `vggdeploy.train.loop.TrainOptions`."""
    require("torch", to="train", extra="train")
    from vggdeploy.system.machine import memory_kept
    from vggdeploy.train.loop import TrainOptions, train

    with ExitStack() as stack:
        stack.enter_context(memory_kept())  # it changes the whole process: here it is ours
        shown: list[OnStep] = []
        scoring: OnScoring | None = None
        if speaks():
            if tensorboard is not None:
                from vggdeploy.train.record import events

                shown.append(stack.enter_context(events(tensorboard)))
            bar, scoring = stack.enter_context(_bar(recipe))
            shown.append(bar)

        def show(now: TrainingStep) -> None:
            for each in shown:
                each(now)

        return train(
            recipe,
            output=output,
            options=TrainOptions(**options),
            on_step=show,
            on_scoring=scoring,
            on_note=(lambda text: render.note(f"[dim]{escape(text)}[/]")) if speaks() else None,
        )


@contextmanager
def _bar(recipe: Recipe) -> Iterator[tuple[OnStep, OnScoring]]:
    """A bar with loss, accuracy and images/s on a terminal; in a log a line for each epoch, and what goes on between."""
    with render.progress(f"reading {recipe.dataset}") as tell:

        def show(now: TrainingStep) -> None:
            text = f"loss {now.loss:.3f}  accuracy {now.accuracy:.1%}  {now.images_per_second:,.0f} images/s"
            tell(now.step / now.steps, f"epoch {now.epoch}/{now.epochs}  {text}")
            if now.validation is not None and now.test is not None:
                scores = f"validation {now.validation:.1%}  test {now.test:.1%}"
                render.note(f"[dim]epoch {now.epoch}/{now.epochs}  {text}  {scores}[/]")

        def score(now: Scoring) -> None:
            tell(now.done / now.images, f"epoch {now.epoch}  scoring the {now.split} images")

        yield show, score


def draw(result: TrainingResult) -> None:
    """The curves as PNG and HTML, into the checkpoint. A run does not fail for want of a picture: it says what it needs."""
    from vggdeploy.errors import MissingDependencyError
    from vggdeploy.report.pictures import write_curves

    try:
        write_curves(result.path)
    except MissingDependencyError as error:
        render.note(f"[dim]no pictures of the curves: {escape(error.cause)}; {escape(error.hint)}[/]")


def report_of(result: TrainingResult) -> TrainingReport:
    """What ``--json`` prints."""
    from vggdeploy.model.layers import summarise
    from vggdeploy.train.record import TrainingReport

    spec = result.checkpoint.spec
    return TrainingReport(
        checkpoint=result.path,
        spec=spec,
        parameters=summarise(spec).parameters,
        weights_sha256=result.checkpoint.weights_sha256,
        training=result.training,
    )


def print_summary(result: TrainingResult) -> None:
    """The figures of a finished run, on stdout."""
    done = result.training
    threads = f" ({counted(done.threads, 'thread')})" if done.device == "cpu" else ""
    tested = ""
    if done.test_accuracy is not None:
        tested = f"[bold]test {done.test_accuracy:.2%}[/] of {counted(done.samples['test'], 'image')}; "
    several = f", {done.processes} processes" if done.processes > 1 else ""
    render.sentence(
        f"loss {done.loss:.3f}, train accuracy {done.train_accuracy:.2%}, validation {done.validation_accuracy:.2%}, "
        f"{tested}{done.images_per_second:,.0f} images/s on {done.device}{threads}{several} in {done.recipe.precision}, "
        f"{done.seconds:.1f} s in all"
    )
    render.out.print(f"checkpoint: {escape(result.path)}  [dim](epoch {done.best_epoch} of {len(done.history)})[/]")
