"""The training run from recipe to checkpoint: what it needs is found first, what it made is written in one step."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from vggdeploy.bundle.store import now
from vggdeploy.data.loaders import MEMORY, Images, open_split, per_class
from vggdeploy.data.sources import get_dataset
from vggdeploy.data.specs import DatasetSpec
from vggdeploy.errors import UsageError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.foreign.facts import InitReport, KeepFresh
from vggdeploy.model.foreign.initial import load_initial_weights
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.model.weights import new_with_state, save_checkpoint
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.ending import deferred
from vggdeploy.system.files import atomic_directory, check_replaceable, check_writable
from vggdeploy.system.optional import version
from vggdeploy.train.distill import Teacher
from vggdeploy.train.environment import (
    Processes,
    join_processes,
    pick_device,
    pick_precision,
    repeatable,
    share_batch_norms,
    thread_count,
)
from vggdeploy.train.quantisation import simulate_int8
from vggdeploy.train.recipe import LIKE_INIT, Recipe
from vggdeploy.train.record import (
    HISTORY_NAME,
    OnNote,
    OnScoring,
    OnStep,
    TrainingRecord,
    TrainingResult,
    history_lines,
)
from vggdeploy.train.run import Data, Run, Setup
from vggdeploy.train.state import Asked, Saver
from vggdeploy.train.zeros import hold_zeros
from vggdeploy.types import Device

# A step of a full VGG-16 takes most of a minute on two cores. Kubernetes kills half a minute after SIGTERM.
INTERRUPT_SECONDS, TERMINATE_SECONDS = 120.0, 25.0


@dataclass(frozen=True)
class TrainOptions:
    """Where a recipe is trained, and what becomes of what stands there: nothing here changes what is learned.

    Attributes:
        overwrite: replace a checkpoint that stands there, and forget an interrupted run.
        resume: go on with the interrupted run; its ``data_dir``, ``device`` and ``threads`` stand where none is given here.
        data_dir: see `vggdeploy.data.loaders.load_split`.
        device: default the first CUDA device, else the CPU.
        threads: CPU threads to compute with; default PyTorch's own choice. Set back when the run ends.
        save_on_interrupt: Ctrl-C and SIGTERM end the run after the step that is under way, with its state saved; a second
            one ends it at once. In the main thread only.
        memory: a split whose prepared pixels take more bytes is prepared batch by batch, again in every epoch.
    """

    overwrite: bool = False
    resume: bool = False
    data_dir: str | os.PathLike[str] | None = None
    device: Device | None = None
    threads: int | None = None
    memory: int = MEMORY
    save_on_interrupt: bool = False

    @property
    def asked(self) -> Asked:
        """What a resumed run takes over."""
        data_dir = os.path.abspath(self.data_dir) if self.data_dir else ""  # noqa: PTH100  # Path.absolute() keeps ".."
        return Asked(data_dir=data_dir, device=str(self.device or ""), threads=self.threads)

    def over(self, asked: Asked) -> TrainOptions:
        """These options, and in place of what they leave open what the interrupted run was asked for."""
        device = Device.parse(asked.device) if asked.device else None
        return replace(
            self,
            data_dir=self.data_dir or asked.data_dir or None,
            device=self.device or device,
            threads=self.threads or asked.threads,
        )


def train(
    recipe: Recipe | None,
    *,
    output: str | os.PathLike[str],
    options: TrainOptions = TrainOptions(),
    teacher: Teacher | None = None,
    data: Data | None = None,
    on_step: OnStep | None = None,
    on_scoring: OnScoring | None = None,
    on_note: OnNote | None = None,
) -> TrainingResult:
    """Train a network and write its checkpoint, in one step, at the end.

    The weights kept are those of the epoch with the best validation accuracy (of equals, the latest), or the last
    one's. The same recipe gives bit-identical weights on one machine with one number of threads, whether the run was
    interrupted or not. Until it is over, its state stands beside ``output`` (see `vggdeploy.train.state`).

    Args:
        recipe: what to train, on what, and how; None is the recipe of the run that is resumed.
        output: the checkpoint's directory.
        options: where it computes, and whether it goes on with what stands there.
        teacher: of ``recipe.distill``, opened already: it keeps the answers that it has given.
        data: the splits, opened already and prepared as the recipe says; default those of ``recipe.dataset``.
        on_step: called after every step and every epoch.
        on_scoring: called after every batch that is scored at an epoch's end.
        on_note: called with sentences that a user should read, before the first step.

    Raises:
        UsageError: ``output`` may not be replaced, a number of threads below 1, or nothing or another run to resume.
            Found before the work begins.
        DataError: the data set cannot be found, downloaded or read.
        CheckpointError: the weights to start from, or the teacher, do not fit.
        IncompatibleError: the device is not here.
        TrainingError: the loss became infinite or not a number; what stood at ``output`` stays.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM. See ``save_on_interrupt``.
    """
    target = Path(os.path.abspath(output))  # noqa: PTH100  # Path.absolute() keeps ".."
    saver = Saver(target)
    resume, overwrite = options.resume, options.overwrite
    if resume:
        standing = saver.standing()
        overwrite = standing.overwrite or overwrite
        recipe, options = recipe or standing.recipe, options.over(standing.asked)
    if recipe is None:
        raise UsageError("no recipe was given", "give one, or resume a run that has its own")
    check_replaceable(Path(output), marker=CHECKPOINT_NAME, overwrite=overwrite)
    if saver.found() and not resume and not overwrite:
        raise UsageError(
            f"{saver.directory} is a run that was interrupted", "go on with it: --resume; or start again: --force"
        )
    check_writable(target)
    where = pick_device(options.device)
    with ExitStack() as stack:
        used = stack.enter_context(thread_count(options.threads))
        stack.enter_context(repeatable(where))
        processes = stack.enter_context(join_processes(where))
        if recipe.batch_size < processes.count:
            raise UsageError(
                f"a batch of {recipe.batch_size} images is too small for {processes.count} processes",
                f"give each an image: --batch-size {processes.count}",
            )
        if processes.first and not resume:
            saver.remove()
        setup = _prepare(recipe, where, processes, options, teacher, data)
        parts = (setup.data.train, setup.data.validation, setup.data.test)
        left_out = [part.left_out for part in parts if part is not None and part.left_out]
        for line in (*(setup.init.lines() if setup.init else ()), *left_out):
            if on_note is not None:
                on_note(line)

        def record(run: Run) -> TrainingRecord:
            return _record(setup, run, threads=used)

        def write(run: Run, path: Path, *, replace: bool = False) -> Checkpoint:
            return _write(setup, run, record(run), path, overwrite=replace)

        run = Run(setup, saver=saver, overwrite=overwrite, write_best=write, on_step=on_step, on_scoring=on_scoring)
        if resume:
            run.resume()
        processes.wait()  # before the first one may replace the state that the others read
        ending = deferred(
            terminate=TERMINATE_SECONDS,
            interrupt=INTERRUPT_SECONDS,
            note="stopping after this step, and saving; Ctrl-C again stops at once",
        )
        with ending if options.save_on_interrupt else nullcontext() as asked:
            run.all_epochs(asked)
        if processes.first:
            write(run, target, replace=overwrite)
            saver.remove()
        processes.wait()
        return TrainingResult(str(output), read_checkpoint(target, check_weights=False), record(run))


def _prepare(
    recipe: Recipe,
    where: torch.device,
    processes: Processes,
    options: TrainOptions,
    teacher: Teacher | None,
    data: Data | None,
) -> Setup:
    dataset = get_dataset(recipe.dataset)
    spec = recipe.model_spec(dataset)
    asked = recipe.precision
    recipe = msgspec.structs.replace(recipe, precision=str(pick_precision(recipe, spec, where)))
    # Weights before data: what does not fit is found sooner.
    model = new_vgg(spec, seed=recipe.seed)
    init = start_from(recipe, model, dataset)
    preprocess = preprocess_like(recipe.preprocess(), init)
    if not recipe.distill:
        teacher = None
    elif teacher is None:
        teacher = Teacher(recipe.distill, labels=dataset.classes, preprocess=preprocess, device=where, precision=asked)

    def split(name: str) -> Images:
        return open_split(
            recipe.dataset,
            name,
            preprocess,
            data_dir=options.data_dir,
            memory=options.memory,
            hold_out=recipe.hold_out,
        )

    # The test split too is read now: a damaged file is to be found before the work, not after it. The first process
    # downloads what is missing; the others find it.
    if not processes.first:
        processes.wait()
    if data is None:
        train, test = split("train"), split("test")
        data = Data(train, split("validation") if recipe.hold_out else test, test)
    if processes.first:
        processes.wait()
    if recipe.per_class:
        chosen = per_class(data.train.labels, recipe.per_class, data.train.classes, seed=recipe.seed)
        data = Data(data.train.take(chosen), data.validation, data.test)
    if recipe.max_images:
        data = data.first(recipe.max_images)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.quantisation_aware:
        simulate_int8(model)
    if recipe.keep_zeros:
        hold_zeros(model)
    if processes.count > 1:
        share_batch_norms(model)
    network = Deployable(model, preprocess).to(where)
    return Setup(
        recipe, dataset, preprocess, data, model, network, init, teacher, where, processes, asked=options.asked
    )


def _record(setup: Setup, run: Run, *, threads: int) -> TrainingRecord:
    """The record of the best epoch so far."""
    best = run.history[run.best_epoch - 1]
    data = setup.data
    return TrainingRecord(
        recipe=setup.recipe,
        history=tuple(run.history),
        best_epoch=run.best_epoch,
        loss=best.loss,
        train_accuracy=best.train_accuracy,
        validation_accuracy=best.validation_accuracy,
        test_loss=best.test_loss,
        test_accuracy=best.test_accuracy,
        samples={
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test) if data.test is not None else 0,
        },
        images_per_second=round(run.whole.speed, 1),
        seconds=round(run.seconds, 2),
        device=str(setup.device),
        threads=threads,
        created=now(),
        processes=setup.processes.count,
        init=setup.init,
        teacher=setup.teacher.record if setup.teacher else None,
    )


def _carried(setup: Setup) -> dict[str, Any]:
    """What a network brings along when the very same network is trained on: what it was, and what was done to it."""
    if setup.recipe.arch != LIKE_INIT or setup.init is None or setup.init.fresh:
        return {}
    before = read_checkpoint(setup.recipe.init, check_weights=False)
    return {"origin": before.origin, "steps": before.steps}


def _write(setup: Setup, run: Run, record: TrainingRecord, path: Path, *, overwrite: bool) -> Checkpoint:
    """The checkpoint of the best epoch so far, with the run's curve beside it."""
    checkpoint = Checkpoint(
        **_carried(setup),
        spec=setup.model.spec,
        preprocess=setup.preprocess,
        labels=setup.dataset.classes,
        dataset=setup.dataset.name,
        training=msgspec.to_builtins(record),
        tools={name: version(name) or "" for name in ("vggdeploy", "torch")},
    )
    model = new_with_state(setup.model.spec, run.kept, where=str(path))
    with atomic_directory(path, marker=CHECKPOINT_NAME, overwrite=overwrite) as draft:
        written = save_checkpoint(draft / "whole", model, checkpoint)
        for file in (draft / "whole").iterdir():
            file.rename(draft / file.name)
        (draft / "whole").rmdir()
        (draft / HISTORY_NAME).write_bytes(history_lines(run.curve))
    return written


