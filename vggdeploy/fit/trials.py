"""The trials of a fit: which network is tried next, for how long each is trained, and what is kept of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vggdeploy.errors import TargetError, TrainingError, VggdeployError
from vggdeploy.fit import planner
from vggdeploy.fit.advice import exponent_of
from vggdeploy.fit.family import BANDS, Family, frontier
from vggdeploy.fit.finish import Yardstick
from vggdeploy.fit.ladder import FACTOR, RUNGS, BudgetSpentError, Ladder, Pace, answers_of
from vggdeploy.fit.latency import LatencyTable
from vggdeploy.fit.material import Material, unpack
from vggdeploy.fit.starts import Starts
from vggdeploy.fit.state import FitState
from vggdeploy.fit.studies import Studies
from vggdeploy.model.layers import summarise
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.optimize.tuning import Hits
from vggdeploy.records.fit import FitGoal, FitTrial, MeasuredLatency, Rung, Shape, Start
from vggdeploy.search.goals import Budget
from vggdeploy.spec import ModelSpec
from vggdeploy.train.record import TrainingStep
from vggdeploy.types import OnProgress, silent

_FINISH_SECONDS = 60.0  # that exporting, proving and judging take
# Of the budget, at most, that is kept for them; twice that where it is known that they take longer.
_FINISH_SHARE = 0.25
_NEAR = 1.75  # times as slow as its band's first, or as fast: bands are three times apart
_GIVEN = (Start.FROZEN, Start.TUNED)
_SHARE = 0.5  # of the time left that the trainings of a network may take
_ROOM = 1.5  # times as long as its steps is a training, with scoring and writing


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to fit. ``init``: see `vggdeploy.fit.starts.Backbone.of`. ``samples`` test images that each variant is proven on;
    ``command`` is the line that asked for it. ``ray``: the address of a cluster that trains, with ``ray_workers`` trainings at
    a time at most, each on ``threads`` cores (default: one); see `vggdeploy.fit.cluster`."""

    seed: int = 0
    teacher: Path | None = None
    init: str | None = None
    data_dir: Path | None = None
    threads: int | None = None
    samples: int | None = 1000
    ray: str | None = None
    ray_workers: int | None = None
    command: str = ""
    on_progress: OnProgress = silent
    on_trial: Callable[[FitTrial, list[FitTrial]], None] = lambda trial, front: None


