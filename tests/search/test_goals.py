"""What a search is asked for, what holds it, and what beats what: no model and no clock is needed to say so."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.errors import TargetError, UsageError
from vggdeploy.optimize.steps.widths import macs_of, share_of, widths_of, with_widths
from vggdeploy.records import AccuracyDrop, Candidate, Goal
from vggdeploy.search.goals import Budget, check_goal, choose_widths, closest, cost, front, misses, speed_of, winner
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Precision

SPEC = ModelSpec.named("vgg11", image_size=64, classes=10)
FLAT = {name: {width // 2: 0.0, width // 4: 0.0, width // 8: 0.0} for name, width in widths_of(SPEC).items()}


def candidate(**changes: Any) -> Candidate:
    upper = changes.pop("upper", 0.004)
    drop = AccuracyDrop(
        lost=1, won=1, samples=1000, drop=changes.pop("drop", 0.0), lower=-0.01, upper=upper, p_value=1.0
    )
    values = {"trial": 0, "variant": "onnx-fp32", "backend": "onnxruntime", "precision": Precision.FP32, "threads": 2,
              "bytes": 1_000_000, "macs": 10,
              "cost": 100.0, "latency_ms": 2.0, "ratio": 3.0, "drop": drop}  # fmt: skip
    return Candidate(**{**values, **changes})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("20", Budget(trials=20)),
        ("90s", Budget(seconds=90)),
        ("30m", Budget(seconds=1800)),
        ("1.5h", Budget(seconds=5400)),
        (" 2 MIN ", Budget(seconds=120)),
    ],
)
def test_a_budget_is_a_time_or_a_number_of_trials(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "five", "5 parsecs", "1e9h", "999999", "nan", "²"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget is"):
        Budget.parse(text)


@pytest.mark.parametrize(
    "goal", [{"accuracy_drop": -0.1}, {"accuracy_drop": float("nan")}, {"accuracy_drop": 0.1, "latency_ms": 0.0},
             {"accuracy_drop": 0.1, "size_mb": -1.0}]
)  # fmt: skip
def test_a_goal_that_nothing_can_hold_is_refused(goal: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        check_goal(Goal(**goal))


def test_what_is_missed_is_said_with_its_limit() -> None:
    goal = Goal(accuracy_drop=0.005, latency_ms=1.0, size_mb=0.5)
    assert misses(goal, candidate(upper=0.0061)) == (
        "accuracy may have fallen by 0.61 points, the limit is 0.5",
        "2.00 ms, the limit is 1",
        "1.00 MB, the limit is 0.5",
    )
    assert misses(Goal(accuracy_drop=0.005), candidate()) == ()


def test_the_interval_decides_and_not_the_drop_that_was_seen() -> None:
    assert misses(Goal(accuracy_drop=0.005), candidate(drop=0.0, upper=0.02))


def test_the_winner_is_the_fastest_that_misses_nothing() -> None:
    fast, good, slow = (
        candidate(trial=1, ratio=9.0, misses=("accuracy",)), candidate(trial=2, ratio=5.0), candidate(trial=3, ratio=2.0)
    )  # fmt: skip
    assert winner([slow, fast, good]) == good
    assert winner([fast]) is None
    assert closest([fast, candidate(trial=4, misses=("a", "b"))])[0] == fast


def test_of_equal_speed_the_smaller_one_wins() -> None:
    small = candidate(trial=1, bytes=10)
    assert winner([candidate(), small]) == small


def test_without_a_measurement_the_cost_ranks() -> None:
    one, other = candidate(ratio=None, latency_ms=None, cost=5.0), candidate(ratio=None, latency_ms=None, cost=4.0)
    assert speed_of(other) < speed_of(one)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_a_member_of_the_front_and_something_beats_all_others(points: list[tuple[int, int, int]]) -> None:
    everything = [
        candidate(trial=i, ratio=float(speed), bytes=size, drop=lost / 100)
        for i, (speed, size, lost) in enumerate(points)
    ]

    def beats(a: Candidate, b: Candidate) -> bool:
        one, two = ((-c.ratio, c.bytes, c.drop.drop) for c in (a, b))
        return all(x <= y for x, y in zip(one, two, strict=True)) and one != two

    kept = front(everything)
    assert kept
    for each in everything:
        assert (each in kept) == (not any(beats(other, each) for other in everything))
    assert [c.ratio for c in kept] == sorted((c.ratio for c in kept), reverse=True)


@settings(max_examples=15)
@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_widths_keep_the_share_that_was_asked_for(keep: float, hidden: float) -> None:
    own, floor = widths_of(SPEC), min(0.1, math.sqrt(keep) / 3)
    dense = {name: share_of(own[name], hidden) for name in ("fc6", "fc7")}
    most = keep * macs_of(with_widths(SPEC, dense))
    least = {**{name: share_of(width, floor) for name, width in own.items()}, **dense}
    try:
        widths = choose_widths(SPEC, FLAT, keep, hidden)
    except TargetError:
        assert macs_of(with_widths(SPEC, least)) > most
        return
    assert macs_of(with_widths(SPEC, widths)) <= most
    assert {name: widths[name] for name in dense} == dense
    assert all(width >= least[name] for name, width in widths.items())


def test_the_cost_of_a_network_counts_what_it_computes_and_what_it_reads() -> None:
    assert cost(1000, 0) == 1000
    assert cost(0, 10) == 500


def test_on_a_gpu_int8_halves_the_work_and_the_bytes() -> None:
    fp32, fp16, int8 = (cost(1000, 10, p) for p in (Precision.FP32, Precision.FP16, Precision.INT8))
    assert (fp32, fp16, int8) == (2000 + 50 * 40, 1000 + 50 * 20, 500 + 50 * 10)
