"""What a change of structure needs beside its own numbers, and which images the original network had right. Torch-free."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import UsageError
from vggdeploy.parity.metrics import top1
from vggdeploy.parity.reference import Array
from vggdeploy.records import OriginalNetwork
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.sessions import run_batch
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
    keep_zeros: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UsageError(f"the number of epochs cannot be {self.epochs}", "give 0 for no fine-tuning, or more")
        Recipe(lr=self.lr, temperature=self.temperature, distill_weight=self.distill_weight, seed=self.seed)  # refuses


@dataclass(frozen=True, kw_only=True)
class TuningJob:
    """What every step needs beside its own numbers.

    Args:
        tuning: how the changed network is fine-tuned.
        max_drop: how much of the original's accuracy may be lost, as a fraction: the one-sided 95% upper bound of
            the paired drop on the validation split has to stay at or below it. None: anything.
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
            raise UsageError(
                f"--max-accuracy-drop is {100 * self.max_drop:g} points", "give 0 to 100 percentage points"
            )


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The numbers of the steps that change a structure, as `vggdeploy.optimize.steps.structure` has them; None where a step is
    not asked for."""

    keep: float | Mapping[str, float] | None = None
    ranks: int | Mapping[str, int] | None = None
    rank_keep: float | None = None
    job: TuningJob = TuningJob()


Hits = NDArray[np.bool_]


def hits_of(session: CheckedSession, batches: Iterable[tuple[Array, NDArray[np.int64]]]) -> Hits:
    """Which images an open classifier has right, of batches as the graph wants them with their labels."""
    hits = []
    for images, labels in batches:
        chosen = top1(run_batch(session, images))
        assert chosen is not None  # noqa: S101  # a classifier that we exported has logits
        hits.append(chosen == labels)
    return np.concatenate(hits)


def pack(hits: Hits) -> str:
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpack(text: str, count: int) -> Hits | None:
    """The reverse of `pack`; None where ``text`` is not of ``count`` images."""
    data = _bits(text)
    return data[:count] if data is not None and len(data) == 8 * -(-count // 8) else None


def first_hits(origin: OriginalNetwork | None, dataset: str, split: str, count: int) -> Hits | None:
    """Of the first ``count`` images of a split; None where they are not known: no step changed the network, or other
    images."""
    if origin is None or origin.dataset != dataset:
        return None
    data = _bits(origin.hits.get(split, ""))
    return data[:count] if data is not None and len(data) >= count else None


def _bits(text: str) -> Hits | None:
    try:
        return np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8)).astype(bool)
    except ValueError:
        return None
