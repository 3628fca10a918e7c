"""How a training run went, read back from its checkpoint: ``history.jsonl``, or the record of older checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from vggdeploy.bundle.checkpoint import Checkpoint, read_checkpoint
from vggdeploy.errors import CheckpointError, first_line
from vggdeploy.system.files import read_regular

HISTORY_NAME = "history.jsonl"
_MAX_BYTES = 256 * 2**20
_AGAIN = "train again, or restore the checkpoint from its source"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``history.jsonl``: loss (nats) and accuracy (0–1) of a split, ``epoch`` epochs into the run.

    ``step`` counts from 1 over the whole run; it is None where only epochs were recorded. Other keys are not read.
    """

    epoch: float
    split: Literal["train", "validation", "test"]
    step: int | None = None
    loss: float | None = None
    accuracy: float | None = None


class _Epoch(msgspec.Struct):
    epoch: int
    loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


class _Training(msgspec.Struct):
    """What is needed of `vggdeploy.train.record.TrainingRecord`, which stands on a floor above."""

    history: list[_Epoch]
    best_epoch: int | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


def read_history(directory: str | os.PathLike[str]) -> list[Point]:
    """The points of a checkpoint's run, in the order in which they were taken; never empty.

    Raises:
        CheckpointError: no checkpoint, one of weights that were not trained here, or a damaged history.
    """
    root = Path(directory)
    checkpoint = read_checkpoint(root, check_weights=False)
    file = root / HISTORY_NAME
    try:
        data = read_regular(file, limit=_MAX_BYTES)
    except FileNotFoundError:
        points = _from_record(checkpoint, root)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read: {error.strerror}", "check the file and its permissions"
        ) from error
    else:
        points = _from_lines(data, file)
    if not points:
        raise CheckpointError(
            f"{root} has no record of a training run", "curves are of a run: vggdeploy train -o CHECKPOINT"
        )
    return points


def _from_lines(data: bytes, file: Path) -> list[Point]:
    points = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            points.append(msgspec.json.decode(line, type=Point))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"line {number} of {file} cannot be read: {first_line(error)}", _AGAIN) from error
    return points


def _from_record(checkpoint: Checkpoint, root: Path) -> list[Point]:
    """An older checkpoint has a record for each epoch, and looked at the test split once, with the weights it kept."""
    if "history" not in checkpoint.training:
        return []
    try:
        run = msgspec.convert(checkpoint.training, _Training)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"the training record of {root} cannot be read: {first_line(error)}", _AGAIN) from error
    points = []
    for e in run.history:
        points.append(Point(epoch=e.epoch, split="train", loss=e.loss, accuracy=e.train_accuracy))
        points.append(Point(epoch=e.epoch, split="validation", loss=e.validation_loss, accuracy=e.validation_accuracy))
    if run.best_epoch is not None and run.test_accuracy is not None:
        points.append(Point(epoch=run.best_epoch, split="test", loss=run.test_loss, accuracy=run.test_accuracy))
    return points
