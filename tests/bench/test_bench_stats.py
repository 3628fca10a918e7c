"""Percentiles and ratios: what they are, and when they are not given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from vggdeploy.bench.stats import (
    MIN_RUNS,
    RUN_SPREAD,
    by_process,
    calls_needed,
    median_interval,
    percentile,
    quantiles,
    ratio_interval,
    shares,
    spread,
    student_quantile,
    unpaired_ratio_interval,
)


def test_wilks_sample_sizes() -> None:
    # The table of Wilks 1941 for 95% confidence: 0.9^29 < 0.05 < 0.9^28, 0.99^299 < 0.05 < 0.99^298.
    assert (calls_needed(90), calls_needed(99)) == (29, 299)


def test_a_percentile_needs_enough_calls() -> None:
    assert percentile([1.0] * 298, 99) is None
    assert percentile([1.0] * 299, 99) == 1.0


def test_a_candidate_twice_as_fast_has_the_ratio_two() -> None:
    assert ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx((2, 2, 2))
    assert ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 3) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("processes", [1, 3])
def test_drift_that_hits_both_leaves_the_ratio_alone(processes: int) -> None:
    weather = np.linspace(1, 5, 9)
    assert ratio_interval((3 * weather).tolist(), weather.tolist(), processes) == pytest.approx((3, 3, 3))


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=12), st.integers(1, 3))
def test_the_baseline_against_itself_is_one(rounds: list[float], processes: int) -> None:
    assert ratio_interval(rounds, rounds, processes) == (1.0, 1.0, 1.0)


def test_rounds_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        ratio_interval([1.0], [1.0, 2.0])


@given(st.integers(3, 50), st.integers(1, 3))
def test_every_round_belongs_to_one_process_in_the_order_of_measurement(rounds: int, processes: int) -> None:
    parts = by_process([float(n) for n in range(rounds)], processes)
    assert [len(part) for part in parts] == list(shares(rounds, processes))
    assert [n for part in parts for n in part] == list(range(rounds))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_interval_of_several_processes_is_scipy_s_student_interval_of_their_ratios() -> None:
    old, new = [2.0, 2.2, 2.1, 1.9, 1.8, 2.0], [1.0, 1.1, 1.0, 1.0, 0.9, 1.1]
    logs = np.log(np.divide(old, new)).reshape(3, 2).mean(axis=1)  # the median of two is their mean
    low, high = reference.t.interval(0.95, 2, loc=logs.mean(), scale=reference.sem(logs))
    assert ratio_interval(old, new, 3) == pytest.approx(tuple(np.exp([logs.mean(), low, high])), rel=1e-5)


def runs(
    random: np.random.Generator, *, between: float, within: float, processes: int = 4, each: int = 3
) -> np.ndarray:
    """Medians of rounds: each process is off by a share of its own, each round by another."""
    levels = random.normal(0, between, (processes, 1)) + random.normal(0, within, (processes, each))
    return np.exp(levels).ravel()


@pytest.mark.parametrize("between", [0.0, 0.01, 0.05])
def test_intervals_cover_the_truth_as_often_as_they_say_also_where_processes_differ(between: float) -> None:
    """A bootstrap over 9 rounds covered 87%, and where processes differ by more than rounds, 60%."""
    random, trials, hits = np.random.default_rng(1), 4000, 0
    for _ in range(trials):
        base, other = (runs(random, between=between, within=0.01) for _ in range(2))
        _, low, high = ratio_interval(base.tolist(), (other / 1.5).tolist(), 4)
        hits += low <= 1.5 <= high
    assert 0.93 <= hits / trials <= 0.97


def test_the_interval_of_one_process_covers_what_its_rounds_are_drawn_from() -> None:
    random, trials, hits = np.random.default_rng(2), 4000, 0
    for _ in range(trials):
        base, other = (runs(random, between=0, within=0.03, processes=1, each=9) for _ in range(2))
        _, low, high = ratio_interval(base.tolist(), other.tolist())
        hits += low <= 1 <= high
    assert hits / trials == pytest.approx(1 - 2 * 10 / 512, abs=0.01)  # of nine values the 2nd and the 8th


@pytest.mark.parametrize(("count", "rank"), [(3, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (50, 18)])
def test_the_ranks_are_those_of_the_sign_test(count: int, rank: int) -> None:
    assert median_interval([float(n) for n in range(count, 0, -1)]) == (rank, count + 1 - rank)
    outside = 2 * reference.binom.cdf(rank - 1, count, 0.5)
    assert outside <= 0.05 or rank == 1
    assert 2 * reference.binom.cdf(rank, count, 0.5) > 0.05  # the next narrower one is too narrow


@given(st.floats(1, 1e6))
def test_student_s_quantile_is_scipy_s(degrees: float) -> None:
    assert student_quantile(degrees) == pytest.approx(
        float(reference.t.ppf(0.975, degrees)), rel=0.03 if degrees < 3 else 0.005
    )


def test_identical_builds_are_rarely_called_different_although_every_run_is_off_by_its_own_share() -> None:
    """The same build, in one run a side and in three: runs differ by 2%, as `RUN_SPREAD` says, and so do processes."""
    random, trials = np.random.default_rng(3), 2000
    for count in (1, MIN_RUNS):
        wrong = 0
        for _ in range(trials):
            sides = [
                [
                    (np.exp(random.normal(0, RUN_SPREAD)) * runs(random, between=0.01, within=0.01, each=1)).tolist()
                    for _ in range(count)
                ]
                for _ in range(2)
            ]
            _, low, high = unpaired_ratio_interval(*sides)
            wrong += not low <= 1 <= high
        assert wrong / trials <= 0.06, count


def test_more_runs_are_scipy_s_welch_interval() -> None:
    old, new = [[1.0, 1.1], [1.2, 1.1], [0.9, 1.0]], [[1.0, 1.0], [1.3, 1.1], [1.2, 1.0], [1.0, 1.1]]
    units = [[float(np.mean(np.log(run))) for run in side] for side in (old, new)]
    found = reference.ttest_ind(*units, equal_var=False).confidence_interval(0.95)
    _, low, high = unpaired_ratio_interval(old, new)
    assert np.log([low, high]) == pytest.approx((found.low, found.high), rel=0.01)


def test_the_spread_of_normal_rounds_is_their_deviation_and_more_rounds_or_an_odd_one_do_not_raise_it() -> None:
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(1.4826 / 2)
    random = np.random.default_rng(4)
    for count in (9, 99):
        found = np.mean([spread(random.normal(1, 0.05, count).tolist()) for _ in range(500)])
        assert found == pytest.approx(0.05, rel=0.2)
    assert spread([1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.01, 9.0]) < 0.02


def test_the_quantiles_run_from_the_fastest_call_to_the_slowest() -> None:
    found = quantiles([float(n) for n in range(200, -1, -1)])
    assert found == tuple(float(n) for n in range(0, 201, 2))
    assert quantiles([3.0]) == (3.0,) * 101
