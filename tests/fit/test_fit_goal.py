"""What is asked for: read from words, held or missed, and what is preferred."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from vggdeploy.errors import UsageError
from vggdeploy.fit.finish import Yardstick, judged_hits
from vggdeploy.fit.goal import goal_words, misses, preference, rate_of, read_goal
from vggdeploy.parity.bounds import accuracy_drop
from vggdeploy.records.fit import FitGoal, FitVariant
from vggdeploy.types import Precision, Verdict


def variant(ms: float, hits: int, *missed: str) -> FitVariant:
    return FitVariant(
        trial=0, variant="onnx-fp32", backend="onnxruntime", precision=Precision.FP32, threads=1, latency_ms=ms,
        bytes=1000, validation=rate_of(hits, 1000), misses=missed, verdict=Verdict.PASS,
    )  # fmt: skip


def test_quantities_are_read_with_their_units() -> None:
    assert read_goal(0.5, 92, "800us", "1.5MB") == FitGoal(
        accuracy_drop=0.005, accuracy=0.92, latency_ms=0.8, bytes=1_500_000
    )
    assert read_goal(None, None, "1ms", "300 kB") == FitGoal(latency_ms=1.0, bytes=300_000)
    assert goal_words(read_goal(None, 92, "1ms", None)) == "at least 92% accuracy, at most 1 ms"


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        ((None, None, None, None), "nothing is asked for"),
        ((None, 0.92, None, None), "--min-accuracy is 0.92"),  # a fraction: 92 was meant
        ((None, 101, None, None), "--min-accuracy is 101"),
        ((-1, None, None, None), "--max-accuracy-drop is -1"),
        ((float("nan"), None, None, None), "--max-accuracy-drop is nan"),
        ((None, float("nan"), None, None), "--min-accuracy is nan"),
        ((None, None, "1", None), "--max-latency is '1'"),
        ((None, None, "0ms", None), "--max-latency is '0ms'"),
        ((None, None, None, "300 apples"), "--max-size is '300 apples'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    asked: tuple[float | None, float | None, str | None, str | None], cause: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_goal(*asked)
    assert cause in caught.value.cause


def test_an_accuracy_holds_by_its_lower_bound_and_not_by_its_estimate() -> None:
    goal = FitGoal(accuracy=0.92)
    assert misses(goal, 93, 100, None, latency_ms=1, size=1)  # 93 of 100: it may be 87 %
    assert not misses(goal, 9300, 10_000, None, latency_ms=1, size=1)


def test_a_drop_holds_by_its_upper_bound() -> None:
    goal = FitGoal(accuracy_drop=0.005)
    assert misses(goal, 90, 100, accuracy_drop(1, 1, 100), latency_ms=1, size=1)
    assert not misses(goal, 9000, 10_000, accuracy_drop(10, 10, 10_000), latency_ms=1, size=1)


def test_each_limit_that_is_missed_is_named() -> None:
    goal = FitGoal(latency_ms=1.0, bytes=1000)
    assert misses(goal, 1, 2, None, latency_ms=2, size=2000) == ("2 ms, the limit is 1", "2.0 kB, the limit is 1")


def test_what_holds_is_preferred_and_then_the_fastest_or_the_most_accurate() -> None:
    slow, fast, missing = variant(2, 960), variant(1, 930), variant(0.5, 990, "accuracy")
    by_accuracy = FitGoal(accuracy=0.9)
    assert sorted([missing, slow, fast], key=lambda v: preference(by_accuracy, v)) == [fast, slow, missing]
    assert sorted([missing, slow, fast], key=lambda v: preference(FitGoal(latency_ms=3), v)) == [slow, fast, missing]
    unsettled = msgspec.structs.replace(fast, verdict=Verdict.INCONCLUSIVE)
    assert sorted([unsettled, slow], key=lambda v: preference(by_accuracy, v)) == [slow, unsettled]


def test_what_int8_loses_on_its_fold_is_not_divided_by_the_number_of_folds() -> None:
    right = np.ones(400, bool)
    mine = np.arange(80) >= 6  # the first of five folds: 6 of 80 images are lost
    yardstick = Yardstick(Path("best"), right)
    drop = yardstick.drop(judged_hits(Precision.INT8, mine, right))
    assert (drop.lost, drop.samples) == (6, 80)
    assert misses(FitGoal(accuracy_drop=0.03), 0, 80, drop, latency_ms=1, size=1)
    # An FP32 variant computes what was trained, in every fold.
    whole = judged_hits(Precision.FP32, np.ones(80, bool), right)
    assert whole.all()
    assert len(whole) == 400
    assert not misses(FitGoal(accuracy_drop=0.03), 0, 400, yardstick.drop(whole), latency_ms=1, size=1)
    # Without folds both are judged on all validation images.
    assert len(judged_hits(Precision.INT8, right, right)) == 400


def test_a_drop_below_a_teacher_counts_no_image_that_it_learned_from() -> None:
    unseen = np.arange(100) % 10 == 0
    learned = np.ones(100, bool)  # it has all of its own training images right
    student = ~unseen  # which is as good there, and loses all of the others
    drop = Yardstick(Path("teacher"), learned, unseen).drop(student)
    assert (drop.lost, drop.samples) == (10, 10)
    # Of a fold without such an image nothing can be told, and no goal holds.
    nothing = Yardstick(Path("teacher"), learned, np.arange(100) >= 50).drop(student[:50])
    assert misses(FitGoal(accuracy_drop=0.5), 0, 50, nothing, latency_ms=1, size=1)
