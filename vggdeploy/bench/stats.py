"""From measured times to what is reported. No clock is read here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vggdeploy.types import SpeedOutcome

_RESAMPLES = 2000


def calls_needed(q: float) -> int:
    """Samples from which on a distribution-free one-sided 95% upper bound of the ``q``-th percentile exists: the smallest n
    with 1 − (q/100)ⁿ ≥ 0.95 (Wilks 1941). 29 for p90, 299 for p99."""
    return math.ceil(math.log(0.05) / math.log(q / 100))


def percentile(times: Sequence[float], q: float) -> float | None:
    """The ``q``-th percentile (0–100), or None with fewer than `calls_needed` samples: a p99 of 20 samples is the
    maximum under another name."""
    return float(np.percentile(np.asarray(times), q)) if len(times) >= calls_needed(q) else None


def quantiles(times: Sequence[float]) -> tuple[float, ...]:
    """The 0th, 1st, … 100th percentile: the whole distribution in 101 numbers, however many calls there were."""
    return tuple(round(float(t), 6) for t in np.percentile(np.asarray(times), np.arange(101)))


def ratio_interval(
    baseline: Sequence[float], candidate: Sequence[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """How many times faster than the baseline, with a two-sided 95% percentile-bootstrap interval.

    The two sequences are the medians of interleaved rounds, paired by round: drift of the machine hits both. The
    ratio is the median of baseline / candidate; rounds are resampled as pairs.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise ValueError("rounds come in pairs")
    ratios: NDArray[np.float64] = np.asarray(baseline, np.float64) / np.asarray(candidate, np.float64)
    random = np.random.Generator(np.random.PCG64(seed))
    chosen = random.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    medians = np.median(ratios[chosen], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def unpaired_ratio_interval(old: Sequence[float], new: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """How many times faster ``new`` is, with a two-sided 95% percentile-bootstrap interval, where the rounds of both were not
    interleaved: each side is resampled on its own, and the ratio is that of the medians."""
    random = np.random.Generator(np.random.PCG64(seed))
    sides = [np.asarray(side, np.float64) for side in (old, new)]
    chosen = [np.median(side[random.integers(0, len(side), (_RESAMPLES, len(side)))], axis=1) for side in sides]
    low, high = np.percentile(chosen[0] / chosen[1], [2.5, 97.5])
    return float(np.median(sides[0]) / np.median(sides[1])), float(low), float(high)


def drift(round_medians: Sequence[float]) -> float:
    """How far the round medians spread: (largest − smallest) / median."""
    values = np.asarray(round_medians)
    return float((values.max() - values.min()) / np.median(values))


def compared(low: float, high: float) -> SpeedOutcome:
    """What the interval of a ratio shows: faster, slower, or nothing where it covers 1."""
    return SpeedOutcome.FASTER if low > 1 else SpeedOutcome.SLOWER if high < 1 else SpeedOutcome.NO_DIFFERENCE
