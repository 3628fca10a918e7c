"""Bounds that hold at any number of looks: known answers, the same from scratch, and how often they are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.parity.bounds import (
    ALPHA,
    accuracy_drop,
    clopper_pearson,
    drop_samples_to_decide,
    flip_count,
    samples_to_decide,
)
from vggdeploy.parity.judge import judge
from vggdeploy.records import CEILINGS, OutputParity, Thresholds
from vggdeploy.types import Verdict

SAME = OutputParity(
    output="logits", samples=9, max_abs=0, mean_abs=0, relative_l2=0, cosine_min=1, cosine_mean=1
)  # fmt: skip
few = settings(max_examples=40)  # a bound takes milliseconds
counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
paired = st.integers(1, 2000).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, n - a), st.just(n)))
)


def capital(rate: float, flips: int, samples: int) -> float:
    """What 1 has become by betting on fewer flips than ``rate``, written out: likelihood ratios of rate·(1 − c) over rate."""
    weights = [(2 ** (-j / 2), 1 / ((j + 1) * (j + 2))) for j in range(28)]
    return math.fsum(
        w * (1 - c) ** flips * ((1 - rate * (1 - c)) / (1 - rate)) ** (samples - flips) for c, w in weights
    )


@pytest.mark.parametrize(("flips", "samples"), [(0, 359), (1, 50), (3, 1000), (12, 700), (5, 10)])
def test_at_the_upper_bound_the_likelihood_ratios_reach_twenty(flips: int, samples: int) -> None:
    assert capital(flip_count(flips, samples).upper, flips, samples) == pytest.approx(20, rel=1e-6)


def test_a_bet_never_expects_to_win_while_the_rate_is_at_least_what_it_bets_against() -> None:
    # The supermartingale that Ville's inequality needs, one image at a time, in exact fractions.
    for rate in (Fraction(1, 100), Fraction(1, 3)):
        for bet in (Fraction(1), Fraction(1, 2), Fraction(1, 1000)):
            for truth in (rate, 2 * rate, Fraction(1)):
                after = [1 + bet * (rate - v) / (1 - rate) for v in (0, 1)]
                assert min(after) >= 0
                assert (1 - truth) * after[0] + truth * after[1] <= 1


def test_359_images_without_a_flip_promise_one_percent() -> None:
    assert flip_count(0, 359).upper < 0.01 < flip_count(0, 350).upper
    assert samples_to_decide(0, 50, 0.01) == 352


def anytime(flips: int, samples: int) -> float:
    return flip_count(flips, samples).upper


def exact_passes(limit: float, rate: float, most: int, upper: Callable[[int, int], float] = anytime) -> float:
    """The probability that some look at 1, 2, … ``most`` images passes: the distribution of the flips, image by image."""
    alive, passed, allowed = np.array([1.0]), 0.0, -1
    for n in range(1, most + 1):
        alive = np.append(alive * (1 - rate), 0) + np.append(0, alive * rate)
        while allowed + 1 <= n and upper(allowed + 1, n) <= limit:
            allowed += 1
        passed += alive[: allowed + 1].sum()
        alive[: allowed + 1] = 0
    return float(passed)


def test_whoever_looks_at_every_image_passes_what_is_at_the_limit_in_one_of_twenty_at_most() -> None:
    assert 0.02 < exact_passes(0.1, 0.1, 150) <= ALPHA  # exact, and not idle either
    assert exact_passes(0.1, 0.01, 150) > 0.9


def test_the_rule_for_a_single_look_would_not_keep_that() -> None:
    assert exact_passes(0.1, 0.1, 150, lambda k, n: clopper_pearson(k, n)[1]) > 2 * ALPHA


@few
@given(counts)
def test_the_rate_that_was_seen_lies_between_the_bounds_and_a_single_looks_bounds_too(seen: tuple[int, int]) -> None:
    flips, samples = seen
    found, single = flip_count(flips, samples), clopper_pearson(flips, samples)
    assert found.anytime
    assert 0 <= found.lower <= flips / samples <= found.upper <= 1
    assert found.lower <= single[0] + 1e-12
    assert single[1] <= found.upper + 1e-12


@few
@given(counts)
def test_one_more_flip_never_lowers_a_bound_and_one_more_image_without_never_raises_it(seen: tuple[int, int]) -> None:
    flips, samples = seen
    found, calm = flip_count(flips, samples), flip_count(flips, samples + 1)
    worse = flip_count(flips + 1, samples + 1)
    assert calm.upper <= found.upper + 1e-12
    assert worse.upper >= calm.upper
    assert worse.lower >= calm.lower - 1e-12


@few
@given(paired)
def test_lost_and_won_exchanged_are_the_same_drop_the_other_way(seen: tuple[int, int, int]) -> None:
    lost, won, samples = seen
    found, other = accuracy_drop(lost, won, samples, anytime=True), accuracy_drop(won, lost, samples, anytime=True)
    assert found.drop == -other.drop
    assert -1 <= found.lower <= found.drop <= found.upper <= 1
    if not won:  # then a drop is a rate of flips
        assert found.upper == pytest.approx(flip_count(lost, samples).upper)


def test_what_is_not_a_count_is_refused() -> None:
    for wrong in (lambda: flip_count(3, 2), lambda: flip_count(0, 0), lambda: accuracy_drop(2, 2, 3)):
        with pytest.raises(ValueError, match="not a count"):
            wrong()


@pytest.mark.parametrize(
    ("flips", "samples", "limit"),
    [(0, 50, 0.01), (1, 200, 0.01), (3, 1000, 0.005), (0, 5, 0.3), (12, 1000, 0.01), (4, 100, 0.03), (40, 2000, 0.019)],
)
def test_the_number_that_is_advised_decides_and_nine_tenths_of_it_do_not(
    flips: int, samples: int, limit: float
) -> None:
    needed = samples_to_decide(flips, samples, limit)
    assert needed is not None

    def decided(n: int) -> bool:
        if flips / samples < limit:
            return flip_count(math.ceil(flips * n / samples), n).upper <= limit
        return flip_count(math.floor(flips * n / samples), n).lower > limit

    assert decided(needed)
    assert not decided(max(samples, needed * 9 // 10))


@pytest.mark.parametrize(
    ("lost", "won", "samples", "limit"),
    [(0, 0, 50, 0.005), (2, 1, 300, 0.01), (9, 1, 400, 0.01), (30, 10, 1000, 0.018)],
)
def test_the_number_that_decides_a_drop_does(lost: int, won: int, samples: int, limit: float) -> None:
    needed = drop_samples_to_decide(lost, won, samples, limit)
    assert needed is not None

    def decided(n: int) -> bool:
        if (lost - won) / samples < limit:
            up, down = math.ceil(lost * n / samples), math.floor(won * n / samples)
            return accuracy_drop(up, down, n, anytime=True).upper <= limit
        up, down = math.floor(lost * n / samples), math.ceil(won * n / samples)
        return accuracy_drop(up, down, n, anytime=True).lower > limit

    assert decided(needed)
    assert not decided(max(samples, needed * 9 // 10))


def test_what_was_seen_at_the_limit_or_a_limit_of_nothing_decides_nothing() -> None:
    assert samples_to_decide(0, 500, 0.0) is None
    assert samples_to_decide(5, 100, 0.05) is None
    assert drop_samples_to_decide(5, 0, 100, 0.05) is None


def test_a_rate_just_below_its_limit_needs_very_many_and_is_found_in_no_time() -> None:
    needed = samples_to_decide(99, 10_000, 0.01)
    # 2·p(1 − p)·ln(20 · what the best bet's capital is a part of) / (0.01 − 0.0099)², from the quadratic of the log-likelihood.
    best = 2 * math.log2(1 / 0.01)
    assert needed == pytest.approx(2 * 0.01 * 0.99 * math.log(20 * best * best) / 1e-8, rel=0.2)


def follow(advice_of, rate: float, first: int, random: np.random.Generator) -> Verdict:
    """Look at ``first`` images, then at as many as the advice says, until there is a verdict or 20,000 are not enough."""
    n, flips = first, int(random.binomial(first, rate))
    while True:
        verdict, more = advice_of(flips, n)
        if verdict is not Verdict.INCONCLUSIVE or more is None or more > 20_000:
            return verdict
        flips, n = flips + int(random.binomial(more - n, rate)), more


def test_whoever_follows_the_advice_is_misled_in_one_of_twenty_at_most() -> None:
    limits = Thresholds(relative_l2=1, cosine=-1, flip_rate=0.05)

    def advice(flips: int, n: int) -> tuple[Verdict, int | None]:
        return judge((SAME,), flip_count(flips, n), limits).verdict, samples_to_decide(flips, n, 0.05)

    random = np.random.default_rng(5)
    found = [follow(advice, 0.05, 30, random) for _ in range(150)]
    assert found.count(Verdict.PASS) / 150 <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 150)
    assert found.count(Verdict.FAIL) / 150 <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 150)


def test_a_drop_at_its_limit_passes_in_one_of_twenty_looks_at_most() -> None:
    random, wrong = np.random.default_rng(6), 0
    for _ in range(100):
        seen = np.zeros(3, int)
        for images in (100, 300, 900):
            seen += random.multinomial(images, (0.03, 0.01, 0.96))
            found = accuracy_drop(int(seen[0]), int(seen[1]), int(seen.sum()), anytime=True)
            if found.upper < 0.02:
                wrong += 1
                break
    assert wrong / 100 <= ALPHA


def test_the_reason_says_that_the_bound_is_one_sided() -> None:
    found = judge((SAME,), flip_count(0, 50), CEILINGS["fp16"])
    assert found.bounds is Verdict.INCONCLUSIVE
    assert "at one-sided 95% confidence" in found.reasons[0]
