"""Bounds of counted flips and of a drop in accuracy, and how many samples would decide a limit.

A verdict that was not decided may be asked again with more images. So the bounds of `flip_count` and of
`accuracy_drop` with ``anytime`` hold at every number of images at once: they are a confidence sequence by betting
(Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86(1)). Somebody
bets 1 against "the mean is m or more"; no strategy is expected to win then, and the chance that its capital ever reaches
1/α is at most α (Ville's inequality). Every m against which the capital reaches 1/α is out.

The capital is spread over fixed bets (Robbins' method of mixtures), so it depends on the counts alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from vggdeploy.records import AccuracyDrop, FlipCount

ALPHA = 0.05  # every bound is one-sided and holds at 95%
_Z95 = 1.6448536269514722  # the 95% quantile of the normal distribution
_BISECTIONS = 60  # halves of [0, 1]: far below the spacing of doubles around any bound
_MOST_SAMPLES = 10**8  # more than any data set has

Capital = NDArray[np.float64]

# Shares of the largest bet that cannot go below nothing, √2 apart: down to a rate within 1/10,000 of its limit.
_BETS = 2.0 ** (-np.arange(28) / 2)
# The capital behind each. To pass, half of it stands on "there is not one flip", the largest bet: then 352 images without a
# flip promise 1%, where a bound for a single look takes 299. To fail, nothing is known of how wrong a variant is.
_TO_PASS: Capital = 1 / (np.arange(1.0, 29) * np.arange(2.0, 30))  # 1/2, 1/6, 1/12, …: 1 in all
_TO_FAIL: Capital = np.full(28, 1 / 28)


def flip_count(flips: int, samples: int) -> FlipCount:
    """The flips with bounds of their rate that hold at any number of looks."""
    _check_count(flips, samples)
    upper = _highest_mean({1: flips, 0: samples - flips}, _TO_PASS)
    lower = 0.0 - _highest_mean({-1: flips, 0: samples - flips}, _TO_FAIL)
    return FlipCount(flips=flips, samples=samples, lower=lower, upper=upper, anytime=True)


def _highest_mean(counts: Mapping[int, int], capital: Capital) -> float:
    """The largest mean that bets on a lower one have not ruled out, of values that were seen so many times each.

    No value may be above the largest key.
    """
    top = max(counts)
    if counts[top] == sum(counts.values()):
        return float(top)
    return _bisect(lambda mean: not _ruled_out(mean, counts, capital), -1.0, float(top))


def _ruled_out(mean: float, counts: Mapping[int, int], capital: Capital) -> bool:
    """Whether bets on less than ``mean`` have multiplied their capital by 1/α. What holds for a mean holds above it.

    A bet c turns 1 into 1 + c·(mean − v) / (top − mean) at each value v: never below 0, and on average into at most 1 when
    the mean is at least this one.
    """
    top = max(counts)
    if mean >= top:
        return counts[top] < sum(counts.values())
    logs = np.log(capital)
    with np.errstate(divide="ignore"):  # the largest bet loses everything at the top value
        for value, count in counts.items():
            if count:
                logs = logs + count * np.log1p(_BETS * ((mean - value) / (top - mean)))
    return bool(np.logaddexp.reduce(logs) >= -math.log(ALPHA))


def _check_count(successes: int, samples: int) -> None:
    if not 0 <= successes <= samples or samples < 1:
        raise ValueError(f"{successes} of {samples} samples is not a count")


def clopper_pearson(successes: int, samples: int, *, confidence: float = 1 - ALPHA) -> tuple[float, float]:
    """One-sided exact bounds of a binomial rate at one look (Clopper & Pearson 1934), each holding at ``confidence``.

    The lower bound is the rate p at which P(X ≥ successes) = 1 − confidence, the upper the one at which
    P(X ≤ successes) = 1 − confidence; both are found by bisection on the exact distribution.
    """
    _check_count(successes, samples)
    alpha = 1 - confidence
    lower = 0.0 if successes == 0 else _bisect(lambda p: 1 - _binomial_cdf(successes - 1, samples, p) < alpha)
    upper = 1.0 if successes == samples else _bisect(lambda p: _binomial_cdf(successes, samples, p) > alpha)
    return lower, upper


def _bisect(below: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


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

    def seen(n: int, worse: Callable[[float], int]) -> dict[int, int]:
        found = worse(flips * n / samples)
        return {1: found, 0: n - found}

    return _fewest(seen, flips / samples, samples, limit)


def drop_samples_to_decide(lost: int, won: int, samples: int, limit: float) -> int | None:
    """How many samples would decide whether accuracy fell by at most ``limit``, if both answers stay as they were.

    None where no number would: the drop is the limit.
    """

    def seen(n: int, worse: Callable[[float], int]) -> dict[int, int]:
        better = math.floor if worse is math.ceil else math.ceil
        up, down = worse(lost * n / samples), better(won * n / samples)
        return {1: up, 0: n - up - down, -1: down}

    return _fewest(seen, (lost - won) / samples, samples, limit)


def _fewest(
    seen: Callable[[int, Callable[[float], int]], dict[int, int]], mean: float, samples: int, limit: float
) -> int | None:
    """The smallest number of samples above ``samples`` that decides, found by doubling and halving.

    ``seen`` gives the counts of so many samples, rounded against the decision.
    """
    if math.isclose(mean, limit, rel_tol=1e-9, abs_tol=1e-12):
        return None

    def decides(n: int) -> bool:
        if mean < limit:
            return _ruled_out(limit, seen(n, math.ceil), _TO_PASS)
        return _ruled_out(-limit, {-value: count for value, count in seen(n, math.floor).items()}, _TO_FAIL)

    low, high = samples, 2 * samples
    while not decides(high):
        low, high = high, 2 * high
        if high > _MOST_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def accuracy_drop(lost: int, won: int, samples: int, *, anytime: bool = False) -> AccuracyDrop:
    """Accuracy of both on the same samples, from those that only the reference got right, or only the candidate.

    ``anytime``: bounds that hold at any number of looks. Else the ends of Bonett & Price's (2012) adjusted Wald interval for
    paired proportions, for one look at a number of samples that was fixed before: one is added to each discordant cell, two
    to the samples. McNemar's test is the exact binomial one, two-sided, for one look.
    """
    _check_count(lost + won, samples)
    if anytime:
        ties = samples - lost - won
        lower = 0.0 - _highest_mean({1: won, 0: ties, -1: lost}, _TO_FAIL)
        upper = _highest_mean({1: lost, 0: ties, -1: won}, _TO_PASS)
    else:
        lower, upper = _bonett_price(lost, won, samples)
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
        anytime=anytime,
    )


def _bonett_price(lost: int, won: int, n: int) -> tuple[float, float]:
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    middle = p_lost - p_won
    half = _Z95 * math.sqrt((p_lost + p_won - middle**2) / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def drawn_p_value(hits: int, samples: int, known_hits: int, known: int) -> float:
    """How surprising it is that ``samples`` drawn from ``known``, of which ``known_hits`` are right, have so many right.

    Twice the smaller tail of the hypergeometric distribution.
    """

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    possible = range(max(0, samples - (known - known_hits)), min(samples, known_hits) + 1)
    whole = log_choose(known, samples)
    weights = {
        k: math.exp(log_choose(known_hits, k) + log_choose(known - known_hits, samples - k) - whole) for k in possible
    }
    tails = [math.fsum(w for k, w in weights.items() if side * (k - hits) >= 0) for side in (-1, 1)]
    return min(1.0, 2 * min(tails))
