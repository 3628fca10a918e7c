"""Exact bounds of counted flips, bounds of a drop in accuracy, and how many samples would decide a limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vggdeploy.records import AccuracyDrop, FlipCount

ALPHA = 0.05  # every bound is one-sided and holds at 95%
_Z95 = 1.6448536269514722  # the 95% quantile of the normal distribution
_BISECTIONS = 60  # halves of [0, 1]: far below the spacing of doubles around any bound
_MOST_SAMPLES = 10**8  # more than any data set has


def flip_count(flips: int, samples: int) -> FlipCount:
    lower, upper = clopper_pearson(flips, samples)
    return FlipCount(flips=flips, samples=samples, lower=lower, upper=upper)


def clopper_pearson(successes: int, samples: int, *, confidence: float = 1 - ALPHA) -> tuple[float, float]:
    """One-sided exact bounds of a binomial rate (Clopper & Pearson 1934), each holding at ``confidence``.

    The lower bound is the rate p at which P(X ≥ successes) = 1 − confidence, the upper the one at which
    P(X ≤ successes) = 1 − confidence; both are found by bisection on the exact distribution.
    """
    if not 0 <= successes <= samples or samples < 1:
        raise ValueError(f"{successes} of {samples} samples is not a count")
    alpha = 1 - confidence
    lower = 0.0 if successes == 0 else _bisect(lambda p: 1 - _binomial_cdf(successes - 1, samples, p) < alpha)
    upper = 1.0 if successes == samples else _bisect(lambda p: _binomial_cdf(successes, samples, p) > alpha)
    return lower, upper


def _bisect(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for X ~ Binomial(n, p), summed in the log domain: each term is the one before it times
    (n − i + 1) / i · p / (1 − p)."""
    if k < 0 or p >= 1:
        return 0.0 if k < n else 1.0
    if p <= 0:
        return 1.0
    i = np.arange(1, k + 1)
    steps = np.log((n - i + 1) / i) + (math.log(p) - math.log1p(-p))
    terms = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    peak = terms.max()
    return float(min(1.0, np.exp(peak) * np.exp(terms - peak).sum()))


def samples_to_decide(flips: int, samples: int, limit: float) -> int | None:
    """How many samples would decide whether the flip rate is at most ``limit``, if flips stay as frequent as they were.

    None where no number would: the rate is the limit.
    """
    rate = flips / samples
    if math.isclose(rate, limit, rel_tol=1e-9, abs_tol=1e-12):
        return None
    # The upper bound is at most the limit where P(X ≤ k) ≤ α at that rate; the lower above it where P(X ≥ k) < α.
    if rate < limit:
        return _fewest(lambda n: _binomial_cdf(math.ceil(rate * n), n, limit) <= ALPHA, samples)
    return _fewest(lambda n: 1 - _binomial_cdf(math.floor(rate * n) - 1, n, limit) < ALPHA, samples)


def drop_samples_to_decide(lost: int, won: int, samples: int, limit: float) -> int | None:
    """How many samples would decide whether accuracy fell by at most ``limit``, if both answers stay as they were.

    None where no number would: the drop is the limit.
    """
    drop = (lost - won) / samples
    if math.isclose(drop, limit, rel_tol=1e-9, abs_tol=1e-12):
        return None

    def decides(n: int) -> bool:
        lower, upper = _drop_bounds(lost * n / samples, won * n / samples, n)
        return upper <= limit if drop < limit else lower > limit

    return _fewest(decides, samples)


def _fewest(decides: Callable[[int], bool], samples: int) -> int | None:
    """The smallest number of samples above ``samples`` that decides, found by doubling and halving."""
    low, high = samples, 2 * samples
    while not decides(high):
        low, high = high, 2 * high
        if high > _MOST_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def accuracy_drop(lost: int, won: int, samples: int) -> AccuracyDrop:
    """Accuracy of both on the same samples, from those that only the reference got right, or only the candidate.

    The interval is Bonett & Price's (2012) adjusted Wald interval for paired proportions: one is added to each
    discordant cell, two to the samples. McNemar's test is the exact binomial one, two-sided.
    """
    lower, upper = _drop_bounds(lost, won, samples)
    discordant = lost + won
    tail = _binomial_cdf(min(lost, won), discordant, 0.5) if discordant else 1.0
    return AccuracyDrop(
        lost=lost,
        won=won,
        samples=samples,
        drop=(lost - won) / samples,
        lower=lower,
        upper=upper,
        p_value=min(1.0, 2 * tail),
    )


def _drop_bounds(lost: float, won: float, n: int) -> tuple[float, float]:
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    middle = p_lost - p_won
    half = _Z95 * math.sqrt((p_lost + p_won - middle**2) / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)