def start_from(recipe: Recipe, model: VGG, dataset: DatasetSpec) -> InitReport | None:
    """Load the recipe's initial weights into ``model``; None where it starts from nothing.

    With ``fresh = "auto"`` the last layer stays fresh when it names other classes, or another number of them.

    Raises:
        UsageError, CheckpointError, DataError: see `vggdeploy.model.foreign.initial.load_initial_weights`.
    """
    if not recipe.init:
        return None
    if recipe.fresh != "auto":
        return load_initial_weights(recipe.init, model, keep_fresh=recipe.fresh)
    keep: KeepFresh = "head" if _other_classes(Path(recipe.init), dataset) else "nothing"
    return load_initial_weights(recipe.init, model, allow_head_mismatch=True, keep_fresh=keep)


def _other_classes(source: Path, dataset: DatasetSpec) -> bool:
    """Whether the source is a checkpoint of other classes. A last layer for other things is no start, if it fits too."""
    return source.is_dir() and read_checkpoint(source, check_weights=False).labels != dataset.classes


def preprocess_like(mine: PreprocessSpec, init: InitReport | None) -> PreprocessSpec:
    """``mine`` with the mean and std that the initial weights were trained with, where they are known and fit."""
    known = init.preprocess if init else None
    if known is None or known.channels != mine.channels:
        return mine
    return msgspec.structs.replace(mine, mean=known.mean, std=known.std)
