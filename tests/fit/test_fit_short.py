"""A short budget, a slow machine: what is trained follows from the speed that is measured, or nothing is begun."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.bundle import Bundle
from vggdeploy.errors import TargetError
from vggdeploy.fit import ladder
from vggdeploy.fit.family import BANDS, Family
from vggdeploy.fit.fit import fit
from vggdeploy.fit.ladder import RUNGS, Ladder, epochs_of
from vggdeploy.fit.material import Material
from vggdeploy.fit.state import FitRequest, FitState
from vggdeploy.fit.trials import Settings, Trials
from vggdeploy.records.fit import FitGoal, FitReport, FitTrial, MeasuredLatency, Rung
from vggdeploy.search.goals import Budget
from vggdeploy.system.optional import installed
from vggdeploy.train.record import TrainingStep
from vggdeploy.types import Verdict, silent

pytestmark = pytest.mark.skipif(not installed("optuna"), reason="pip install 'vggdeploy[optimize]'")
EASY = FitGoal(accuracy=0.3)
QUICK = Settings(threads=1, samples=50)


class Clock:
    """The monotonic clock, which can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, self._real = 0.0, time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: self._real() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(scope="module")
def digits() -> Material:
    return Material.of("digits", None, seed=0, on_progress=silent)


def begun(material: Material, place: Path, each: float, monkeypatch: pytest.MonkeyPatch) -> Trials:
    """The trials of a fit on a machine that takes so many seconds for each image that it trains on."""
    question = FitRequest(dataset=material.name, images="", goal=EASY, seed=0, teacher="")
    state = FitState.begin(place, question, resume=False, overwrite=True)
    rungs = Ladder(material, state.home, 0, 1)
    monkeypatch.setattr(rungs, "seconds_an_image", lambda *_: each)
    return Trials(material, Family.of(material.dataset), rungs, state, EASY, QUICK)


@pytest.mark.parametrize("each", [1e-6, 1e-4, 1e-3, 1e-1])
@pytest.mark.parametrize("seconds", [20, 120, 1200])
def test_the_first_training_fits_into_the_budget_or_one_that_would_do_is_named(
    digits: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: float, seconds: float
) -> None:
    run = begun(digits, tmp_path / "b", each, monkeypatch)
    before = time.monotonic()
    run._end = before + seconds
    try:
        run._measure_pace(Budget(seconds=seconds))
    except TargetError as refused:
        [longer] = re.findall(r"--budget (\S+); or", refused.hint)
        budget = Budget.parse(longer)
        assert budget.seconds is not None
        assert budget.seconds > seconds
        run._end = time.monotonic() + budget.seconds
        run._measure_pace(budget)  # the budget that is named is one that does
        assert f"{1 / each:,.0f} images/s" in refused.cause
        assert f"the shortest one shows {run.ladder.shown(0):,}" in refused.cause
    else:
        budget = Budget(seconds=seconds)
    until = run._trained_by(run._end, budget)
    assert time.monotonic() + each * run.ladder.shown(0) < until
    # No longer than it would be with more time, and longer than an epoch only as networks can be trained to their end.
    assert run.ladder.epochs(0) <= epochs_of(0, digits.training)
    if run.ladder.epochs(0) > 1:
        assert each * sum(run.ladder.shown(rung) for rung in range(RUNGS)) <= 0.5 * (until - before)
        assert (
            len([band for band in range(BANDS) if run._affordable(band, until + 1)]) == BANDS
        )  # here all take as long


