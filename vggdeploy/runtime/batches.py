"""Batches of any size for variants that do not take every size."""

from __future__ import annotations

import numpy as np

from vggdeploy.runtime.base import Array, CheckedSession


def run_batch(session: CheckedSession, batch: Array) -> dict[str, Array]:
    """Run a batch of at most the session's maximum: graph output name → array.

    One below the minimum (the rest of a data set on an engine for batches of 8) is filled up with copies of its last
    sample, whose answers are dropped.

    Raises:
        InputError: an empty or too large batch, a wrong dtype or shape, a NaN or infinity.
    """
    count, name = len(batch), session.inputs[0].name
    if 0 < count < session.batch.min:
        batch = np.concatenate([batch, np.repeat(batch[-1:], session.batch.min - count, axis=0)])
    return {key: array[:count] for key, array in session.run({name: batch}).items()}
