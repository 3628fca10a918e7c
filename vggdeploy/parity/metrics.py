"""How far two arrays stand apart, accumulated batch by batch, and exact bounds for counted flips."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.records import AccuracyDrop, FlipCount, OutputParity

TOP = 5
_Z95 = 1.6448536269514722  # the 95% quantile of the normal distribution: one-sided bounds, as for flips
_BISECTIONS = 60  # halves of [0, 1]: far below the spacing of doubles around any bound


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


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine similarity of each row pair. Two zero rows are alike (1); a zero row and another are not (0)."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    found = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    found[both_zero] = 1.0
    clipped: NDArray[np.float64] = np.clip(found, -1.0, 1.0)
    return clipped


def top1(outputs: dict[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    """The class of each sample, from ``logits`` or ``probabilities``; None for a graph with neither."""
    scores = outputs.get("logits", outputs.get("probabilities"))
    return None if scores is None else scores.argmax(axis=1)


def top5(outputs: dict[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    """The five best classes of each sample, ``[N, 5]``, in no order; None without scores or with at most 5 classes."""
    scores = outputs.get("logits", outputs.get("probabilities"))
    if scores is None or scores.shape[1] <= TOP:
        return None
    return np.argpartition(scores, -TOP, axis=1)[:, -TOP:]


def samples_to_decide(flips: int, samples: int, limit: float) -> int | None:
    """How many samples would decide that the flip rate is at most ``limit``, if flips stay as rare as they were.

    None where they are not rare enough: then more samples would fail it.
    """
    rate = flips / samples
    if rate >= limit:
        return None
    low, high = samples, 2 * samples
    while clopper_pearson(round(rate * high), high)[1] > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if clopper_pearson(round(rate * middle), middle)[1] <= limit else (middle, high)
    return high


def accuracy_drop(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> AccuracyDrop:
    """Accuracy of both on the same samples; ``True`` where the answer was right.

    The interval is Bonett & Price's (2012) adjusted Wald interval for paired proportions: one is added to each
    discordant cell, two to the samples. McNemar's test is the exact binomial one, two-sided.
    """
    lost = int((reference & ~candidate).sum())
    won = int((candidate & ~reference).sum())
    n = len(reference)
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    middle = p_lost - p_won
    half = _Z95 * float(np.sqrt((p_lost + p_won - middle**2) / (n + 2)))
    discordant = lost + won
    tail = _binomial_cdf(min(lost, won), discordant, 0.5) if discordant else 1.0
    return AccuracyDrop(
        lost=lost,
        won=won,
        samples=n,
        drop=(lost - won) / n,
        lower=max(-1.0, middle - half),
        upper=min(1.0, middle + half),
        p_value=min(1.0, 2 * tail),
    )


def clopper_pearson(successes: int, samples: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided exact bounds of a binomial rate (Clopper & Pearson 1934), each holding at ``confidence``.

    The lower bound is the rate p at which P(X ≥ successes) = 1 − confidence, the upper the one at which
    P(X ≤ successes) = 1 − confidence; both are found by bisection on the exact distribution.
    """
    if not 0 <= successes <= samples or samples < 1:
        raise ValueError(f"{successes} of {samples} is not a count")
    alpha = 1 - confidence
    lower = 0.0 if successes == 0 else _bisect(lambda p: 1 - _binomial_cdf(successes - 1, samples, p) < alpha)
    upper = 1.0 if successes == samples else _bisect(lambda p: _binomial_cdf(successes, samples, p) > alpha)
    return lower, upper


def _bisect(below: Any) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for X ~ Binomial(n, p), 0 < p < 1, summed in the log domain."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    i = np.arange(k + 1)
    terms = log_factorial[n] - log_factorial[i] - log_factorial[n - i] + i * np.log(p) + (n - i) * np.log1p(-p)
    peak = terms.max()
    return float(min(1.0, np.exp(peak) * np.exp(terms - peak).sum()))


def flip_count(flips: int, samples: int) -> FlipCount:
    lower, upper = clopper_pearson(flips, samples)
    return FlipCount(flips=flips, samples=samples, lower=lower, upper=upper)
