"""What a training run tells: while it goes on, and at its end. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.data.specs import Split
from vggdeploy.model.foreign.facts import InitReport
from vggdeploy.records import Record
from vggdeploy.spec import ModelSpec
from vggdeploy.system.optional import require
from vggdeploy.train.recipe import Recipe

HISTORY_NAME = "history.jsonl"


class TeacherRecord(Record, frozen=True, kw_only=True):
    """The checkpoint that a run learned from. ``sha256`` is its weights'."""

    source: str
    sha256: str


class CurvePoint(Record, frozen=True, kw_only=True):
    """One line of ``history.jsonl``: after ``step`` steps, which are ``epoch`` epochs, what a split gave.

    A point of ``train`` is the mean over the fifth of an epoch before it, dropout on, while the weights changed; those
    of ``validation`` and ``test`` are of the whole split. Every loss is without label smoothing.
    """

    step: int
    epoch: float
    split: Split
    loss: float
    accuracy: float


def history_lines(curve: Iterable[CurvePoint]) -> bytes:
    return msgspec.json.Encoder(order="deterministic").encode_lines(curve)


@dataclass(frozen=True)
class TrainingStep:
    """After one step. ``step`` counts from 1 over the whole run; loss and accuracy are the running epoch's means.

    ``validation`` and ``test`` are the accuracies on these splits, once an epoch is over; until then None. ``points``
    are those that the curve got with this step.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    learning_rate: float
    validation: float | None = None
    test: float | None = None
    points: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """While an epoch's end is scored: ``done`` of the ``images`` of ``split``."""

    epoch: int
    split: Split
    done: int
    images: int


OnStep = Callable[[TrainingStep], None]
OnScoring = Callable[[Scoring], None]
OnNote = Callable[[str], None]


class EpochRecord(Record, frozen=True, kw_only=True):
    """One epoch. ``loss`` and ``train_accuracy`` are means over its steps, dropout on, while the weights changed; every
    loss is the cross-entropy without label smoothing. The test split decides nothing: it is only looked at, or (None) not
    even that."""

    epoch: int
    loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    seconds: float


class TrainingRecord(Record, frozen=True, kw_only=True):
    """The ``training`` of a checkpoint. ``best_epoch`` is the one whose weights were kept, counted from 1; loss and
    accuracies are that epoch's.

    ``recipe`` is resolved: its precision is the one that was used. ``images_per_second`` counts training only;
    ``seconds`` is the whole run, data and evaluation included. ``init`` says what the run started from, ``teacher`` what
    it learned from beside the labels.
    """

    recipe: Recipe
    history: tuple[EpochRecord, ...]
    best_epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    samples: dict[str, int]
    images_per_second: float
    seconds: float
    device: str
    threads: int
    created: str
    processes: int = 1
    init: InitReport | None = None
    teacher: TeacherRecord | None = None


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


@contextmanager
def events(directory: Path) -> Iterator[OnStep]:
    """Writes every point of the curve as ``loss/SPLIT`` and ``accuracy/SPLIT``, and the learning rate beside it.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """
    require("tensorboard", to="write TensorBoard events", extra="tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(directory)) as writer:

        def write(now: TrainingStep) -> None:
            for point in now.points:
                writer.add_scalar(f"loss/{point.split}", point.loss, point.step)
                writer.add_scalar(f"accuracy/{point.split}", point.accuracy, point.step)
            if now.points:
                writer.add_scalar("learning_rate", now.learning_rate, now.step)

        yield write
