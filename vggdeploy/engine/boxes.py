"""From what the heads of an SSD give to boxes: decoding, and non-maximum suppression as torchvision computes it. Torch-free.

In float32 and in torchvision's order of operations, so that the same numbers give the same boxes: `nms` keeps what
``torchvision.ops.nms`` keeps, to the last box. `numpy.exp` and torch's differ in the last bit, and with it scores and corners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]
_LARGEST = np.float32(math.log(1000 / 16))  # torchvision's bound of a box's growth, before exp


@dataclass(frozen=True)
class Found:
    """The boxes of one image, best first: ``float32 [K, 4]`` corners x₁, y₁, x₂, y₂ in pixels of the network's input,
    ``float32 [K]`` scores, ``int64 [K]`` class indices; 0 is the background, and is never one."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """What becomes of scores and offsets (Liu 2016; the names and defaults are those of ``torchvision.models.detection.SSD``).

    ``weights``: what the offsets of centre and size were multiplied by in training. Scores of at most ``score_threshold`` are
    dropped; of each class the best ``candidates`` go on; of boxes that overlap by more than ``nms_threshold`` (intersection
    over union) the best stays; an image has ``most`` boxes at most.
    """

    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = 0.01
    nms_threshold: float = 0.45
    candidates: int = 400
    most: int = 200


def decoded(offsets: Floats, anchors: Floats, weights: tuple[float, float, float, float]) -> Floats:
    """Offsets ``[A, 4]`` from default boxes ``[A, 4]`` (corners) → corners ``[A, 4]``."""
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + np.float32(0.5) * sizes
    scaled = offsets / np.asarray(weights, np.float32)
    middle = scaled[:, :2] * sizes + centres
    half = np.float32(0.5) * (np.exp(np.minimum(scaled[:, 2:], _LARGEST)) * sizes)
    return np.concatenate([middle - half, middle + half], axis=1)


def nms(boxes: Floats, scores: Floats, threshold: float) -> Indices:
    """Indices of the boxes that stay, best first: a box goes when a better one that stays overlaps it by more than that.

    Of equal scores the first box is the better one.
    """
    order = np.argsort(-scores, kind="stable")
    corners = boxes[order].T
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    gone = np.zeros(len(order), bool)
    kept = []
    for i in range(len(order)):
        if gone[i]:
            continue
        kept.append(i)
        low = np.maximum(corners[:2, i, None], corners[:2, i + 1 :])
        high = np.minimum(corners[2:, i, None], corners[2:, i + 1 :])
        sides = np.maximum(high - low, np.float32(0))
        shared = sides[0] * sides[1]
        with np.errstate(invalid="ignore", divide="ignore"):  # boxes without area: 0/0, which is above no threshold
            overlap = shared / (areas[i] + areas[i + 1 :] - shared)
        gone[i + 1 :] |= overlap.astype(np.float64) > threshold
    return order[kept]


def found(logits: Floats, offsets: Floats, anchors: Floats, side: tuple[int, int], rules: Rules) -> Found:
    """The boxes of one image.

    Args:
        logits: class scores ``[A, classes]``, the background first.
        offsets: ``[A, 4]``.
        anchors: the default boxes ``[A, 4]``, corners in pixels.
        side: height and width of the input in pixels, to which boxes are cut.
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    height, width = side
    corners = decoded(offsets, anchors, rules.weights)
    corners = np.clip(corners, np.float32(0), np.asarray((width, height, width, height), np.float32))
    parts: list[tuple[Floats, Floats, NDArray[np.int64]]] = []
    for label in range(1, logits.shape[1]):
        scores: Any = probabilities[:, label]
        above = np.flatnonzero(scores > np.float32(rules.score_threshold))
        best = above[np.argsort(-scores[above], kind="stable")[: rules.candidates]]
        kept = best[nms(corners[best], scores[best], rules.nms_threshold)]
        parts.append((corners[kept], scores[kept], np.full(len(kept), label, np.int64)))
    boxes, scores, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")[: rules.most]
    return Found(boxes[order], scores[order], labels[order])
