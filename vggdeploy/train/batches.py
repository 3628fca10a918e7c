"""The order of the images in an epoch, its cut into batches, and the seeds of what is random in a step.

All are functions of the recipe's seed and of the place in the run alone, so a run that starts anywhere does there what
the whole run does. Torch-free.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
