"""Which image belongs to which split: fixed for ever, stratified by class, disjoint."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vggdeploy.data.specs import DatasetSpec, Split

Indices = NDArray[np.int64]


def split_indices(dataset: DatasetSpec, part: str, labels: NDArray[np.int64], split: Split) -> Indices:
    """Positions, within the images that the source calls ``part``, of those in ``split``.

    Args:
        part: ``"train"`` or ``"test"``, as the authors of the data set divided it; ``"all"`` where they did not.
        labels: the labels of every image of that part.

    The positions are shuffled, so that any first n are a random sample.
    """
    order = shuffled(len(labels), salt=f"{dataset.name}/{part}")
    if part == "test":
        return order
    test, rest = _hold_out(order, labels, dataset.test)
    validation, train = _hold_out(rest, labels, dataset.validation)
    return {"train": train, "validation": validation, "test": test}[split]


def shuffled(count: int, *, salt: str) -> Indices:
    """0 … count − 1, ordered by SHA-256: the same order with every version of NumPy, on every machine."""
    keys = [hashlib.sha256(f"{salt}/{index}".encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), np.int64)


def _hold_out(order: Indices, labels: NDArray[np.int64], share: float) -> tuple[Indices, Indices]:
    """The first ``share`` of every class, and the rest; both in the order given."""
    held = np.zeros(len(order), bool)
    here = labels[order]
    for label in np.unique(here):
        places = np.flatnonzero(here == label)
        held[places[: round(share * len(places))]] = True
    return order[held], order[~held]