def test_much_time_changes_nothing_and_a_number_of_networks_measures_nothing(
    digits: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(digits, tmp_path / "b", 1e-6, monkeypatch)
    run._end = time.monotonic() + 7200
    run._measure_pace(Budget(seconds=7200))
    assert [run.ladder.epochs(rung) for rung in range(3)] == [epochs_of(rung, digits.training) for rung in range(3)]
    assert not run.ladder.short()
    monkeypatch.setattr(run, "_measure_pace", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(run, "_next", lambda *_: None)
    assert not run.trials(time.monotonic() + 10, Budget(trials=1))


@pytest.mark.parametrize(("known", "each", "first"), [(2000, 10.0, 2000), (2000, 1e-6, None), (None, 10.0, None)])
def test_a_fit_that_goes_on_trains_no_shorter_and_is_not_refused(
    digits: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int | None, each: float, first: int | None
) -> None:
    run = begun(digits, tmp_path / "b", each, monkeypatch)
    shape = run.family.reference(0)
    spec = run.family.spec(shape, 8)
    trial = FitTrial(
        number=0, band=0, shape=shape, spec=spec, macs=1, parameters=1, complete=True,
        latency=MeasuredLatency(variant="onnx-fp32", threads=1, ms=1.0),
        rungs=(Rung(epochs=1, hits=1, samples=2, seconds=1.0),),
    )  # fmt: skip
    run.state.put(trial, seconds=1.0, first=known)
    run._end = time.monotonic() + 60
    run._measure_pace(Budget(seconds=60))
    whole = epochs_of(0, digits.training)
    assert run.ladder.epochs(0) == (epochs_of(0, digits.training, first=first) if first else whole)


def test_the_speed_is_that_of_the_steps_whatever_the_first_one_takes(
    digits: Material, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family.of(digits.dataset)
    shape = family.reference(0)
    shown: list[int] = []

    def steps(recipe: object, *, on_step: object, **_: object) -> None:
        clock.ahead += 100  # what is not a step
        for at in range(1, 61):
            clock.ahead += 50 if at == 1 else 0.32
            shown.append(at)
            on_step(  # type: ignore[operator]
                TrainingStep(
                    epoch=1, epochs=2, step=at, steps=60, loss=1, accuracy=0, images_per_second=1, learning_rate=0.1
                )
            )

    monkeypatch.setattr(ladder, "train", steps)
    home = tmp_path / "home"
    home.mkdir()
    found = Ladder(digits, home, 0, 1).seconds_an_image(shape, family.spec(shape, 8))
    assert found == pytest.approx(0.01, rel=0.01)  # batches of 32
    assert 2 <= len(shown) <= 6  # a second is enough
    assert not list(home.iterdir())


def fitted(data: str, output: Path, seconds: float) -> FitReport:
    """A fit in so little time; where that does not suffice, in the time that the refusal names."""
    try:
        return fit(data, output, EASY, Budget(seconds=seconds), QUICK)
    except TargetError as refused:
        assert not output.exists()
        [longer] = re.findall(r"--budget (\S+); or", refused.hint)
        return fit(data, output, EASY, Budget.parse(longer), QUICK)


def check(report: FitReport, output: Path) -> None:
    bundle = Bundle.open(output)
    assert bundle.manifest.variant(report.winner.variant).verdict is not Verdict.FAIL
    assert report.test.samples == report.images["test"]
    assert any(trial.rungs for trial in report.trials)


@pytest.mark.slow
def test_twenty_seconds_end_with_a_proven_bundle(tmp_path: Path) -> None:
    check(fitted("digits", tmp_path / "b", 20), tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 40])
def test_a_machine_ten_times_as_slow_or_one_that_becomes_it_ends_with_a_proven_bundle(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    honest, steps = ladder.train, [0]

    def slow(*args: object, on_step: object, **more: object) -> object:
        last = time.monotonic()

        def told(step: TrainingStep) -> None:
            nonlocal last
            steps[0] += 1
            if steps[0] > after:
                clock.ahead += 9 * (time.monotonic() - last)
            last = time.monotonic()
            on_step(step)  # type: ignore[operator]

        return honest(*args, on_step=told, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "train", slow)
    report = fitted("digits", tmp_path / "b", 120)
    check(report, tmp_path / "b")
    if not after:
        assert any("the budget is short" in note for note in report.notes)


@pytest.mark.slow
def test_three_hundred_pictures_and_half_a_minute_end_with_a_proven_bundle(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in range(3):
        place = tmp_path / "pictures" / f"class{label}"
        place.mkdir(parents=True)
        for at in range(100):
            image = random.integers(0, 100, (16, 16, 3), dtype=np.uint8)
            image[..., label] += 100
            Image.fromarray(image).save(place / f"{at}.png")
    report = fitted(str(tmp_path / "pictures"), tmp_path / "b", 30)
    check(report, tmp_path / "b")
    assert report.folds == 5
