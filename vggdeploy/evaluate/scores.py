"""From class scores and true labels to rates, counted batch by batch: memory does not grow with the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import UsageError
from vggdeploy.parity import clopper_pearson
from vggdeploy.records.evaluation import LISTED_PAIRS, MATRIX_CLASSES, ClassScore, Confusion, Rate

Array = NDArray[Any]

TOP = 5
BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 5
_TWO_SIDED = 0.975  # each of two one-sided bounds that hold at 97.5% leaves 2.5% outside: together 95%
_LEAST = float(np.finfo(np.float32).tiny)  # a probability that FP32 rounds to 0 would have an infinite loss


class Scores:
    """Running counts of a classifier with ``classes`` classes. All sums are FP64.

    Of equal scores the one with the lower index counts as the higher, as in ``argmax``.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.samples = 0
        self.hits = 0
        self.top_hits = 0
        self._loss = 0.0
        self._cells: Counter[int] = Counter()  # label · classes + predicted → images: only what occurs is kept
        self._images = np.zeros(classes, np.int64)
        self._predicted = np.zeros(classes, np.int64)
        self._bins = np.zeros((3, BINS))  # images, hits, sum of confidence

    def update(self, outputs: Mapping[str, Array], labels: NDArray[np.int64]) -> None:
        """Add a batch: ``logits`` or ``probabilities`` ``[N, classes]``, and the true classes ``[N]``."""
        log_probabilities = _log_probabilities(outputs)
        scores = outputs.get("logits", outputs.get("probabilities", log_probabilities))
        rows = np.arange(len(labels))
        own = scores[rows, labels][:, None]
        before = (scores == own) & (np.arange(self.classes) < labels[:, None])
        rank = ((scores > own) | before).sum(axis=1)
        predicted = scores.argmax(axis=1)
        self.samples += len(labels)
        self.hits += int((rank == 0).sum())
        self.top_hits += int((rank < TOP).sum())
        self._loss -= float(log_probabilities[rows, labels].sum())
        self._cells.update((labels * self.classes + predicted).tolist())
        self._images += np.bincount(labels, minlength=self.classes)
        self._predicted += np.bincount(predicted, minlength=self.classes)
        confidence = np.exp(log_probabilities[rows, predicted])
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bin b is (b/15, (b + 1)/15]
        for row, weights in enumerate((np.ones(len(labels)), rank == 0, confidence)):
            self._bins[row] += np.bincount(bins, weights, BINS)

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return self._loss / self.samples

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3): Σ_b n_b/N · |accuracy_b − confidence_b|."""
        _, hits, confidence = self._bins
        return float(np.abs(hits - confidence).sum() / self.samples)

    @property
    def accuracy(self) -> Rate:
        return rate(self.hits, self.samples)

    @property
    def top5(self) -> Rate | None:
        return rate(self.top_hits, self.samples) if self.classes > TOP else None

    def class_scores(self, labels: Sequence[str]) -> tuple[ClassScore, ...]:
        """Each class; without ``labels`` it is named by its index."""
        scores = []
        for i, (images, predicted) in enumerate(zip(self._images.tolist(), self._predicted.tolist(), strict=True)):
            correct = self._cells[i * self.classes + i]
            scores.append(
                ClassScore(
                    index=i,
                    label=labels[i] if labels else str(i),
                    images=images,
                    predicted=predicted,
                    correct=correct,
                    precision=_ratio(correct, predicted),
                    recall=_ratio(correct, images),
                    f1=_ratio(2 * correct, images + predicted),
                )
            )
        return tuple(scores)

    def confusion(self) -> tuple[tuple[int, ...], ...] | None:
        """The confusion matrix, true classes in rows; None with more than `MATRIX_CLASSES` classes."""
        n = self.classes
        if n > MATRIX_CLASSES:
            return None
        return tuple(tuple(self._cells[i * n + j] for j in range(n)) for i in range(n))

    def confused(self) -> tuple[Confusion, ...]:
        """The most frequent confusions; of equals, in the order of the classes."""
        wrong = [(-count, *divmod(cell, self.classes)) for cell, count in self._cells.items() if count]
        wrong = sorted(pair for pair in wrong if pair[1] != pair[2])
        return tuple(Confusion(label=i, predicted=j, images=-count) for count, i, j in wrong[:LISTED_PAIRS])


def _log_probabilities(outputs: Mapping[str, Array]) -> NDArray[np.float64]:
    """From logits by a softmax shifted by the row's maximum, so that nothing overflows; else from the probabilities.

    Raises:
        UsageError: there is neither.
    """
    if "logits" in outputs:
        logits = outputs["logits"].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    if "probabilities" in outputs:
        return np.asarray(np.log(np.maximum(outputs["probabilities"].astype(np.float64), _LEAST)))
    raise UsageError(
        f"there are no class scores to evaluate, only {', '.join(sorted(outputs))}",
        "export it again with --outputs logits,…, or evaluate its checkpoint",
    )


def rate(hits: int, samples: int) -> Rate:
    """``hits`` of ``samples`` with its exact two-sided 95% interval (Clopper & Pearson 1934)."""
    lower, upper = clopper_pearson(hits, samples, confidence=_TWO_SIDED)
    return Rate(hits=hits, samples=samples, rate=hits / samples, lower=lower, upper=upper)


def macro(values: Sequence[float | None]) -> float:
    """The mean over the classes that have a value; 0 without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
