"""Statistics of images and answers, in bins that are the same for every bundle: what a change of either shows in.

The bins are fixed before any image is seen, which is what makes `vggdeploy.parity.changes` exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.records.drift import Population

Values = NDArray[np.float64]
BINS = 64
# Statistic → where its bins begin and end; what lies outside is in the first or the last.
OF_IMAGES = {"brightness": (0.0, 256.0), "contrast": (0.0, 128.0), "sharpness": (0.0, 18.0)}
OF_ANSWERS = {"confidence": (0.0, 20.0), "entropy": (0.0, 20.0)}
SIZE, CLASS = "size", "class"
_RANGES = {**OF_IMAGES, **OF_ANSWERS, SIZE: (0.0, 27.0)}
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_LEAST = 2.0**-20


def image_statistics(images: NDArray[np.uint8]) -> dict[str, Values]:
    """Of prepared images, ``uint8 [N, H, W, C]``: ``brightness`` and ``contrast``, the mean and the standard deviation of the
    luma (0 to 255), and ``sharpness``, log₂(1 + variance of its Laplacian) (Pech-Pacheco et al. 2000). ``[N]`` each."""
    pixels = images.astype(np.float64)
    luma = pixels @ _LUMA if images.shape[-1] == 3 else pixels.mean(axis=-1)
    inner = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    flat = (around - 4 * inner).reshape(len(images), -1)
    rough = flat.var(axis=1) if flat.size else np.zeros(len(images))
    return {
        "brightness": luma.mean(axis=(1, 2)),
        "contrast": luma.std(axis=(1, 2)),
        "sharpness": np.log2(1 + rough),
    }


def answer_statistics(probabilities: NDArray[np.floating[Any]]) -> dict[str, Values]:
    """Of class probabilities, ``[N, classes]``: ``confidence``, −log₂ of what the best class lacks to 1; ``entropy``, −log₂ of
    the share of the largest possible one; both up to 20; and ``class``, the best one's index. ``[N]`` each."""
    p = np.clip(probabilities.astype(np.float64), 0, 1)
    lacking = np.maximum(1 - p.max(axis=1), _LEAST)
    bits = -(p * np.log2(np.maximum(p, 1e-300))).sum(axis=1)
    share = bits / math.log2(p.shape[1]) if p.shape[1] > 1 else np.zeros(len(p))
    return {
        "confidence": -np.log2(lacking),
        "entropy": -np.log2(np.clip(share, _LEAST, 1.0)),
        CLASS: p.argmax(axis=1).astype(np.float64),
    }


def size_statistic(width: int, height: int) -> float:
    """log₂ of an image's pixels, before it is prepared."""
    return math.log2(max(1, width * height))


def bins_of(statistic: str, values: Values) -> NDArray[np.int64]:
    """The bin of each value, from 0."""
    if statistic == CLASS:
        return values.astype(np.int64)
    low, high = _RANGES[statistic]
    return np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.int64)


def bin_count(statistic: str, classes: int) -> int:
    return classes if statistic == CLASS else BINS


def population_of(
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.floating[Any]] | None]], *, data: str, classes: int
) -> Population | None:
    """Count test images: pairs of prepared images ``uint8 [N, H, W, C]`` and their class probabilities ``[N, classes]``, or
    None where the model has no classes. None of no images."""
    found: dict[str, list[Values]] = {}
    images = 0
    for pixels, probabilities in batches:
        images += len(pixels)
        measured: Mapping[str, Values] = image_statistics(pixels)
        if probabilities is not None:
            measured = {**measured, **answer_statistics(probabilities)}
        for name, values in measured.items():
            found.setdefault(name, []).append(values)
    if not images:
        return None
    counts = {name: _counted(name, parts, classes) for name, parts in found.items()}
    means = {name: round(float(np.concatenate(parts).mean()), 6) for name, parts in found.items() if name != CLASS}
    return Population(data=data, images=images, counts=counts, means=means)


def _counted(name: str, parts: Sequence[Values], classes: int) -> tuple[int, ...]:
    counts = np.bincount(bins_of(name, np.concatenate(parts)), minlength=bin_count(name, classes))
    return tuple(int(count) for count in counts)
