"""What a change of structure needs beside its own numbers. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggdeploy.errors import UsageError
from vggdeploy.train.recipe import Recipe
from vggdeploy.types import Device, OnProgress, silent

if TYPE_CHECKING:
    from vggdeploy.train.distill import Teacher
    from vggdeploy.train.record import OnStep


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a changed network is fine-tuned: SGD with momentum 0.9 and a cosine that ends at 0. The last epoch is kept, not
    the best one: the validation split judges the result, so it has no say in the weights.

    ``distill``: the checkpoint to learn from; None for the one that the step starts from; "" for the labels alone.
    """

    epochs: int = 3
    lr: float = 0.01
    distill: str | None = None
    temperature: float = 4.0
    distill_weight: float = 0.9
    quantisation_aware: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UsageError(f"{self.epochs} epochs", "give 0 for no fine-tuning, or more")
        Recipe(lr=self.lr, temperature=self.temperature, distill_weight=self.distill_weight, seed=self.seed)  # refuses


@dataclass(frozen=True, kw_only=True)
class TuningJob:
    """What every step needs beside its own numbers.

    Args:
        tuning: how the changed network is fine-tuned.
        max_drop: how much of the original's accuracy may be lost, as a fraction: the upper end of the paired 95% interval
            on the validation split has to stay at or below it. None: anything.
        teacher: of ``tuning.distill``, opened already.
        dataset: default the one that the network was trained on.
    """

    tuning: Tuning = Tuning()
    max_drop: float | None = None
    teacher: Teacher | None = None
    dataset: str = ""
    data_dir: Path | None = None
    device: Device | None = None
    threads: int | None = None
    overwrite: bool = False
    on_progress: OnProgress = silent
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"an accuracy drop of {100 * self.max_drop:g} points", "give 0 to 100 percentage points")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The numbers of the steps that change a structure, as `vggdeploy.optimize.steps.structure` has them; None where a step is
    not asked for."""

    keep: float | Mapping[str, float] | None = None
    ranks: int | Mapping[str, int] | None = None
    rank_keep: float | None = None
    job: TuningJob = TuningJob()
