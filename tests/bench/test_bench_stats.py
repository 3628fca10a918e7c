"""Percentiles and ratios: what they are, and when they are not given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.bench.stats import calls_needed, drift, percentile, quantiles, ratio_interval


def test_wilks_sample_sizes() -> None:
    # The table of Wilks 1941 for 95% confidence: 0.9^29 < 0.05 < 0.9^28, 0.99^299 < 0.05 < 0.99^298.
    assert (calls_needed(90), calls_needed(99)) == (29, 299)


def test_a_percentile_needs_enough_calls() -> None:
    assert percentile([1.0] * 298, 99) is None
    assert percentile([1.0] * 299, 99) == 1.0


def test_a_candidate_twice_as_fast_has_the_ratio_two() -> None:
    ratio, low, high = ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio, low, high) == (2.0, 2.0, 2.0)


def test_drift_that_hits_both_leaves_the_ratio_alone() -> None:
    weather = np.linspace(1, 5, 9)
    ratio, low, high = ratio_interval((3 * weather).tolist(), weather.tolist())
    assert (ratio, low, high) == pytest.approx((3, 3, 3))


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=12))
def test_the_baseline_against_itself_is_one(rounds: list[float]) -> None:
    assert ratio_interval(rounds, rounds) == (1.0, 1.0, 1.0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        base = random.lognormal(0, 0.1, 15)
        other = random.lognormal(0, 0.1, 15) / 1.5
        _, low, high = ratio_interval(base.tolist(), other.tolist(), seed=trial)
        hits += low <= 1.5 <= high
    assert 0.88 <= hits / 300 <= 1.0


def test_rounds_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        ratio_interval([1.0], [1.0, 2.0])


def test_drift_is_the_spread_over_the_median() -> None:
    assert drift([1.0, 2.0, 3.0]) == 1.0


def test_the_quantiles_run_from_the_fastest_call_to_the_slowest() -> None:
    found = quantiles([float(n) for n in range(200, -1, -1)])
    assert found == tuple(float(n) for n in range(0, 201, 2))
    assert quantiles([3.0]) == (3.0,) * 101
