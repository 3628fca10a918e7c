"""What a training run tells: while it goes on, and at its end. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.records import Record
from vggdeploy.spec import ModelSpec
from vggdeploy.train.recipe import Recipe


@dataclass(frozen=True)
class Progress:
    """After one step. ``step`` counts from 1 over the whole run; loss and accuracy are the running epoch's means.

    ``validation`` is the accuracy on the validation split, once an epoch is over; until then None.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    validation: float | None = None


OnProgress = Callable[[Progress], None]


class EpochRecord(Record, frozen=True, kw_only=True):
    """One epoch. ``loss`` and ``train_accuracy`` are means over its steps, dropout on, while the weights changed; every
    loss is the cross-entropy without label smoothing."""

    epoch: int
    loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


class TrainingRecord(Record, frozen=True, kw_only=True):
    """The ``training`` of a checkpoint. ``best_epoch`` is the one whose weights were kept, counted from 1; loss and
    train accuracy are that epoch's. The test split was looked at once, with those weights.

    ``images_per_second`` counts training only; ``seconds`` is the whole run, data and evaluation included.
    """

    recipe: Recipe
    history: tuple[EpochRecord, ...]
    best_epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    samples: dict[str, int]
    images_per_second: float
    seconds: float
    device: str
    threads: int
    created: str


class TrainingReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy train --json`` prints."""

    schema_version: int = 1
    checkpoint: str
    spec: ModelSpec
    parameters: int
    weights_sha256: str
    training: TrainingRecord


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: where the checkpoint stands, its record as written, and the run's record."""

    path: str
    checkpoint: Checkpoint
    training: TrainingRecord
