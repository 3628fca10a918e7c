"""Which image belongs to which split: fixed for ever, stratified by class, disjoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vggdeploy.data.specs import DatasetSpec, Split

Indices = NDArray[np.int64]


def split_indices(
    dataset: DatasetSpec, part: str, labels: NDArray[np.int64], split: Split, keys: Sequence[str] | None = None
) -> Indices:
    """Positions, within the images that the source calls ``part``, of those in ``split``.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``, as the authors of the data set divided it; ``"all"`` where
            they did not.
        labels: the labels of every image of that part.
        keys: what the order is made from instead of positions: names that stay where images are added or removed.

    The positions are shuffled, so that any first n are a random sample.
    """
    salt = f"{dataset.name}/{part}"
    order = shuffled([f"{salt}/{index}" for index in range(len(labels))] if keys is None else keys)
    if part in ("validation", "test"):
        return order
    test, rest = _hold_out(order, labels, dataset.test)
    validation, train = _hold_out(rest, labels, dataset.validation)
    return {"train": train, "validation": validation, "test": test}[split]


def shuffled(keys: Sequence[str]) -> Indices:
    """Positions ordered by the SHA-256 of their keys: the same order with every version of NumPy, on every machine."""
    digests = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__), np.int64)


def _hold_out(order: Indices, labels: NDArray[np.int64], share: float) -> tuple[Indices, Indices]:
    """The first ``share`` of every class, and the rest; both in the order given."""
    held = np.zeros(len(order), bool)
    here = labels[order]
    for label in np.unique(here):
        places = np.flatnonzero(here == label)
        held[places[: round(share * len(places))]] = True
    return order[held], order[~held]
