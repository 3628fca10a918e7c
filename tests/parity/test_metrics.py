"""The formulas of parity, against known answers, scipy, and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from vggdeploy.parity.compare import judge
from vggdeploy.parity.metrics import OutputStats, clopper_pearson, cosine, flip_count, top1
from vggdeploy.records import DEFAULT_THRESHOLDS, OutputParity
from vggdeploy.types import Verdict

FP16 = DEFAULT_THRESHOLDS["fp16"]


def parity(relative_l2: float = 0.0, cosine_min: float = 1.0) -> OutputParity:
    return OutputParity(
        output="logits", samples=9, max_abs=0.0, mean_abs=0.0, relative_l2=relative_l2, cosine_min=cosine_min,
        cosine_mean=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("successes", "samples"), [(0, 1), (0, 359), (1, 10), (5, 10), (10, 10), (3, 10_000), (9_999, 10_000), (700, 60_000)]
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
    assert judge((parity(1e-3),), flip_count(0, 400), FP16) == (Verdict.PASS, ())


def test_a_distance_above_its_threshold_fails_and_is_named() -> None:
    verdict, reasons = judge((parity(0.5),), flip_count(0, 400), FP16)
    assert verdict is Verdict.FAIL
    assert "relative L2 0.5 is above 0.01" in reasons[0]


def test_nan_distances_fail() -> None:
    assert judge((parity(float("nan")),), None, FP16)[0] is Verdict.FAIL
    assert judge((parity(0, float("nan")),), None, FP16)[0] is Verdict.FAIL


def test_too_few_samples_are_inconclusive() -> None:
    verdict, reasons = judge((parity(),), flip_count(0, 50), FP16)
    assert verdict is Verdict.INCONCLUSIVE
    assert "look at more images" in reasons[0]


def test_more_flips_than_chance_allows_fail() -> None:
    assert judge((parity(),), flip_count(30, 1000), FP16)[0] is Verdict.FAIL


def test_the_golden_pair_promises_nothing_about_flips() -> None:
    assert judge((parity(),), flip_count(0, 8), FP16, golden=True)[0] is Verdict.PASS
