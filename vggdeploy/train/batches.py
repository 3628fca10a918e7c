"""The order of the images in an epoch, and its cut into batches: functions of seed and epoch alone. Torch-free."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def batches_per_epoch(images: int, batch_size: int) -> int:
    return math.ceil(images / batch_size)


def epoch_batches(images: int, batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Positions of the images of every batch of an epoch.

    Every image comes once. Sizes differ by one at most, and none is above ``batch_size``: a last batch of a few images
    would disturb batch norm's running statistics.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return np.array_split(order, batches_per_epoch(images, batch_size))


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's dropout: a run that starts at this epoch draws what the whole run draws there."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
