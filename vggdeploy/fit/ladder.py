"""The trainings of one network, each longer than the one before, and what a time they take."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.loaders import Images
from vggdeploy.data.sources import default_preprocess
from vggdeploy.fit.material import Material, pack
from vggdeploy.fit.starts import Starts
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.records.fit import Rung, Shape, Start
from vggdeploy.spec import ModelSpec
from vggdeploy.train.distill import Teacher
from vggdeploy.train.environment import pick_device
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.recipe import ALL_FEATURES, LIKE_INIT, Recipe
from vggdeploy.train.recipe_file import resolve_recipe
from vggdeploy.train.record import OnStep, TrainingStep

RECIPE = "fast"
FACTOR, RUNGS = 3, 3
_IMAGES = 15_000  # that the first rung shows at most, repeated ones counted: enough to rank networks
_MOST_REPEATED = 40
_KNOWN = 1 / 8  # of the images, for convolutions that were trained already
_BATCHES = 16  # of an epoch at least, where a batch can be that small
# Before anything was trained: seconds that two cores take for a multiply-accumulate, and for an image.
_PRIOR = (8e-11, 3e-5)
_TIMED_STEPS, _TIMED_SECONDS = 16, 1.0  # what tells how fast training is here: whatever is over first
_BATCH = 256
_LARGEST_BATCH = 512
_DECAY = 5e-4  # of weights that are tuned


class BudgetSpentError(Exception):
    """The time is over; what a training had reached is lost."""


class _TimedError(Exception):
    """The steps that were to be timed are over."""


@dataclass
class Pace:
    """How long a training takes: so much for each image that is shown, and for each of its multiply-accumulates. What trainings
    took corrects it by a ``factor``."""

    image: float = _PRIOR[1]
    mac: float = _PRIOR[0]
    factor: float = 1.0

    @classmethod
    def measured(cls, fast: ModelSpec, fast_each: float, slow: ModelSpec, slow_each: float) -> Pace:
        """By the seconds that training takes for each image of two networks, of which ``slow`` computes more.

        For a small one they are those of its steps, whatever it computes: it alone tells nothing of a larger one.
        """
        mac = max(slow_each - fast_each, 0.0) / (macs_of(slow) - macs_of(fast))
        return cls(image=max(fast_each - mac * macs_of(fast), 0.0), mac=mac)

    def seconds(self, spec: ModelSpec, images: int, start: Start = Start.FRESH) -> float:
        """Of a frozen network only the way forwards is computed, a third of the work."""
        return self.factor * self._plain(spec, images) / (3 if start is Start.FROZEN else 1)

    def learn(self, spec: ModelSpec, images: int, seconds: float) -> None:
        """The latest counts half: what else the machine does changes."""
        found = seconds / self._plain(spec, images)
        self.factor = found if self.factor == 1.0 else (self.factor + found) / 2

    def _plain(self, spec: ModelSpec, images: int) -> float:
        return images * (self.mac * macs_of(spec) + self.image)


def epochs_of(rung: int, images: int, start: Start = Start.FRESH, first: int | None = None) -> int:
    """How many epochs a rung trains: each `FACTOR` times as many as the one before it.

    Args:
        images: that there are.
        first: how many the first rung shows, fewer than `_IMAGES` where the time is short; at least an epoch.
    """
    most = _IMAGES if first is None else min(first, _IMAGES)
    shown = min(most, _MOST_REPEATED * images) * (_KNOWN if start in (Start.FROZEN, Start.TUNED) else 1)
    return int(max(1, math.ceil(shown / images)) * FACTOR**rung)


@dataclass
class Ladder:
    """Trains networks of one fit, rung by rung, each from the weights of the rung before. ``first``: see `epochs_of`."""

    material: Material
    home: Path
    seed: int
    threads: int | None
    teacher: Path | None = None
    starts: Starts | None = None
    first: int | None = None
    _teacher: Teacher | None = field(default=None, repr=False)

    def begin(self, number: int, shape: Shape, spec: ModelSpec) -> None:
        """The network of a trial as it begins; one for each fold."""
        for part in range(len(self.material.parts)):
            path = self.path(number, 0, part)
            shutil.rmtree(path, ignore_errors=True)  # of a trial that was killed
            save_checkpoint(path, *(self.starts or Starts(self.material)).network(shape, spec, self.seed + part))

    def path(self, number: int, rungs: int, part: int = 0) -> Path:
        """The checkpoint of a trial after so many rungs. Those of the rung before stay until the state knows the new one."""
        return self.home / f"trial-{number}-{rungs}-{part}"

    def forget(self, number: int, rungs: int) -> None:
        """Remove the checkpoints of all rungs before."""
        for before in range(rungs):
            for part in range(len(self.material.parts)):
                shutil.rmtree(self.path(number, before, part), ignore_errors=True)

    def epochs(self, rung: int, start: Start = Start.FRESH) -> int:
        return epochs_of(rung, self.material.training, start, self.first)

    def shown(self, rung: int, start: Start = Start.FRESH) -> int:
        """Images that a rung shows, of all folds."""
        return self.epochs(rung, start) * sum(len(training) for training, _ in self.material.parts)

    def short(self) -> bool:
        """Whether the first rung shows fewer images than it would with more time."""
        return self.epochs(0) < epochs_of(0, self.material.training)

    def seconds_an_image(self, shape: Shape, spec: ModelSpec) -> float:
        """How long training takes for each image that a network is shown, by the first steps of a training that ends there."""
        marks: dict[int, float] = {}

        def timed(step: TrainingStep) -> None:
            marks.setdefault(step.step, time.monotonic())
            enough = len(marks) > _TIMED_STEPS or marks[step.step] - marks[1] > _TIMED_SECONDS
            if len(marks) > 1 and enough:
                raise _TimedError

        data = self.material.data(shape.image_size, 0)
        with tempfile.TemporaryDirectory(prefix="timed-", dir=self.home) as scratch:
            begun = Path(scratch) / "begun"
            save_checkpoint(begun, *(self.starts or Starts(self.material)).network(shape, spec, self.seed))
            # Two epochs have a second step, also of a few images. The first step is not timed: it allocates.
            recipe = self._recipe(shape, begun, 2, len(data.train))
            with suppress(_TimedError):
                train(
                    recipe,
                    output=Path(scratch) / "timed",
                    options=TrainOptions(threads=self.threads),
                    data=data,
                    teacher=self._opened(shape),
                    on_step=timed,
                )
        images = (len(marks) - 1) * min(recipe.batch_size, len(data.train))
        return (max(marks.values()) - marks[1]) / images

    def climb(
        self, number: int, shape: Shape, rung: int, on_step: Callable[[TrainingStep, int], None], *, share: float = 1.0
    ) -> Rung:
        """Train all folds of a trial one rung longer, and ask each for its validation images.

        Raises:
            TrainingError: the loss became infinite or no number.
            BudgetSpentError: ``on_step`` says that the time is over.
        """
        started = time.monotonic()
        epochs = self.epochs(rung, shape.start)
        answers = []
        for part in range(len(self.material.parts)):
            data = self.material.data(shape.image_size, part, share=share)
            output = self.path(number, rung + 1, part)
            recipe = self._recipe(shape, self.path(number, rung, part), epochs, len(data.train))

            def told(step: TrainingStep, part: int = part) -> None:
                on_step(step, part)

            on: OnStep = told
            try:
                train(
                    recipe,
                    output=output,
                    options=TrainOptions(overwrite=True, threads=self.threads),
                    data=data,
                    teacher=self._opened(shape),
                    on_step=on,
                )
            finally:
                shutil.rmtree(output.with_name(f"{output.name}.resume"), ignore_errors=True)
            answers.append(answers_of(output, data.validation))
        found = np.concatenate(answers)
        labels = self.material.labels[self.material.judged]
        return Rung(
            epochs=epochs,
            hits=int((found == labels).sum()),
            samples=len(labels),
            seconds=round(time.monotonic() - started, 2),
            answers=pack(found),
        )

    def _recipe(self, shape: Shape, init: Path, epochs: int, images: int) -> Recipe:
        batch = max(16, min(_LARGEST_BATCH, 2 ** max(1, (images // _BATCHES).bit_length() - 1)))
        changes: dict[str, object] = {
            "dataset": self.material.name,
            "arch": LIKE_INIT,
            "init": str(init),
            "fresh": "nothing",
            "augment": tuple(shape.augment.split(",")),
            "lr": shape.lr,
            "epochs": epochs,
            "batch_size": batch,
            "keep": "last",  # the validation images judge the network, so they have no say in its weights
            "seed": self.seed,
        }
        if shape.start is not Start.FRESH:  # as `vggdeploy.optimize.fine_tune` tunes what is there
            changes |= {"optimizer": "sgd", "lr_rest": None, "weight_decay": _DECAY}
        if shape.start is Start.FROZEN:
            changes |= {"freeze": ALL_FEATURES}
        if shape.teacher and self.teacher is not None:
            changes |= {"distill": str(self.teacher)}
        return resolve_recipe(RECIPE, changes)

    def _opened(self, shape: Shape) -> Teacher | None:
        """The teacher, opened once: it keeps the answers that it has given."""
        if not shape.teacher or self.teacher is None:
            return None
        if self._teacher is None:
            preprocess = default_preprocess(self.material.name, shape.image_size)
            classes = self.material.dataset.classes
            self._teacher = Teacher(str(self.teacher), labels=classes, preprocess=preprocess, device=pick_device(None))
        return self._teacher


def answers_of(checkpoint: Path, images: Images) -> NDArray[np.int64]:
    """The class ``[N]`` that a checkpoint's network gives each image."""
    about = read_checkpoint(checkpoint)
    network = Deployable(load_model(checkpoint), about.preprocess).eval()
    parts = (np.arange(at, min(at + _BATCH, len(images))) for at in range(0, len(images), _BATCH))
    with torch.inference_mode():
        found = [network(torch.from_numpy(images.batch(part)))[0].argmax(dim=1).numpy() for part in parts]
    return np.concatenate(found)
