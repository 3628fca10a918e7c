"""Batches for the training loop, prepared in a thread of their own while the network computes."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdeploy.data.loaders import Images
from vggdeploy.train.recipe import Recipe

T = TypeVar("T")
AHEAD = 2  # batches that wait: one is enough where preparing is faster, more never helps where it is slower


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch on its device: ``uint8 [n, H, W, C]``, ``int64 [n]``; ``size`` is the whole's, and
    ``positions [n]`` are the images' places in the training split."""

    step: int
    size: int
    images: Tensor
    labels: Tensor
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """The training images in the order of the recipe, for process ``rank`` of ``processes``."""

    data: Images
    recipe: Recipe
    device: torch.device
    rank: int = 0
    processes: int = 1

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch but the first ``skip``. Close it when you leave it early."""
        recipe = self.recipe
        batches = epoch_batches(len(self.data), recipe.batch_size, seed=recipe.seed, epoch=epoch)
        first = epoch * len(batches)
        made = (self._batch(first + at, batches[at]) for at in range(skip, len(batches)))
        return ahead(made)

    def _batch(self, step: int, positions: NDArray[np.int64]) -> Batch:
        recipe = self.recipe
        share = np.array_split(positions, self.processes)[self.rank]
        seed = step_seed(recipe.seed, step, stream=AUGMENT, rank=self.rank)
        images, labels = load(self.data, share, self.device, augment=recipe.augment, seed=seed)
        return Batch(step, len(positions), images, labels, share)


def load(
    data: Images, positions: NDArray[np.int64], device: torch.device, *, augment: Sequence[str] = (), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images and labels at these positions, on the device."""
    images = torch.from_numpy(data.batch(positions))
    if augment:
        from vggdeploy.train import augment as kinds  # late: torchvision takes a second to import

        images = kinds.augment(images, augment, seed)
    labels = torch.from_numpy(data.labels[positions])
    if device.type == "cpu":
        return images, labels
    return images.pin_memory().to(device, non_blocking=True), labels.pin_memory().to(device, non_blocking=True)


def ahead(made: Iterable[T], depth: int = AHEAD) -> Iterator[T]:
    """``made``, computed in a thread up to ``depth`` items before they are asked for; its error is raised here."""
    waiting: queue.Queue[_Item[T] | None] = queue.Queue(depth)
    left = threading.Event()

    def put(item: _Item[T] | None) -> bool:
        while not left.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for value in made:
                if not put(_Item(value=value)):
                    return
        except Exception as error:  # whoever asks for the next item gets it
            put(_Item(error=error))
        else:
            put(None)

    thread = threading.Thread(target=work, name="vggdeploy-feed", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if item.error is not None:
                raise item.error
            yield cast(T, item.value)
    finally:
        left.set()
        thread.join()


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T | None = None
    error: Exception | None = None


# What a step draws: one stream each, so that augmentation does not change dropout.
DROPOUT, AUGMENT = 1, 2


def batches_per_epoch(images: int, batch_size: int) -> int:
    return math.ceil(images / batch_size)


def epoch_batches(images: int, batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Positions of the images of every batch of an epoch.

    Every image comes once. Sizes differ by one at most, and none is above ``batch_size``: a last batch of a few images
    would disturb batch norm's running statistics.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return np.array_split(order, batches_per_epoch(images, batch_size))


def step_seed(seed: int, step: int, *, stream: int, rank: int = 0) -> int:
    """The seed of one of a step's random streams, in the process ``rank``."""
    sequence = np.random.SeedSequence([seed, step, stream, rank])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
