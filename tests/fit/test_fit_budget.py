"""The budget: what is not begun, what is stopped, and what is kept for the end."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vggdeploy.errors import ParityError, TrainingError, UsageError
from vggdeploy.fit.family import Family
from vggdeploy.fit.finish import Finish
from vggdeploy.fit.fit import _check_answers
from vggdeploy.fit.goal import rate_of
from vggdeploy.fit.ladder import BudgetSpentError, Ladder, Pace, epochs_of
from vggdeploy.fit.material import Material, pack
from vggdeploy.fit.state import FitRequest, FitState
from vggdeploy.fit.trials import Settings, Trials
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.records.fit import FitGoal, FitTrial, FitVariant, Rung, Shape, Start
from vggdeploy.search.goals import Budget
from vggdeploy.system.ending import deferred
from vggdeploy.train.record import TrainingStep
from vggdeploy.types import Precision, Verdict, silent

GOAL = FitGoal(accuracy=0.9)
STEP = TrainingStep(epoch=1, epochs=1, step=1, steps=2, loss=1, accuracy=0, images_per_second=1, learning_rate=0.1)


@pytest.fixture(scope="module")
def digits() -> Material:
    return Material.of("digits", None, seed=0, on_progress=silent)


class Untrained(Ladder):
    """A ladder whose trainings take no time, and say that they took 1,000 seconds for 90 images of 100."""

    def begin(self, number: int, shape: Shape, spec: object) -> None:
        self.begun = [*getattr(self, "begun", []), number]

    def climb(self, number: int, shape: Shape, rung: int, on_step: object, *, share: float = 1.0) -> Rung:
        labels = self.material.labels[self.material.judged]
        right = np.arange(len(labels)) % 10 > 0
        answers = np.where(right, labels, (labels + 1) % 10)
        return Rung(epochs=1, hits=int(right.sum()), samples=len(labels), seconds=1000.0, answers=pack(answers))


@pytest.fixture
def started(digits: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    question = FitRequest(dataset="digits", images="", goal=GOAL, seed=0, teacher="")
    state = FitState.begin(tmp_path / "b", question, resume=False, overwrite=False)
    ladder = Untrained(digits, state.home, 0, 1)
    run = Trials(digits, Family.of(digits.dataset), ladder, state, GOAL, Settings(threads=1))
    monkeypatch.setattr(run.table, "measure", lambda *_: msgspec.structs.replace(_latency(), ms=1.0))
    return run


def _latency() -> msgspec.Struct:
    from vggdeploy.records.fit import MeasuredLatency

    return MeasuredLatency(variant="onnx-fp32", threads=1, ms=1.0)


def test_time_is_kept_for_the_end_and_more_where_it_is_known_to_take_more(started: Trials) -> None:
    assert started._trained_by(1000.0, Budget(seconds=1200)) == 940
    assert started._trained_by(1000.0, Budget(seconds=100)) == 975
    assert started._trained_by(1000.0, Budget(trials=3)) == 1000
    started.table.took = 100.0
    assert started._trained_by(1000.0, Budget(seconds=1200)) == 800
    assert started._trained_by(1000.0, Budget(seconds=100)) == 950


def test_a_training_that_would_not_end_in_time_is_not_begun_and_a_resumed_fit_goes_on_with_it(started: Trials) -> None:
    end = time.monotonic() + 100
    begun = started._next(end)
    assert begun is not None
    started._climb(*begun, end)  # the first took 1,000 seconds: a second would take 3,000
    (kept,) = started.state.trials
    assert [len(kept.rungs), kept.complete, kept.ended] == [1, False, ""]
    assert started._next(end) is None  # nor is another network
    started.state.claim.close()
    again = FitState.begin(
        started.state.home.with_name("b"), started.state.standing.question, resume=True, overwrite=False
    )
    more = Trials(started.material, started.family, started.ladder, again, GOAL, Settings(threads=1))
    assert not more.trials(math.inf, Budget(trials=1))
    (done,) = again.trials
    assert done.complete
    assert len(done.rungs) == 3


def test_a_fit_that_goes_on_after_its_end_knows_its_time_and_who_was_judged(started: Trials) -> None:
    """Else a goal that the third winner holds on the same test images would be told as if they had been asked once."""
    started._put(started._next(math.inf)[0])
    assert not started.state.told()
    for seconds in (100.0, 250.0):
        started.state.end(seconds)
        started.state.claim.close()
        started.state = FitState.begin(
            started.state.home.with_name("b"), started.state.standing.question, resume=True, overwrite=False
        )
        assert started.state.standing.seconds == seconds
    [note] = started.state.told()
    assert "asked before, about 2 winners" in note


def test_a_training_is_stopped_when_the_time_is_over(started: Trials) -> None:
    begun = started._next(time.monotonic() + 1000)
    assert begun is not None
    trial: FitTrial = begun[0]
    with pytest.raises(BudgetSpentError):
        started._watch(trial, 0, time.monotonic() - 1)(STEP, 0)
    started._watch(trial, 0, time.monotonic() + 1000)(STEP, 0)


def test_the_pace_follows_what_was_seen() -> None:
    family = Family(10, 1, (16,), ("shift",))
    spec = family.spec(family.reference(1), 8)
    pace = Pace()
    before = pace.seconds(spec, 1000)
    pace.learn(spec, 1000, 10 * before)
    assert pace.seconds(spec, 1000) == pytest.approx(10 * before)
    assert pace.seconds(spec, 2000) == pytest.approx(20 * before)


def test_what_a_step_costs_is_not_taken_for_what_a_multiply_accumulate_costs() -> None:
    family = Family(10, 1, (16,), ("shift",))
    fast, slow, slower = (family.sized(family.reference(b), family.macs(b), macs_of) for b in (0, 2, 4))
    cost = {
        spec: 4e-3 + 1e-9 * macs_of(spec) for spec in (fast, slow, slower)
    }  # the step of a small network is most of it
    pace = Pace.measured(fast, cost[fast], slow, cost[slow])
    for spec, each in cost.items():
        assert pace.seconds(spec, 1000) == pytest.approx(1000 * each)
    same = Pace.measured(fast, 1e-3, slow, 0.9e-3)  # too fast to tell them apart
    assert same.seconds(slower, 1000) == pytest.approx(1.0)


def test_small_data_is_shown_more_often_and_each_rung_is_three_times_as_long() -> None:
    assert [epochs_of(rung, 55_000) for rung in range(3)] == [1, 3, 9]
    assert epochs_of(0, 1000) == 15
    assert epochs_of(0, 50) == 40
    assert [epochs_of(rung, 50, Start.TUNED) for rung in range(3)] == [5, 15, 45]  # what is trained already


def test_a_frozen_network_is_known_to_take_less_time() -> None:
    family = Family(10, 1, (16,), ("shift",))
    spec = family.spec(family.reference(1), 8)
    assert Pace().seconds(spec, 1000, Start.FROZEN) == pytest.approx(Pace().seconds(spec, 1000, Start.TUNED) / 3)


def test_a_state_of_other_images_or_a_damaged_one_is_refused(started: Trials) -> None:
    end = time.monotonic() + 100
    begun = started._next(end)
    assert begun is not None
    started._climb(*begun, end)
    _check_answers(started.state, started.material)
    (kept,) = started.state.trials
    for answers in ("", "no base64!", pack([1, 2, 3])):
        rung = msgspec.structs.replace(kept.rungs[0], answers=answers)
        started.state.put(msgspec.structs.replace(kept, rungs=(rung,)), seconds=1.0)
        with pytest.raises(UsageError, match="validation images"):
            _check_answers(started.state, started.material)


def test_a_network_that_cannot_be_proven_ends_its_trial_and_not_the_fit(
    started: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ParityError("onnx-fp32 does not compute what was trained", "")

    monkeypatch.setattr(started.table, "measure", refuse)
    assert not started.trials(math.inf, Budget(trials=2))
    assert [trial.ended for trial in started.state.trials] == ["onnx-fp32 does not compute what was trained"] * 2
    assert [len(trial.rungs) for trial in started.state.trials] == [1, 1]


def test_a_network_that_diverges_is_not_trained_again(started: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object, **__: object) -> Rung:
        raise TrainingError("the loss became infinite", "")

    monkeypatch.setattr(started.ladder, "climb", diverge)
    assert not started.trials(math.inf, Budget(trials=3))
    shapes = [(trial.spec, trial.shape) for trial in started.state.trials]
    assert len(shapes) == 3
    assert all(one not in shapes[:at] for at, one in enumerate(shapes))


def test_ctrl_c_after_the_trials_ends_what_can_be_left_out_and_loses_nothing(
    started: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not started.trials(math.inf, Budget(trials=3))
    finish = Finish(started.material, started.ladder, GOAL, 10, 1, silent)
    exported: list[int] = []
    with deferred(terminate=1, interrupt=math.inf, note="") as ending:

        def export(trial: FitTrial) -> object:
            exported.append(trial.number)
            os.kill(os.getpid(), signal.SIGINT)
            return object()

        def variants(trial: FitTrial, *_: object) -> list[FitVariant]:
            return [
                FitVariant(
                    trial=trial.number, variant="onnx-fp32", backend="onnxruntime", precision=Precision.FP32, threads=1,
                    latency_ms=1.0, bytes=1, validation=rate_of(9, 10), verdict=Verdict.PASS, misses=("accuracy",),
                )
            ]  # fmt: skip

        monkeypatch.setattr(finish, "_bundle", export)
        monkeypatch.setattr(finish, "_variants", variants)
        won = finish.choose(started.state.trials, None, math.inf, ending.asked)
        assert exported == [won.trial] == [0]
        started.asked = ending.asked
        with pytest.raises(BudgetSpentError):  # the learning curve stops at its next step
            started._watch(started.state.trials[0], 0, math.inf)(STEP, 0)
