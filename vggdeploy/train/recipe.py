"""A training run as data: everything that decides which weights come out. Torch-free."""

from __future__ import annotations

import math
from typing import Literal, get_args

from vggdeploy.data.specs import default_preprocess, get_dataset
from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.records import Record
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import Precision

Schedule = Literal["cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
PRECISIONS = (Precision.FP32, Precision.BF16)


class Recipe(Record, frozen=True, kw_only=True):
    """Network, data, and stochastic gradient descent with momentum. The same recipe gives the same weights.

    ``warmup`` is the share of all steps in which the learning rate rises to ``lr``; then it follows ``schedule``.
    ``precision`` is that of the forward and backward pass; weights are FP32 always.
    """

    dataset: str = "digits"
    arch: str = "vgg11_bn"
    width: float = 1.0
    hidden: int = 4096
    dropout: float = 0.5
    image_size: int = 32
    epochs: int = 6
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.2
    label_smoothing: float = 0.1
    precision: Precision = Precision.FP32
    seed: int = 0

    def __post_init__(self) -> None:
        def check(holds: bool, cause: str, hint: str) -> None:
            if not holds:
                raise UsageError(cause, hint)

        check(self.epochs >= 1, f"{self.epochs} epochs", "give at least 1")
        check(self.batch_size >= 2, f"a batch of {self.batch_size} images", "give at least 2: batch norm needs them")
        check(math.isfinite(self.lr) and self.lr > 0, f"learning rate {self.lr}", "give a number above 0, such as 0.05")
        check(0 <= self.momentum < 1, f"momentum {self.momentum}", "give a number from 0 up to, not including, 1")
        check(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"weight decay {self.weight_decay}",
            "give 0 or more, such as 0.0005",
        )
        check(
            0 <= self.warmup < 1,
            f"warm-up {self.warmup}",
            "give the share of all steps, from 0 up to, not including, 1",
        )
        check(
            0 <= self.label_smoothing < 1,
            f"label smoothing {self.label_smoothing}",
            "give a number from 0 up to, not including, 1",
        )
        check(0 <= self.seed < 2**32, f"seed {self.seed}", "give a whole number from 0 to 4294967295")
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise unknown_name("training precision", self.precision, PRECISIONS)
        self.model_spec()  # an unknown data set or architecture, or a size that does not fit, is found here
        self.preprocess()

    def model_spec(self) -> ModelSpec:
        """The network: its input channels and classes are the data set's."""
        dataset = get_dataset(self.dataset)
        return ModelSpec.named(
            self.arch,
            width=self.width,
            in_channels=dataset.channels,
            classes=len(dataset.classes),
            image_size=self.image_size,
            hidden=self.hidden,
            dropout=self.dropout,
        )

    def preprocess(self) -> PreprocessSpec:
        """The data set's preprocessing at the recipe's image size."""
        return default_preprocess(self.dataset, self.image_size)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of step ``step`` of ``steps``, counted from 0: a function of both alone, so a run can resume.

    Linear warm-up (Goyal et al. 2017, section 2.2), then constant, or half a cosine down to 0 (Loshchilov & Hutter
    2017, eq. 5, without restarts).
    """
    warm = recipe.warmup * steps
    if step < warm:
        return recipe.lr * min(1.0, (step + 1) / warm)
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
