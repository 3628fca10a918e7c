"""The state of one run, epoch by epoch: what it has seen, the best weights so far, and how both are saved."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggdeploy.data.loaders import Images
from vggdeploy.data.specs import DatasetSpec, Split
from vggdeploy.errors import TrainingError, UsageError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.foreign.facts import InitReport
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import load_model
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.ending import Ending
from vggdeploy.train.distill import Teacher
from vggdeploy.train.environment import Processes
from vggdeploy.train.feed import Batch, Feed, batches_per_epoch
from vggdeploy.train.optimizer import freeze, frozen_layers, moments, set_moments
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.record import CurvePoint, EpochRecord, OnScoring, OnStep, Scoring, TrainingStep
from vggdeploy.train.state import BEST_NAME, Asked, Saver, Standing, Tally
from vggdeploy.train.step import EVALUATION_BATCH, Score, Stepper, evaluate
from vggdeploy.types import Precision

POINTS = 5  # of the training curve, an epoch
WEIGHTS, MOMENTS = "model/", "optimizer/"  # prefixes of the tensors in a saved state
WriteBest = Callable[["Run", Path], object]


@dataclass(frozen=True)
class Data:
    """The splits of a run. Without ``test`` that split is not even opened: whoever chooses among runs must not see it."""

    train: Images
    validation: Images
    test: Images | None

    def first(self, images: int) -> Data:
        """The first so many of each split, which are a random sample of it."""

        def few(part: Images) -> Images:
            return part.take(np.arange(min(images, len(part))))

        return Data(few(self.train), few(self.validation), None if self.test is None else few(self.test))

    @property
    def digest(self) -> str:
        """Identifies labels and their order: a run that resumes on other images would not be the same run."""
        sha256 = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            if part is not None:
                sha256.update(part.labels.tobytes())
        return sha256.hexdigest()


@dataclass(frozen=True)
class Setup:
    """Everything that a run works with. The model computes on ``device``; ``network`` is it, with its preprocessing."""

    recipe: Recipe
    dataset: DatasetSpec
    preprocess: PreprocessSpec
    data: Data
    model: VGG
    network: Deployable
    init: InitReport | None
    teacher: Teacher | None
    device: torch.device
    processes: Processes
    asked: Asked


class Run:
    """One run of a recipe. `all_epochs` trains; afterwards ``model`` holds the weights that are kept."""

    def __init__(
        self,
        setup: Setup,
        *,
        saver: Saver,
        overwrite: bool,
        write_best: WriteBest,
        on_step: OnStep | None,
        on_scoring: OnScoring | None = None,
    ) -> None:
        self.recipe = recipe = setup.recipe
        self.model = setup.model
        self.history: list[EpochRecord] = []
        self.curve: list[CurvePoint] = []
        self.best_epoch = 0
        self.kept: dict[str, Tensor] = {}  # the best epoch's weights
        self.whole = Tally()
        self._network, self._data = setup.network, setup.data
        self._device, self._processes = setup.device, setup.processes
        self._saver, self._write_best = saver, write_best
        self._on_step, self._on_scoring = on_step, on_scoring
        self._overwrite, self._asked = overwrite, setup.asked
        self._teacher = setup.teacher.record.sha256 if setup.teacher else ""
        self._per_epoch = batches_per_epoch(len(setup.data.train), recipe.batch_size)
        steps = recipe.epochs * self._per_epoch
        self._steps = min(steps, recipe.max_steps or steps)
        self._feed = Feed(setup.data.train, recipe, setup.device, setup.processes.rank, setup.processes.count)
        self._stepper = Stepper(
            recipe,
            setup.network,
            setup.model,
            steps=self._steps,
            precision=Precision(recipe.precision),
            device=setup.device,
            processes=setup.processes,
            teacher=setup.teacher,
        )
        self._teach(setup.teacher)
        self._step = 0
        self._epoch, self._window = Tally(), Tally()
        self._reported = 0
        self._ending = Ending()
        self._started, self._elapsed = time.perf_counter(), 0.0

    def _teach(self, teacher: Teacher | None) -> None:
        """Ask the teacher once for all epochs, where every epoch has the same images; several processes ask as they go."""
        if teacher is None:
            return
        if self.recipe.augment or self._processes.count > 1:
            teacher.forget()
        else:
            teacher.remember(self._data.train, digest=self._data.digest)

    @property
    def seconds(self) -> float:
        """Since the run began, the time between a kill and its resumption left out."""
        return self._elapsed + time.perf_counter() - self._started

    def all_epochs(self, ending: Ending | None = None) -> None:
        """Train every epoch that is left, then put the kept epoch's weights into the model.

        Raises:
            TrainingError: a loss became infinite or not a number. The state that was saved last stays.
            KeyboardInterrupt, SystemExit: ``ending`` was asked for; the state after the last step is saved.
        """
        self._ending = ending or self._ending
        for epoch in range(len(self.history), math.ceil(self._steps / self._per_epoch)):
            if self._given_up():
                break
            try:
                self._one_epoch(epoch)
            except TrainingError as error:
                raise self._with_best(error) from error
        if self.kept:
            self.model.load_state_dict(self.kept)

    def resume(self) -> None:
        """Go on from the saved state.

        Raises:
            UsageError: there is none, or it is of another recipe, other images or another teacher.
            CheckpointError: it is damaged.
        """
        standing = self._saver.standing()
        changed = [f for f in Recipe.__struct_fields__ if getattr(standing.recipe, f) != getattr(self.recipe, f)]
        if changed:
            was = ", ".join(f"{f} {getattr(standing.recipe, f)!r} → {getattr(self.recipe, f)!r}" for f in changed[:3])
            raise UsageError(
                f"{self._saver.directory} is a run with another recipe: {was}",
                "resume with the options it was started with, or start again with --force",
            )
        if standing.data != self._data.digest:
            raise UsageError(
                f"{self._saver.directory} is a run on other images of {self.recipe.dataset}",
                "restore the data set, or start again with --force",
            )
        if standing.teacher != self._teacher:
            raise UsageError(
                f"{self._saver.directory} is a run that learned from another teacher than {self.recipe.distill} is now",
                "restore the teacher, or start again with --force",
            )
        tensors = self._saver.tensors()
        self.model.load_state_dict({k.removeprefix(WEIGHTS): v for k, v in tensors.items() if k.startswith(WEIGHTS)})
        remembered = {k.removeprefix(MOMENTS): v for k, v in tensors.items() if k.startswith(MOMENTS)}
        set_moments(self._stepper.optimizer, self.model, remembered)
        if standing.scaler:
            self._stepper.scaler.load_state_dict(self._stepper.scaler.state_dict() | standing.scaler)
        self._step = standing.step
        self.history, self.curve, self.best_epoch = list(standing.history), list(standing.curve), standing.best_epoch
        self._epoch, self._window, self.whole = standing.epoch, standing.window, standing.whole
        self._elapsed, self._reported = standing.elapsed, len(self.curve)
        if self.best_epoch:
            best = load_model(self._saver.directory / BEST_NAME).state_dict()
            self.kept = {key: tensor.to(self._device) for key, tensor in best.items()}

    def _one_epoch(self, epoch: int) -> None:
        done, end = self._step - epoch * self._per_epoch, min((epoch + 1) * self._per_epoch, self._steps)
        self._network.train()
        freeze(self.model, frozen_layers(self.recipe, self.model.spec, epoch))
        with closing(self._feed.epoch(epoch, skip=done)) as batches:  # type: ignore[type-var]
            before = time.perf_counter()
            for batch in islice(batches, end - self._step):
                loss, hits = self._stepper(batch)
                now = time.perf_counter()
                self._count(batch, loss, hits, now - before, epoch)
                self._stop_if_asked()
                if self._step < end:
                    self._save(epoch_over=False)
                before = time.perf_counter()
        self._end(epoch)
        self._stop_if_asked()
        self._save(epoch_over=True)

    def _count(self, batch: Batch, loss: float, hits: float, seconds: float, epoch: int) -> None:
        for tally in (self._epoch, self._window, self.whole):
            tally.add(loss, hits, batch.size, seconds)
        self._step = batch.step + 1
        done = self._step - epoch * self._per_epoch
        if done * POINTS // self._per_epoch > (done - 1) * POINTS // self._per_epoch:
            self._point("train", self._window.loss, self._window.accuracy)
            self._window = Tally()
        self._report(epoch)

    def _end(self, epoch: int) -> None:
        """Score the epoch, and keep its weights if it is the best."""
        scores: dict[Split, Score] = {}
        splits: tuple[tuple[Split, Images | None], ...] = (
            ("validation", self._data.validation),
            ("test", self._data.test),
        )
        for split, images in splits:
            if images is None:
                continue
            if split == "test" and images is self._data.validation:  # nothing is held out
                scores[split] = scores["validation"]
                continue
            told = self._scoring(epoch, split, len(images))
            score = evaluate(self._network, images, device=self._device, processes=self._processes, on_batch=told)
            self._stepper.check(score.loss, f"{split} loss", self._step - 1)
            scores[split] = score
        for split, score in scores.items():
            self._point(split, score.loss, score.accuracy)
        validation, test = scores["validation"], scores.get("test")
        self.history.append(
            EpochRecord(
                epoch=epoch + 1,
                loss=self._epoch.loss,
                train_accuracy=self._epoch.accuracy,
                validation_loss=validation.loss,
                validation_accuracy=validation.accuracy,
                test_loss=test.loss if test else None,
                test_accuracy=test.accuracy if test else None,
                seconds=round(self._epoch.seconds, 3),
            )
        )
        best = self.history[self.best_epoch - 1].validation_accuracy if self.best_epoch else -1.0
        # Of equals the latest: its learning rate was lower. The test split has no say.
        if self.recipe.keep == "last" or validation.accuracy >= best:
            self.best_epoch = epoch + 1
            self.kept = self._copy()
        self._report(epoch, validation.accuracy, test.accuracy if test else None)
        self._epoch = Tally()

    def _scoring(self, epoch: int, split: Split, images: int) -> Callable[[], None]:
        """What is done after each batch that is scored: it is told, and the run ends here where that was asked for."""
        done = 0

        def scored() -> None:
            nonlocal done
            done = min(images, done + EVALUATION_BATCH * self._processes.count)
            if self._on_scoring is not None:
                self._on_scoring(Scoring(epoch=epoch + 1, split=split, done=done, images=images))
            # One of several processes cannot stop here: the others have another number of batches.
            if self._processes.count == 1:
                self._stop_if_asked()

        return scored

    def _given_up(self) -> bool:
        """Early stopping: ``patience`` epochs in a row were no better than the best before them."""
        patience = self.recipe.patience
        if not patience or len(self.history) <= patience:
            return False
        scores = [record.validation_accuracy for record in self.history]
        return max(scores[-patience:]) <= max(scores[:-patience])

    def _copy(self) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in self.model.state_dict().items()}

    def _point(self, split: Split, loss: float, accuracy: float) -> None:
        epoch = round(self._step / self._per_epoch, 6)
        self.curve.append(CurvePoint(step=self._step, epoch=epoch, split=split, loss=loss, accuracy=accuracy))

    def _stop_if_asked(self) -> None:
        """End here, with the state saved: between two steps, or before an epoch's scores are known. Of several processes
        all end, when one was asked to."""
        if self._processes.total(float(self._ending.asked()))[0]:
            if self._processes.first:
                self._save_now()
            self._processes.wait()
            self._ending.end()

    def _save(self, *, epoch_over: bool) -> None:
        if self._processes.first and self._saver.due(epoch_over=epoch_over):
            self._save_now()

    def _save_now(self) -> None:
        scaler: dict[str, Any] = self._stepper.scaler.state_dict()
        standing = Standing(
            recipe=self.recipe,
            overwrite=self._overwrite,
            data=self._data.digest,
            teacher=self._teacher,
            step=self._step,
            history=tuple(self.history),
            curve=tuple(self.curve),
            best_epoch=self.best_epoch,
            epoch=self._epoch,
            window=self._window,
            whole=self.whole,
            elapsed=self.seconds,
            scaler={name: value for name, value in scaler.items() if isinstance(value, (int, float))},
            asked=self._asked,
        )
        tensors = {WEIGHTS + key: tensor for key, tensor in self.model.state_dict().items()}
        tensors |= {MOMENTS + key: t for key, t in moments(self._stepper.optimizer, self.model).items()}
        self._saver.save(standing, tensors, lambda path: self._write_best(self, path))

    def _with_best(self, error: TrainingError) -> TrainingError:
        """The error, with the way to the best epoch's weights where there are any."""
        if not self._saver.found() or not self.best_epoch:
            return error
        best = self._saver.directory / BEST_NAME
        return TrainingError(error.cause, f"{error.hint} --force; the best epoch so far is the checkpoint {best}")

    def _report(self, epoch: int, validation: float | None = None, test: float | None = None) -> None:
        points = tuple(self.curve[self._reported :])
        self._reported = len(self.curve)
        if self._on_step is None:
            return
        self._on_step(
            TrainingStep(
                epoch=epoch + 1,
                epochs=math.ceil(self._steps / self._per_epoch),
                step=self._step,
                steps=self._stepper.steps,
                loss=self._epoch.loss,
                accuracy=self._epoch.accuracy,
                images_per_second=self._epoch.speed,
                learning_rate=self._stepper.optimizer.param_groups[-1]["lr"],
                validation=validation,
                test=test,
                points=points,
            )
        )
