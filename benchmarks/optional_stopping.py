"""Verdicts that may be asked again with more images: how often they pass what is no better than the limit, and what they cost.

    python benchmarks/optional_stopping.py [--trials 2000]

A variant whose true rate of flips is the limit itself may pass in 5% of series at most, however often somebody looks. Two
ways to look: at every single image (computed exactly), and as the message of an inconclusive verdict advises (simulated, with
the package's own judgement). Beside them the same with Clopper & Pearson's bounds, which hold for a single look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from measuring import target, write_result
from scipy import stats

from vggdeploy.parity.bounds import accuracy_drop, drop_samples_to_decide, flip_count, samples_to_decide

LIMITS = (0.01, 0.03)
FIRST = (50, 359, 1000)  # images of the first look
MOST = 100_000  # images that somebody has
EVERY = 6_000  # images, of those that look at every one
SHARES = (0.0, 0.1, 0.25, 0.5)  # of the limit: the true rate of a variant that deserves to pass
DISCORDANT = (0.01, 0.05, 0.2)  # samples that only one of both got right, where the drop is the limit
Verdict = bool | None  # pass, fail, or look again


@cache
def anytime(flips: int, samples: int, limit: float) -> tuple[Verdict, int | None]:
    """The package's verdict, and how many images its message advises."""
    found = flip_count(flips, samples)
    verdict = True if found.upper <= limit else False if found.lower > limit else None
    return verdict, samples_to_decide(flips, samples, limit) if verdict is None else None


@cache
def single_look(flips: int, samples: int, limit: float) -> tuple[Verdict, int | None]:
    """The same by Clopper & Pearson's bounds: what they say at one look, and the number of images that would decide."""
    if flips <= most_flips(samples, limit):
        return True, None
    if stats.binom.sf(flips - 1, samples, limit) < 0.05:
        return False, None
    rate = flips / samples
    if rate == limit:
        return None, None
    low, high = samples, 2 * samples
    while not _decides(rate, high, limit):
        low, high = high, 2 * high
        if high > MOST:
            return None, None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _decides(rate, middle, limit) else (middle, high)
    return None, high


def _decides(rate: float, n: int, limit: float) -> bool:
    if rate < limit:
        return bool(stats.binom.cdf(np.ceil(rate * n), n, limit) <= 0.05)
    return bool(stats.binom.sf(np.floor(rate * n) - 1, n, limit) < 0.05)


@cache
def most_flips(samples: int, limit: float) -> int:
    """The most flips that pass by Clopper & Pearson; -1 where none do."""
    found = int(stats.binom.ppf(0.05, samples, limit))
    return next(k for k in range(found + 1, -2, -1) if k < 0 or stats.binom.cdf(k, samples, limit) <= 0.05)


def boundary(passes: Callable[..., bool]) -> np.ndarray[Any, Any]:
    """For each number of images up to `EVERY`, the most flips that pass; -1 where none do. It never falls."""
    found = np.full(EVERY + 1, -1)
    k = -1
    for n in range(1, EVERY + 1):
        while k + 1 <= n and passes(k + 1, n):
            k += 1
        found[n] = k
    return found


