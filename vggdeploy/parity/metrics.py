"""How far two arrays stand apart, and what became of the best classes, accumulated batch by batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.parity.bounds import accuracy_drop, flip_count
from vggdeploy.records import AccuracyDrop, FlipCount, OutputParity

TOP = 5
SCORES = ("logits", "probabilities")  # outputs with a score for each class
Outputs = Mapping[str, NDArray[Any]]


class OutputStats:
    """Running comparison of one output. All sums are FP64: a million FP32 samples must not blur the result."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.samples = 0
        self._max_abs = 0.0
        self._sum_abs = 0.0
        self._values = 0
        self._error_sq = 0.0
        self._reference_sq = 0.0
        self._cosine_min = 1.0
        self._cosine_sum = 0.0
        self._tolerance = 0.0

    def update(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Add a batch: two arrays ``[N, …]`` of the same shape."""
        if reference.shape != candidate.shape:
            raise ValueError(f"{self.output}: shapes {reference.shape} and {candidate.shape} differ")
        a = reference.reshape(len(reference), -1).astype(np.float64)
        b = candidate.reshape(len(candidate), -1).astype(np.float64)
        delta = np.abs(b - a)
        self._max_abs = max(self._max_abs, float(delta.max(initial=0)))
        self._sum_abs += float(delta.sum())
        self._values += delta.size
        self._error_sq += float((delta**2).sum())
        self._reference_sq += float((a**2).sum())
        self._tolerance = max(self._tolerance, float((delta / (1 + np.abs(a))).max(initial=0)))
        cosines = cosine(a, b)
        self._cosine_min = min(self._cosine_min, float(cosines.min(initial=1)))
        self._cosine_sum += float(cosines.sum())
        self.samples += len(a)

    def result(self) -> OutputParity:
        """The record of all batches so far; at least one sample is needed."""
        if not self.samples:
            raise ValueError(f"{self.output}: nothing was compared")
        if self._reference_sq > 0:
            relative = float(np.sqrt(self._error_sq / self._reference_sq))
        else:
            # JSON has no infinity: the largest double stands for a distance from nothing at all.
            relative = 0.0 if self._error_sq == 0 else sys.float_info.max
        return OutputParity(
            output=self.output,
            samples=self.samples,
            max_abs=self._max_abs,
            mean_abs=self._sum_abs / max(self._values, 1),
            relative_l2=relative,
            cosine_min=self._cosine_min,
            cosine_mean=self._cosine_sum / self.samples,
            snr_db=self._snr(),
            tolerance=self._tolerance,
        )

    def _snr(self) -> float | None:
        """10·log₁₀ of the energies' ratio; without error or without signal there is no such number."""
        if self._error_sq == 0 or self._reference_sq == 0:
            return None
        return float(10 * np.log10(self._reference_sq / self._error_sq))


def distance(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Relative L2; infinite where the shapes differ or the reference is zero and the candidate is not."""
    if reference.shape != candidate.shape:
        return float("inf")
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    difference, length = float(np.linalg.norm(a - b)), float(np.linalg.norm(a))
    if not difference:
        return 0.0
    return difference / length if length else float("inf")


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine similarity of each row pair. Two zero rows are alike (1); a zero row and another are not (0)."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    cosines[both_zero] = 1.0
    clipped: NDArray[np.float64] = np.clip(cosines, -1.0, 1.0)
    return clipped


def _scores(outputs: Outputs) -> NDArray[Any] | None:
    return outputs["logits"] if "logits" in outputs else outputs.get("probabilities")


def top1(outputs: Outputs) -> NDArray[np.int64] | None:
    """The class of each sample, from ``logits`` or ``probabilities``; None for a graph with neither."""
    scores = _scores(outputs)
    return None if scores is None else scores.argmax(axis=1)


def top5(outputs: Outputs) -> NDArray[np.int64] | None:
    """The five best classes of each sample, ``[N, 5]``, in no order; None without scores or with at most 5 classes."""
    scores = _scores(outputs)
    if scores is None or scores.shape[1] <= TOP:
        return None
    return np.argpartition(scores, -TOP, axis=1)[:, -TOP:]


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> AccuracyDrop:
    """The drop of accuracy from which of the same samples were right before, and which are after; bounds for a single look."""
    return accuracy_drop(int((before & ~after).sum()), int((after & ~before).sum()), len(after))


class ClassCounts:
    """What became of the best classes, counted batch by batch: flips, and who was right where labels are known."""

    def __init__(self) -> None:
        self._samples = self._flipped = self._judged = self._missing = 0
        self._labelled = self._lost = self._won = self._reference_right = 0

    def update(self, reference: Outputs, candidate: Outputs, labels: NDArray[np.int64] | None = None) -> None:
        """Add a batch. The reference may have fewer rows than the candidate; graphs without scores add nothing."""
        expected, actual = top1(reference), top1(candidate)
        if expected is None or actual is None:
            return
        count = len(expected)
        actual = actual[:count]
        self._samples += count
        self._flipped += int((actual != expected).sum())
        best = top5(candidate)
        if best is not None:
            self._judged += count
            self._missing += int((best[:count] != expected[:, None]).all(axis=1).sum())
        if labels is not None:
            right, still = expected == labels[:count], actual == labels[:count]
            self._labelled += count
            self._reference_right += int(right.sum())
            self._lost += int((right & ~still).sum())
            self._won += int((~right & still).sum())

    def flips(self) -> FlipCount | None:
        """Samples whose class changed."""
        return flip_count(self._flipped, self._samples) if self._samples else None

    def top5_flips(self) -> FlipCount | None:
        """Samples whose class of the reference is not among the candidate's five best; None with at most 5 classes."""
        return flip_count(self._missing, self._judged) if self._judged else None

    def drop(self) -> AccuracyDrop | None:
        return accuracy_drop(self._lost, self._won, self._labelled, anytime=True) if self._labelled else None

    def accuracies(self) -> tuple[float | None, float | None]:
        """Of the reference and of the candidate, as fractions."""
        if not self._labelled:
            return None, None
        right = self._reference_right
        return right / self._labelled, (right - self._lost + self._won) / self._labelled