@dataclass
class Trials:
    """The trials of one call. ``counted`` are the seconds of it that the state has counted already; ``asked``: whether it is to
    end; ``told``: what the report says of how they were trained."""

    material: Material
    family: Family
    ladder: Ladder
    state: FitState
    goal: FitGoal
    settings: Settings
    table: LatencyTable = field(init=False)
    pace: Pace = field(init=False)
    studies: Studies = field(init=False)
    starts: Starts = field(init=False)
    counted: float = 0.0
    asked: Callable[[], bool] = lambda: False
    told: str = ""
    _began: float = field(default_factory=time.monotonic)
    _end: float = math.inf
    _teacher_hits: Hits | None = None

    def __post_init__(self) -> None:
        self.starts = self.ladder.starts or Starts(self.material)
        self.table = LatencyTable(self.settings.threads)
        self.pace = Pace()
        families = dict.fromkeys(range(BANDS), self.family)
        if backbone := self.starts.backbone:
            families[BANDS] = self.family.on(backbone.model.spec.image_size, *_GIVEN)
        self.studies = Studies(families, self.settings.seed)
        for trial in self.state.trials:
            if trial.latency.variant:
                self.table.add(trial.spec, trial.latency)

    def trials(self, end: float, budget: Budget) -> bool:
        """Trials until the budget is spent, all but what the finish takes; whether Ctrl-C ended them.

        Raises:
            TargetError: the shortest training of the fastest network would not end in time, so none is begun.
        """
        self._end = end
        try:
            if budget.seconds:
                self._measure_pace(budget)
            self._run(budget)
        except BudgetSpentError:
            self.settings.on_progress(None, "the time is over: what was being trained is left out")
        except KeyboardInterrupt:
            if not any(trial.rungs for trial in self.state.trials):
                raise
            return True
        return False

    def _trained_by(self, end: float, budget: Budget) -> float:
        """When trials have to be over: what ships is exported and measured like what was measured for the table, and longer."""
        if not budget.seconds:
            return end
        share = _FINISH_SHARE if not self.table.took else 2 * _FINISH_SHARE
        return end - min(max(_FINISH_SECONDS, 2 * self.table.took), share * budget.seconds)

    def _run(self, budget: Budget) -> None:
        """One trial after the other, first those that an earlier call has begun."""
        for trial in self._unfinished():
            self._climb(trial, None, self._trained_by(self._end, budget))
        while (begun := self._new(budget)) is not None:
            self._climb(*begun, self._trained_by(self._end, budget))

    def _unfinished(self) -> list[FitTrial]:
        return [trial for trial in self.state.trials if not trial.complete and not trial.ended]

    def _new(self, budget: Budget) -> tuple[FitTrial, Any] | None:
        """As `_next`; None, too, where the budget is spent."""
        until = self._trained_by(self._end, budget)
        spent = len(self.state.trials) >= (budget.trials or math.inf) or time.monotonic() >= until
        return None if spent else self._next(until)

    def _measure_pace(self, budget: Budget) -> None:
        """How fast training is here, by some steps of it; and the first rung so short that a network of the middle band can be
        trained to the end in half of the time.

        Raises:
            TargetError: there is nothing trained, and no time to train anything.
        """
        self.settings.on_progress(None, "measuring how fast training is here")
        shapes = [self.family.reference(band) for band in (0, BANDS // 2)]
        fast, slow = (
            self.family.sized(s, self.family.macs(b), macs_of) for s, b in zip(shapes, (0, BANDS // 2), strict=True)
        )
        each, middle = self._seconds_an_image(shapes[0], fast), self._seconds_an_image(shapes[1], slow)
        self.pace = Pace.measured(fast, each, slow, middle)
        now, until = time.monotonic(), self._trained_by(self._end, budget)
        epoch = max(each, middle) * sum(len(training) for training, _ in self.material.parts)
        epochs = _SHARE * (until - now) / (epoch * sum(FACTOR**rung for rung in range(RUNGS)))
        trained = any(trial.rungs for trial in self.state.trials)
        before = self.state.standing.first if trained else 1  # a rung is not shorter than the one before it
        self.ladder.first = None if before is None else max(int(epochs) * self.material.training, before)
        seconds = _ROOM * each * (least := self.ladder.shown(0))
        if now + seconds > until and not trained:
            needed = now + seconds - (self._end - (budget.seconds or 0.0))
            longer = min(needed / (1 - _FINISH_SHARE), needed + _FINISH_SECONDS)
            raise TargetError(
                f"training shows {1 / each:,.0f} images/s here, and the shortest one shows {least:,}: it would not end in "
                "the budget",
                f"give more time: --budget {10 * math.ceil(longer / 10)}s; or fewer images",
            )

    def _seconds_an_image(self, shape: Shape, spec: ModelSpec) -> float:
        return self.ladder.seconds_an_image(shape, spec)

    def hits(self, trial: FitTrial) -> Hits:
        """Which validation images its FP32 network has right."""
        right: Hits = unpack(trial.rungs[-1].answers) == self.material.labels[self.material.judged]
        return right

    def yardstick(self) -> Yardstick | None:
        """What an accuracy drop counts from, where one is asked for."""
        if self.goal.accuracy_drop is None:
            return None
        if self.ladder.teacher is not None:
            counted = np.isin(self.material.judged, self.material.held_out)
            return Yardstick(self.ladder.teacher, self._taught(self.ladder.teacher), None if counted.all() else counted)
        trained = [trial for trial in self.state.trials if trial.rungs]
        if not trained:
            return None
        best = max(trained, key=lambda trial: (trial.accuracy, -trial.number))
        return Yardstick(self.ladder.path(best.number, len(best.rungs)), self.hits(best))

    def holds(self, trial: FitTrial) -> bool:
        against = self.yardstick()
        hits = self.hits(trial)
        return planner.holds(self.goal, trial, hits, against.drop(hits) if against else None)

    def exponent(self, number: int, end: float) -> float | None:
        """That of a trial's learning curve: how its errors fall with images. It is trained once more, on half of them; None
        without the time for that."""
        trial = next(trial for trial in self.state.trials if trial.number == number)
        images = sum(self.ladder.shown(rung, trial.shape.start) for rung in range(len(trial.rungs))) // 2
        if time.monotonic() + self.pace.seconds(trial.spec, images, trial.shape.start) > end:
            return None
        curve = msgspec.structs.replace(trial, number=len(self.state.trials))
        self.settings.on_progress(None, "the learning curve: training the winner on half of the images")
        self.ladder.begin(curve.number, trial.shape, trial.spec)
        try:
            for rung in range(len(trial.rungs)):
                half = self.ladder.climb(curve.number, trial.shape, rung, self._watch(curve, rung, end), share=0.5)
        except (BudgetSpentError, TrainingError):
            return None  # it is advice, and no reason to lose what was found
        whole = self.material.training
        return exponent_of([whole // 2, whole], [1 - half.hits / half.samples, 1 - trial.accuracy])

    def _taught(self, teacher: Path) -> Hits:
        if self._teacher_hits is None:
            size = self.family.image_sizes[0]
            parts = [self.material.data(size, part).validation for part in range(len(self.material.parts))]
            self._teacher_hits = np.concatenate([answers_of(teacher, part) == part.labels for part in parts])
        return self._teacher_hits

    def _next(self, end: float) -> tuple[FitTrial, Any] | None:
        """A new trial, and Optuna's; None where no network can be trained in the time that is left."""
        trained = [trial for trial in self.state.trials if trial.rungs]
        holding = {trial.number for trial in trained if self.holds(trial)}
        allowed = [band for band in self.studies.families if self._affordable(band, end) and self._within_limits(band)]
        if not allowed and not trained:
            allowed = [0]  # the time suffices for no whole training: the fastest, as far as it gets
        given = BANDS in allowed and sum(trial.band == BANDS for trial in self.state.trials) < len(_GIVEN)
        # A backbone that was given is asked for, both ways, as soon as there is something beside it.
        band = BANDS if given and trained else planner.next_band(trained, self.goal, holding, allowed)
        if band is None:
            return None
        known = {_choice(trial.spec, trial.shape) for trial in self.state.trials}
        shape, asked = self.studies.ask(
            band,
            self.state.trials,
            lambda shape: _choice(self._sized(band, shape), shape) in known or not self._in_band(band, shape),
        )
        spec = self._sized(band, shape)
        summary = summarise(spec)
        trial = FitTrial(
            number=len(self.state.trials), band=band, shape=shape, spec=spec, macs=summary.macs,
            parameters=summary.parameters,
            latency=MeasuredLatency(variant="", threads=0, ms=self.table.predict(spec)),
        )  # fmt: skip
        self.ladder.begin(trial.number, shape, spec)
        return trial, asked

    def _sized(self, band: int, shape: Shape) -> ModelSpec:
        """As wide as makes it take the time of the band's first network; the first has the band's multiply-accumulates."""
        if band == BANDS and self.starts.backbone is not None:
            return self.starts.backbone.model.spec
        first = next((trial for trial in self.state.trials if trial.band == band), None)
        if first is None:
            return self.family.sized(shape, self.family.macs(band), macs_of)
        if shape.start is Start.PRUNED and self.starts.original is not None:
            return self.starts.original.sized(first.latency.ms, self.table.predict)
        return self.family.sized(shape, first.latency.ms, self.table.predict)

    def _in_band(self, band: int, shape: Shape) -> bool:
        """Whether a network is about as fast as its band's others: a teacher cannot be made narrower without end."""
        if shape.start is not Start.PRUNED:
            return True
        first = next((trial for trial in self.state.trials if trial.band == band), None)
        if first is None:
            return False
        ratio = self.table.predict(self._sized(band, shape)) / first.latency.ms
        return max(ratio, 1 / ratio) < _NEAR

    def _affordable(self, band: int, end: float) -> bool:
        spec = self._sized(band, self.family.reference(band))
        # Of a backbone the first training of a frozen one is worth its time alone.
        rungs, start = (1, Start.FROZEN) if band == BANDS else (RUNGS, Start.FRESH)
        images = sum(self.ladder.shown(rung, start) for rung in range(rungs))
        return self.pace.seconds(spec, images, start) <= _SHARE * (end - time.monotonic())

    def _within_limits(self, band: int) -> bool:
        """Whether a band's networks can keep the limits of time and size, as far as can be told before."""
        first = next((trial for trial in self.state.trials if trial.band == band), None)
        spec = first.spec if first else self._sized(band, self.family.reference(band))
        ms = first.latency.ms if first else self.table.predict(spec)
        size = summarise(spec).parameters
        limits = ((self.goal.latency_ms, ms), (self.goal.bytes, size))
        return band == 0 or all(limit is None or found <= limit for limit, found in limits)

    def _climb(self, trial: FitTrial, asked: Any, end: float) -> None:
        """Train a trial rung by rung, until it is done, does not pay, or the time is over. It is kept after each."""
        while self._pays(trial, end):
            rung = len(trial.rungs)
            try:
                found = self._train(trial, rung, self._latest(end))
            except TrainingError as error:  # a learning rate that this network cannot bear; others can
                trial = msgspec.structs.replace(trial, ended=error.cause)
            else:
                trial = self._measured(self._judged(trial, asked, found))
            self._keep(trial)
        if asked is not None:
            self.studies.tell(asked, trial)

    def _train(self, trial: FitTrial, rung: int, end: float) -> Rung:
        """One training, until ``end`` at most. Raises as `Ladder.climb`."""
        return self.ladder.climb(trial.number, trial.shape, rung, self._watch(trial, rung, end))

    def _pays(self, trial: FitTrial, end: float) -> bool:
        """Whether a trial is trained once more: one that would not end in time stands at its last rung, and a fit that is
        resumed goes on with it."""
        if trial.complete or trial.ended:
            return False
        rung = len(trial.rungs)
        seconds = self.pace.seconds(trial.spec, self.ladder.shown(rung, trial.shape.start), trial.shape.start)
        return not rung or time.monotonic() + seconds <= end

    def _latest(self, end: float) -> float:
        """When a training is stopped. Without the first one nothing ships: it may take what is kept for the finish."""
        return end if any(trial.rungs for trial in self.state.trials) else self._end

    def _judged(self, trial: FitTrial, asked: Any, found: Rung) -> FitTrial:
        """A trial after one more training, which ends it where others of its band are better."""
        rung = len(trial.rungs)
        if trial.shape.start is not Start.FROZEN:  # of which only the head is trained
            self.pace.learn(trial.spec, self.ladder.shown(rung, trial.shape.start), found.seconds)
        complete = rung == RUNGS - 1
        trial = msgspec.structs.replace(trial, rungs=(*trial.rungs, found), complete=complete)
        if asked is not None and not self.studies.goes_on(asked, trial) and not complete:
            return msgspec.structs.replace(trial, ended="others of its speed are more accurate")
        return trial

    def _measured(self, trial: FitTrial) -> FitTrial:
        """A trial whose architecture is worth being measured, with its latency."""
        if trial.ended or trial.latency.variant:
            return trial
        checkpoint = self.ladder.path(trial.number, len(trial.rungs))
        about = (self.material.name, self.settings.data_dir, self.settings.on_progress)
        try:
            return msgspec.structs.replace(trial, latency=self.table.measure(checkpoint, *about))
        except VggdeployError as error:  # its proof fails: others can be tried
            return msgspec.structs.replace(trial, ended=error.cause)

    def _watch(self, trial: FitTrial, rung: int, end: float) -> Callable[[TrainingStep, int], None]:
        parts = len(self.material.parts)

        def check(step: TrainingStep, part: int) -> None:
            if time.monotonic() > end or self.asked():
                raise BudgetSpentError
            share = (part + step.step / step.steps) / parts
            fold = f", fold {part + 1} of {parts}" if parts > 1 else ""
            self.settings.on_progress(
                share,
                f"trial {trial.number + 1}, training {rung + 1} of {RUNGS}{fold}: epoch {step.epoch} of {step.epochs}, "
                f"{step.images_per_second:,.0f} images/s",
            )

        return check

    def _keep(self, trial: FitTrial) -> None:
        self._put(trial)
        self.ladder.forget(trial.number, len(trial.rungs))
        self.settings.on_trial(trial, frontier(self.state.trials))

    def _put(self, trial: FitTrial) -> None:
        now = time.monotonic()
        seconds = self.state.standing.seconds + now - self._began - self.counted
        self.counted = now - self._began
        self.state.put(trial, seconds=seconds, first=self.ladder.first)


def _choice(spec: ModelSpec, shape: Shape) -> tuple[object, ...]:
    """What makes two trials the same one; a learning rate alone does not make another."""
    return spec, shape.augment, shape.teacher, shape.start