def crossing(rate: float, allowed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The probability to have passed at one of the first n images, for each n: exact, over the distribution of the flips."""
    alive = np.zeros(allowed.max() + 2)  # by flips so far; what has more can pass later only
    alive[0] = 1.0
    passed = np.zeros(len(allowed))
    for n in range(1, len(allowed)):
        moved = alive * (1 - rate)
        moved[1:] += alive[:-1] * rate
        done = moved[: allowed[n] + 1]
        passed[n] = passed[n - 1] + done.sum()
        done[:] = 0
        alive = moved
    return passed


def as_advised(
    rate: float, limit: float, first: int, judge: Callable[[int, int, float], Any], trials: int
) -> dict[str, Any]:
    """Look at ``first`` images, and then at as many as the message says, until there is a verdict or no more images."""
    random = np.random.default_rng(7)
    passed = failed = 0
    images = []
    for _ in range(trials):
        n, flips = first, int(random.binomial(first, rate))
        verdict, more = judge(flips, n, limit)
        while verdict is None and more is not None and more <= MOST:
            flips, n = flips + int(random.binomial(more - n, rate)), more
            verdict, more = judge(flips, n, limit)
        passed, failed = passed + (verdict is True), failed + (verdict is False)
        images.append(n)
    return {"passed": passed / trials, "failed": failed / trials, "images": float(np.mean(images)), "trials": trials}


def drops_as_advised(discordant: float, limit: float, first: int, trials: int) -> dict[str, Any]:
    """The same for a drop of accuracy that is the limit."""
    random = np.random.default_rng(8)
    chances = ((discordant + limit) / 2, (discordant - limit) / 2, 1 - discordant)
    passed = failed = 0
    for _ in range(trials):
        n, seen = first, random.multinomial(first, chances)
        while True:
            found = accuracy_drop(int(seen[0]), int(seen[1]), n, anytime=True)
            passed, failed = passed + (found.upper <= limit), failed + (found.lower > limit)
            more = drop_samples_to_decide(int(seen[0]), int(seen[1]), n, limit)
            if found.upper <= limit or found.lower > limit or more is None or more > MOST:
                break
            seen, n = seen + random.multinomial(more - n, chances), more
    return {"passed": passed / trials, "failed": failed / trials, "trials": trials}


def power(limit: float, allowed: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Images after which four of five variants with that rate have passed: looking all the time, and at one planned look."""
    rows = []
    for share in SHARES:
        rate = share * limit
        passed = crossing(rate, allowed)
        looks = range(1, EVERY + 1)
        planned = next((n for n in looks if stats.binom.cdf(most_flips(n, limit), n, rate) >= 0.8), None)
        once = next((n for n in looks if stats.binom.cdf(allowed[n], n, rate) >= 0.8), None)
        rows.append(
            {
                "limit": limit,
                "rate": rate,
                "every_image": int(np.argmax(passed >= 0.8)) if passed[-1] >= 0.8 else None,
                "one_look": once,
                "clopper_pearson_one_planned_look": planned,
            }
        )
        print(f"  {rows[-1]}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    every = []
    allowed = {limit: boundary(lambda k, n, p=limit: flip_count(k, n).upper <= p) for limit in LIMITS}
    for limit, ours in allowed.items():
        theirs = boundary(lambda k, n, p=limit: k <= most_flips(n, p))
        passed = {"anytime": ours, "clopper_pearson": theirs}
        every.append({"limit": limit, "images": EVERY, **{k: float(crossing(limit, v)[-1]) for k, v in passed.items()}})
        print(f"every image, {every[-1]}", flush=True)
    advised = []
    for limit in LIMITS:
        for first in FIRST:
            found = {
                "limit": limit,
                "first": first,
                "anytime": as_advised(limit, limit, first, anytime, trials),
                "clopper_pearson": as_advised(limit, limit, first, single_look, trials),
            }
            advised.append(found)
            print(f"as advised, {found}", flush=True)
    drops = []
    for discordant in DISCORDANT:
        found = {"limit": 0.005, "discordant": discordant, **drops_as_advised(discordant, 0.005, 359, trials // 5)}
        drops.append(found)
        print(f"drop, {found}", flush=True)
    measured = {
        "at_the_limit": {"every_image": every, "as_advised": advised, "drops_as_advised": drops},
        "images_to_pass": power(0.01, allowed[0.01]),
    }
    worst = max(
        *(row["anytime"] for row in every),
        *(max(row["anytime"]["passed"], row["anytime"]["failed"]) for row in advised),
        *(max(row["passed"], row["failed"]) for row in drops),
    )
    return write_result(
        "optional_stopping",
        measured,
        [target("wrong verdicts at the limit, in the worst series", worst, 0.05, "of series")],
    )


if __name__ == "__main__":
    sys.exit(main())
