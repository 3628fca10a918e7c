"""The formulas of an evaluation, against values worked out by hand, scipy, and the whole data at once."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from vggdeploy.errors import UsageError
from vggdeploy.evaluate.scores import Scores, macro, rate
from vggdeploy.records.evaluation import MATRIX_CLASSES, Confusion

LABELS = ("cat", "dog", "cow")


def counted(true: list[int], predicted: list[int], classes: int) -> Scores:
    """Scores of answers that are certain."""
    found = Scores(classes)
    found.update({"logits": 50 * np.eye(classes, dtype=np.float32)[predicted]}, np.array(true))
    return found


def test_precision_recall_and_f1_have_their_known_values() -> None:
    #        predicted: cat dog cow
    # true cat            3   1   0      recall 3/4
    #      dog            2   2   0      recall 2/4
    #      cow            0   1   1      recall 1/2
    # precision          3/5 2/4 1/1
    true = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    predicted = [0, 0, 0, 1, 0, 0, 1, 1, 1, 2]
    found = counted(true, predicted, 3)
    cat, dog, cow = found.class_scores(LABELS)
    assert (cat.label, cat.images, cat.predicted, cat.correct) == ("cat", 4, 5, 3)
    assert (cat.precision, cat.recall, cat.f1) == (3 / 5, 3 / 4, 6 / 9)
    assert (dog.precision, dog.recall, dog.f1) == (2 / 4, 2 / 4, 4 / 8)
    assert (cow.precision, cow.recall, cow.f1) == (1.0, 1 / 2, 2 / 3)
    assert found.confusion() == ((3, 1, 0), (2, 2, 0), (0, 1, 1))
    assert found.confused() == (
        Confusion(label=1, predicted=0, images=2),
        Confusion(label=0, predicted=1, images=1),
        Confusion(label=2, predicted=1, images=1),
    )
    assert (found.accuracy.hits, found.accuracy.samples, found.accuracy.rate) == (6, 10, 0.6)


def test_what_divides_by_zero_has_no_value() -> None:
    never_seen, never_said, neither = counted([1, 1], [0, 0], 3).class_scores(())
    assert (never_seen.precision, never_seen.recall, never_seen.f1) == (0.0, None, 0.0)
    assert (never_said.precision, never_said.recall, never_said.f1) == (None, 0.0, 0.0)
    assert (neither.precision, neither.recall, neither.f1) == (None, None, None)
    assert neither.label == "2"
    assert macro([0.5, None, 1.0]) == 0.75
    assert macro([None]) == 0.0


@pytest.mark.parametrize(("hits", "samples"), [(0, 7), (7, 7), (1, 10), (356, 359), (9_170, 10_000), (59_999, 60_000)])
def test_the_interval_is_the_two_sided_exact_one(hits: int, samples: int) -> None:
    found = rate(hits, samples)
    exact = stats.binomtest(hits, samples).proportion_ci(confidence_level=0.95, method="exact")
    assert (found.lower, found.upper) == pytest.approx((exact.low, exact.high), rel=1e-7, abs=1e-12)
    assert found.lower <= found.rate <= found.upper


def test_the_loss_of_a_guess_is_the_logarithm_of_the_classes() -> None:
    found = Scores(10)
    found.update({"logits": np.zeros((4, 10), np.float32)}, np.array([0, 3, 9, 9]))
    assert found.loss == pytest.approx(math.log(10))


def test_the_loss_is_the_cross_entropy_by_hand() -> None:
    found = Scores(2)
    found.update({"logits": np.float32([[math.log(3), 0], [0, 0]])}, np.array([0, 1]))  # ¾ and ½ for the true class
    assert found.loss == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2)


def test_huge_logits_do_not_overflow() -> None:
    found = Scores(3)
    found.update({"logits": np.float32([[3e38, 0, -3e38]])}, np.array([1]))
    assert found.loss == pytest.approx(3e38, rel=1e-6)


def test_a_probability_that_is_rounded_to_nothing_has_a_finite_loss() -> None:
    found = Scores(2)
    found.update({"probabilities": np.float32([[1, 0]])}, np.array([1]))
    assert found.loss == pytest.approx(-math.log(np.finfo(np.float32).tiny))


def test_the_calibration_error_by_hand() -> None:
    # Bins of 1/15: 0.9 lies in bin 13 (0.867 … 0.933), 0.6 in bin 8 (0.533 … 0.6], its own edge included.
    # Bin 13: 4 images, 3 right, |3/4 − 0.9| = 0.15. Bin 8: 2 images, 2 right, |1 − 0.6| = 0.4.
    found = Scores(2)
    high, low = [0.9, 0.1], [0.6, 0.4]
    found.update({"probabilities": np.array([high] * 4 + [low] * 2)}, np.array([0, 0, 0, 1, 0, 0]))
    assert found.calibration_error == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.4)


def test_errors_that_balance_within_a_bin_are_calibrated() -> None:
    found = Scores(2)
    found.update({"probabilities": np.array([[0.75, 0.25]] * 4)}, np.array([0, 0, 0, 1]))
    assert found.calibration_error == pytest.approx(0)


def test_top_5_counts_the_five_best_and_is_not_given_where_it_is_always_one() -> None:
    found = Scores(8)
    falling = -np.arange(8, dtype=np.float32)
    found.update({"logits": np.stack([falling] * 8)}, np.arange(8))
    assert found.top5 is not None
    assert (found.top5.hits, found.accuracy.hits) == (5, 1)
    assert counted([0], [0], 5).top5 is None
    assert counted([0], [0], 6).top5 is not None


def test_of_equal_scores_the_lower_index_counts_as_the_higher() -> None:
    found = Scores(7)
    found.update({"logits": np.zeros((7, 7), np.float32)}, np.arange(7))
    assert found.hits == 1  # the one that argmax takes
    assert found.top_hits == 5


logits = arrays(np.float32, (9, 6), elements=st.floats(-30, 30, width=32))
classes = arrays(np.int64, 9, elements=st.integers(0, 5))


@given(logits, classes, st.integers(1, 9))
def test_batches_add_up_to_the_whole(scores: np.ndarray, labels: np.ndarray, size: int) -> None:
    whole, parts = Scores(6), Scores(6)
    whole.update({"logits": scores}, labels)
    for start in range(0, 9, size):
        parts.update({"logits": scores[start : start + size]}, labels[start : start + size])
    assert parts.class_scores(()) == whole.class_scores(())
    assert parts.confusion() == whole.confusion()
    assert parts.top5 == whole.top5
    assert parts.loss == pytest.approx(whole.loss)
    assert parts.calibration_error == pytest.approx(whole.calibration_error)


@given(logits, classes)
def test_logits_and_their_probabilities_score_alike(scores: np.ndarray, labels: np.ndarray) -> None:
    # Scipy's softmax is the other implementation.
    one, other = Scores(6), Scores(6)
    one.update({"logits": scores}, labels)
    other.update({"probabilities": special.softmax(scores.astype(np.float64), axis=1)}, labels)
    assert one.loss == pytest.approx(other.loss, abs=1e-9)
    assert one.loss == pytest.approx(-special.log_softmax(scores.astype(np.float64), axis=1)[range(9), labels].mean())


def test_memory_does_not_grow_with_the_images() -> None:
    found, random = Scores(10), np.random.default_rng(0)

    def batch() -> None:
        found.update({"logits": random.normal(size=(64, 10)).astype(np.float32)}, random.integers(0, 10, 64))

    for _ in range(20):
        batch()
    tracemalloc.start()
    try:
        for _ in range(500):
            batch()
        kept, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.samples == 520 * 64
    assert kept < 20_000


def test_of_many_classes_only_what_occurs_is_kept() -> None:
    found = Scores(100_000)
    found.update({"logits": np.eye(2, 100_000, dtype=np.float32)}, np.array([0, 99_999]))
    assert found.confusion() is None
    assert found.confused() == (Confusion(label=99_999, predicted=1, images=1),)
    assert counted([0], [0], MATRIX_CLASSES).confusion() is not None


def test_features_cannot_be_scored() -> None:
    with pytest.raises(UsageError, match=r"no class scores.*fc7") as caught:
        Scores(10).update({"fc7": np.zeros((1, 8), np.float32)}, np.array([0]))
    assert "--outputs logits" in caught.value.hint
