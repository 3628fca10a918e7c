"""The state of a run on disk, beside its output: what ``--resume`` goes on from after a kill.

``NAME.resume/`` holds ``resume.json`` (where the run stands), ``state.safetensors`` (weights, and what the optimiser
remembers) and, once an epoch is over, ``best/``: an ordinary checkpoint of the best epoch so far. It is replaced in one
step, so a process that is killed leaves the state before or the state after. No random state is in it: data order,
augmentation and dropout are functions of the seed and the step.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vggdeploy.errors import BundleError, CheckpointError, TrainingError, UsageError, first_line
from vggdeploy.records import Record, from_json, to_json
from vggdeploy.system.files import atomic_directory, link_tree, read_regular
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.record import CurvePoint, EpochRecord

RESUME_NAME, STATE_NAME, BEST_NAME = "resume.json", "state.safetensors", "best"
SCHEMA_VERSION = 1
SAVE_EVERY = 60.0  # seconds, within an epoch
# Saving may take this share of the time: a large network on a slow disk is saved less often.
MAX_SHARE = 0.05
_AGAIN = "start the run again: leave --resume out, and add --force"
_MAX_BYTES = 256 * 2**20


class Tally(msgspec.Struct):
    """Running sums over images, and the seconds that they took."""

    loss_sum: float = 0.0
    hits: float = 0.0
    images: int = 0
    seconds: float = 0.0

    def add(self, loss_sum: float, hits: float, images: int, seconds: float) -> None:
        self.loss_sum += loss_sum
        self.hits += hits
        self.images += images
        self.seconds += seconds

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        return self.hits / self.images

    @property
    def speed(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


class Asked(Record, frozen=True, kw_only=True):
    """What a run was asked for beside its recipe, with which it goes on unless another wish is said."""

    data_dir: str = ""
    device: str = ""
    threads: int | None = None


class Standing(Record, frozen=True, kw_only=True):
    """Where a run stands after ``step`` steps. ``data`` identifies the training images' labels and order, ``teacher`` the
    weights that it learns from."""

    schema_version: int = SCHEMA_VERSION
    recipe: Recipe
    overwrite: bool
    data: str
    teacher: str = ""
    step: int
    history: tuple[EpochRecord, ...]
    curve: tuple[CurvePoint, ...]
    best_epoch: int
    epoch: Tally
    window: Tally
    whole: Tally
    elapsed: float
    scaler: dict[str, float] = {}
    asked: Asked = Asked()


def resume_directory(output: Path) -> Path:
    """Where the state of a run that writes ``output`` stands."""
    return output.with_name(f"{output.name}.resume")


class Saver:
    """Writes the state of one run, and decides when."""

    def __init__(self, output: Path) -> None:
        self.directory = resume_directory(output)
        self._saved_best = 0
        self._took = 0.0
        self._last = time.monotonic()

    def due(self, *, epoch_over: bool) -> bool:
        """Whether to save now: at the end of an epoch and every minute, if saving has not taken too much of the time."""
        since = time.monotonic() - self._last
        return since >= max(self._took / MAX_SHARE, 0.0 if epoch_over else SAVE_EVERY)

    def save(self, standing: Standing, tensors: dict[str, Tensor], write_best: Callable[[Path], object]) -> None:
        """Replace the state. ``write_best`` writes the best epoch's checkpoint; it is called when that epoch is new.

        Raises:
            TrainingError: the disk is full, or something else stands in the way.
        """
        started = time.monotonic()
        with atomic_directory(self.directory, marker=RESUME_NAME, overwrite=True) as draft:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            try:
                safetensors.torch.save_file(state, draft / STATE_NAME)
            except SafetensorError as error:
                again = "go on from the state before: --resume" if self.found() else "start again"
                raise TrainingError(
                    f"the state of the run cannot be saved in {self.directory}: {first_line(error)}",
                    f"free some disk space, and {again}",
                ) from error
            if standing.best_epoch and standing.best_epoch == self._saved_best:
                link_tree(self.directory / BEST_NAME, draft / BEST_NAME)
            elif standing.best_epoch:
                write_best(draft / BEST_NAME)
            (draft / RESUME_NAME).write_bytes(to_json(standing))
        self._saved_best = standing.best_epoch
        self._last = time.monotonic()
        self._took = self._last - started

    def found(self) -> bool:
        return (self.directory / RESUME_NAME).is_file()

    def standing(self) -> Standing:
        """Where the saved run stands.

        Raises:
            UsageError: there is none.
            CheckpointError: it is damaged, or of another version.
        """
        file = self.directory / RESUME_NAME
        try:
            data = read_regular(file, limit=_MAX_BYTES)
            version = from_json(data, _Versioned, what=str(file)).schema_version
            if version != SCHEMA_VERSION:
                raise CheckpointError(
                    f"{file} has schema version {version}; this vggdeploy reads version {SCHEMA_VERSION}", _AGAIN
                )
            standing = from_json(data, Standing, what=str(file))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"there is no run to resume: {file} does not exist",
                "leave --resume out to start one; a run that ended has nothing left to resume",
            ) from None
        except BundleError as error:
            raise CheckpointError(error.cause, _AGAIN) from error
        self._saved_best = standing.best_epoch
        return standing

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that were saved with it.

        Raises:
            CheckpointError: they are damaged.
        """
        file = self.directory / STATE_NAME
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {first_line(error)}", _AGAIN) from error
        return tensors

    def remove(self) -> None:
        """Remove the state of a run that is over.

        It is renamed to a draft of itself first: killed in the middle, this leaves nothing that could be taken for a
        state, and the next run for the same output clears it away.
        """
        if self.directory.exists():
            aside = self.directory.with_name(f".{self.directory.name}.tmp-{secrets.token_hex(8)}")
            os.rename(self.directory, aside)  # noqa: PTH104  # Path.rename would replace
            shutil.rmtree(aside, ignore_errors=True)


class _Versioned(msgspec.Struct):
    schema_version: int
