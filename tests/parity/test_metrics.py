"""The formulas of parity, against known answers, scipy, and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial import distance

from vggdeploy.parity.bounds import (
    accuracy_drop,
    clopper_pearson,
    flip_count,
)
from vggdeploy.parity.judge import judge
from vggdeploy.parity.metrics import ClassCounts, OutputStats, cosine, top1, top5
from vggdeploy.records import CEILINGS, OutputParity
from vggdeploy.types import Verdict

FP16 = CEILINGS["fp16"]


def parity(relative_l2: float = 0.0, cosine_min: float = 1.0) -> OutputParity:
    return OutputParity(
        output="logits", samples=9, max_abs=0.0, mean_abs=0.0, relative_l2=relative_l2, cosine_min=cosine_min,
        cosine_mean=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("successes", "samples"),
    [(0, 1), (0, 359), (1, 10), (5, 10), (10, 10), (3, 10_000), (9_999, 10_000), (700, 60_000)],
)
def test_the_bounds_are_clopper_and_pearsons(successes: int, samples: int) -> None:
    lower, upper = clopper_pearson(successes, samples)
    if successes:
        assert lower == pytest.approx(stats.beta.ppf(0.05, successes, samples - successes + 1), rel=1e-9)
    if successes < samples:
        assert upper == pytest.approx(stats.beta.ppf(0.95, successes + 1, samples - successes), rel=1e-9)


def test_no_flip_in_n_samples_bounds_the_rate_by_the_rule_of_three() -> None:
    # (1 − p)ⁿ = 0.05, solved by hand.
    assert clopper_pearson(0, 359)[1] == pytest.approx(1 - 0.05 ** (1 / 359))


def test_the_extremes_are_exact() -> None:
    assert clopper_pearson(0, 50)[0] == 0.0
    assert clopper_pearson(50, 50)[1] == 1.0


@pytest.mark.parametrize(("successes", "samples"), [(-1, 5), (6, 5), (0, 0)])
def test_what_is_not_a_count_is_refused(successes: int, samples: int) -> None:
    with pytest.raises(ValueError, match="not a count"):
        clopper_pearson(successes, samples)


def test_distances_have_their_known_values() -> None:
    found = OutputStats("x")
    found.update(np.float32([[3, 4], [0, 2]]), np.float32([[3, 5], [0, 2]]))
    result = found.result()
    assert result.max_abs == 1
    assert result.mean_abs == 0.25
    assert result.relative_l2 == pytest.approx(1 / np.sqrt(29))
    assert result.cosine_min == pytest.approx(29 / (5 * np.sqrt(34)))
    assert result.cosine_mean == pytest.approx((29 / (5 * np.sqrt(34)) + 1) / 2)


finite = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, (7, 5), elements=finite), arrays(np.float32, (7, 5), elements=finite), st.integers(1, 7))
def test_batches_add_up_to_the_whole(a: np.ndarray, b: np.ndarray, size: int) -> None:
    whole, parts = OutputStats("x"), OutputStats("x")
    whole.update(a, b)
    for start in range(0, 7, size):
        parts.update(a[start : start + size], b[start : start + size])
    one, many = whole.result(), parts.result()
    assert many.samples == one.samples == 7
    assert many.max_abs == one.max_abs
    assert many.relative_l2 == pytest.approx(one.relative_l2)
    assert many.cosine_mean == pytest.approx(one.cosine_mean)


@given(arrays(np.float32, (4, 6), elements=finite))
def test_nothing_stands_apart_from_itself(a: np.ndarray) -> None:
    same = OutputStats("x")
    same.update(a, a)
    result = same.result()
    assert (result.max_abs, result.relative_l2) == (0, 0)
    assert result.cosine_min == pytest.approx(1)


def test_zero_rows_are_alike_and_unlike_everything_else() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == 0


def test_an_answer_where_the_reference_is_zero_is_infinitely_far() -> None:
    found = OutputStats("x")
    found.update(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
    assert found.result().relative_l2 > 1e308


def test_other_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="differ"):
        OutputStats("x").update(np.zeros((2, 3)), np.zeros((2, 1)))


def test_top1_reads_logits_or_probabilities() -> None:
    scores = np.float32([[0, 1], [2, 1]])
    assert top1({"logits": scores}).tolist() == [1, 0]
    assert top1({"probabilities": scores}).tolist() == [1, 0]
    assert top1({"fc7": scores}) is None


def test_close_outputs_without_flips_pass() -> None:
    found = judge((parity(1e-3),), flip_count(0, 400), FP16)
    assert (found.numerical, found.bounds, found.verdict, found.reasons) == (
        Verdict.PASS,
        Verdict.PASS,
        Verdict.PASS,
        (),
    )


def test_a_distance_above_its_threshold_fails_and_is_named() -> None:
    found = judge((parity(0.5),), flip_count(0, 400), FP16)
    assert (found.numerical, found.bounds, found.verdict) == (Verdict.FAIL, Verdict.PASS, Verdict.FAIL)
    assert "relative L2 0.5 is above 0.004" in found.reasons[0]


def test_nan_distances_fail() -> None:
    assert judge((parity(float("nan")),), None, FP16).numerical is Verdict.FAIL
    assert judge((parity(0, float("nan")),), None, FP16).numerical is Verdict.FAIL


def test_too_few_samples_leave_the_bound_open_and_the_numbers_decided() -> None:
    found = judge((parity(),), flip_count(0, 50), FP16)
    assert (found.numerical, found.bounds, found.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    assert "look at 352 images" in found.reasons[0]


def test_more_flips_than_chance_allows_fail_the_bound_alone() -> None:
    found = judge((parity(),), flip_count(30, 1000), FP16)
    assert (found.numerical, found.bounds, found.verdict) == (Verdict.PASS, Verdict.FAIL, Verdict.FAIL)


def test_wrong_numbers_on_few_images_fail_and_offer_no_looser_bound() -> None:
    found = judge((parity(0.5),), flip_count(0, 50), FP16)
    assert (found.numerical, found.bounds, found.verdict) == (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.FAIL)
    assert not any("--max-flips" in reason for reason in found.reasons)


def test_wrong_numbers_and_flips_are_both_told() -> None:
    found = judge((parity(0.5),), flip_count(30, 1000), FP16)
    assert (found.numerical, found.bounds) == (Verdict.FAIL, Verdict.FAIL)
    assert [("relative L2" in reason, "classes changed" in reason) for reason in found.reasons] == [(1, 0), (0, 1)]


def test_the_golden_pair_promises_nothing_about_flips() -> None:
    found = judge((parity(),), flip_count(0, 8), FP16, golden=True)
    assert (found.numerical, found.bounds, found.verdict) == (Verdict.PASS, None, Verdict.PASS)


def test_a_network_without_classes_has_no_bound_to_judge() -> None:
    found = judge((parity(),), None, FP16)
    assert (found.numerical, found.bounds, found.verdict) == (Verdict.PASS, None, Verdict.PASS)


def test_snr_and_tolerance_have_their_known_values() -> None:
    found = OutputStats("x")
    found.update(np.float32([[10, 0]]), np.float32([[10, 1]]))
    result = found.result()
    assert result.snr_db == pytest.approx(20)  # 10·log10(100 / 1)
    assert result.tolerance == 1  # |Δ| = 1 where the reference is 0
    np.testing.assert_allclose([10, 1], [10, 0], rtol=result.tolerance, atol=result.tolerance)


def test_without_error_there_is_no_snr() -> None:
    found = OutputStats("x")
    found.update(np.ones((1, 3)), np.ones((1, 3)))
    assert found.result().snr_db is None


@given(arrays(np.float32, (3, 4), elements=finite), arrays(np.float32, (3, 4), elements=finite))
def test_the_tolerance_is_the_smallest_that_allclose_accepts(a: np.ndarray, b: np.ndarray) -> None:
    found = OutputStats("x")
    found.update(a, b)
    t = found.result().tolerance
    assert t is not None
    wide = a.astype(np.float64), b.astype(np.float64)
    assert np.allclose(wide[1], wide[0], rtol=t * (1 + 1e-9), atol=t * (1 + 1e-9) + 1e-300)
    if t > 0:
        assert not np.allclose(wide[1], wide[0], rtol=t * 0.999, atol=t * 0.999)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    found = accuracy_drop(lost=9, won=1, samples=100)
    assert (found.lost, found.won, found.samples) == (9, 1, 100)
    assert found.drop == pytest.approx(0.08)
    assert found.p_value == pytest.approx(stats.binomtest(1, 10, 0.5).pvalue)


def test_the_drops_interval_is_bonett_and_prices() -> None:
    # b = 9, c = 1, n = 100: p̃ = 10/102 and 2/102, d̃ = 8/102, se = √((12/102 − (8/102)²) / 102), by hand.
    found = accuracy_drop(lost=9, won=1, samples=100)
    half = 1.6448536 * np.sqrt((12 / 102 - (8 / 102) ** 2) / 102)
    assert (found.lower, found.upper) == pytest.approx((8 / 102 - half, 8 / 102 + half))


def test_the_drops_bounds_hold_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    truth = 0.90 - 0.88
    held = 0
    for _ in range(400):
        right = random.random((2, 500)) < np.array([[0.90], [0.88]])
        lost, won = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        held += accuracy_drop(lost, won, 500).upper >= truth
    assert 0.92 <= held / 400 <= 0.98


def test_equal_answers_prove_nothing_and_lose_nothing() -> None:
    found = accuracy_drop(0, 0, 3)
    assert (found.drop, found.p_value) == (0, 1)


def test_an_accuracy_limit_is_judged_by_the_paired_bounds() -> None:
    limit = CEILINGS["fp16"].__class__(relative_l2=1, cosine=-1, flip_rate=1, accuracy_drop=0.02)
    flips = flip_count(0, 2000)
    assert judge((parity(),), flips, limit, drop=accuracy_drop(0, 0, 2000)).bounds is Verdict.PASS
    assert judge((parity(),), flips, limit, drop=accuracy_drop(200, 0, 2000)).bounds is Verdict.FAIL
    few = judge((parity(),), flips, limit, drop=accuracy_drop(0, 0, 30))
    assert few.bounds is Verdict.INCONCLUSIVE
    assert judge((parity(),), flips, limit).bounds is Verdict.INCONCLUSIVE


def test_top5_needs_more_than_five_classes() -> None:
    assert top5({"logits": np.zeros((2, 5))}) is None
    found = top5({"logits": np.arange(12.0)[None]})
    assert found is not None
    assert set(found[0]) == {7, 8, 9, 10, 11}


@given(
    arrays(np.float32, (9, 7), elements=finite, unique=True),
    arrays(np.float32, (9, 7), elements=finite, unique=True),
    arrays(np.int64, 9, elements=st.integers(0, 6)),
    st.integers(1, 9),
)
def test_counts_of_classes_are_those_of_plain_sorting(
    a: np.ndarray, b: np.ndarray, labels: np.ndarray, size: int
) -> None:
    counts = ClassCounts()
    for start in range(0, 9, size):
        part = slice(start, start + size)
        counts.update({"logits": a[part]}, {"logits": b[part]}, labels[part])
    best = [sorted(range(7), key=lambda c, row=row: -row[c]) for row in b]
    first = [max(range(7), key=lambda c, row=row: row[c]) for row in a]
    flips, top5_flips, drop = counts.flips(), counts.top5_flips(), counts.drop()
    assert flips and top5_flips and drop
    assert (flips.flips, flips.samples) == (sum(f != o[0] for f, o in zip(first, best, strict=True)), 9)
    assert top5_flips.flips == sum(f not in o[:5] for f, o in zip(first, best, strict=True))
    right = [sum(f == t for f, t in zip(got, labels, strict=True)) / 9 for got in (first, [o[0] for o in best])]
    assert counts.accuracies() == pytest.approx(tuple(right))
    assert drop.drop == pytest.approx(right[0] - right[1])


def test_scores_that_the_reference_kept_fewer_of_are_compared_as_far_as_they_go() -> None:
    counts = ClassCounts()
    counts.update({"logits": np.eye(3)[:1]}, {"logits": np.eye(3)}, np.array([0, 1, 2]))
    found = counts.flips()
    assert found is not None and (found.flips, found.samples) == (0, 1)
    assert counts.top5_flips() is None  # three classes


@given(
    arrays(np.float64, (6, 4), elements=st.floats(1, 1e3)), arrays(np.float64, (6, 4), elements=st.floats(-0.5, 0.5))
)
def test_snr_and_distances_are_those_of_numpy_and_scipy(signal: np.ndarray, noise: np.ndarray) -> None:
    found = OutputStats("x")
    found.update(signal, signal + noise)
    result = found.result()
    error = (signal + noise) - signal
    if error.any():
        assert result.snr_db == pytest.approx(10 * np.log10(np.sum(signal**2) / np.sum(error**2)))
    assert result.relative_l2 == pytest.approx(np.linalg.norm(error) / np.linalg.norm(signal))
    cosines = [1 - distance.cosine(a, b) for a, b in zip(signal, signal + noise, strict=True)]
    assert (result.cosine_min, result.cosine_mean) == pytest.approx((min(cosines), np.mean(cosines)))
    assert (result.max_abs, result.mean_abs) == pytest.approx((np.abs(error).max(), np.abs(error).mean()))


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 5), (3, 12), (200, 150), (0, 40)])
def test_mcnemars_p_value_is_scipys(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert accuracy_drop(lost, won, 1000).p_value == pytest.approx(expected)
