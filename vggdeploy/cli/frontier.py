"""A fit as it goes on: on a terminal a picture of the frontier that grows, in a log a line at least every three seconds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vggdeploy.cli import render
from vggdeploy.cli.render import escape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from vggdeploy.records.fit import FitGoal, FitTrial
    from vggdeploy.search.goals import Budget
    from vggdeploy.types import OnProgress

SILENCE = 2.5  # seconds without a line, after which a log says what is being done
_WIDTH, _HEIGHT = 64, 12
OnTrial = Callable[["FitTrial", "list[FitTrial]"], None]


@contextmanager
def watched(goal: FitGoal, budget: Budget) -> Iterator[tuple[OnProgress, OnTrial]]:
    """What a fit is told to call: with what it does, and with each trial."""
    if render.err.is_terminal:
        from rich.live import Live

        picture = _Picture(goal, budget)
        with Live(picture, console=render.err, refresh_per_second=4, transient=True):
            yield picture.tell, picture.note
        return
    log = _Log()
    beat = threading.Thread(target=log.beat, name="vggdeploy-fit-log", daemon=True)
    beat.start()
    try:
        yield log.tell, log.note
    finally:
        log.over.set()
        beat.join()


class _Log:
    """Lines. What goes on without a word for `SILENCE` seconds is said once more, with the seconds since it began."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._phase, self._began = "starting", time.monotonic()
        self._last = -math.inf
        self._share: float | None = None
        self._lock = threading.Lock()

    def tell(self, share: float | None, phase: str) -> None:
        with self._lock:
            new = share is None and phase != self._phase
            if new or share is None:
                self._began = time.monotonic()
            self._phase, self._share = phase, share
            if new:
                self._say(phase)

    def note(self, trial: FitTrial, front: list[FitTrial]) -> None:
        with self._lock:
            self._say(told(trial, front))

    def beat(self) -> None:
        while not self.over.wait(0.25):
            with self._lock:
                if time.monotonic() - self._last > SILENCE:
                    done = (
                        f"{self._share:.0%}" if self._share is not None else f"{time.monotonic() - self._began:.0f} s"
                    )
                    self._say(f"{self._phase} ({done})")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        render.note(f"[dim]{escape(text)}[/]")


class _Picture:
    """The frontier as a picture of letters, and below it what is being done. Drawn anew four times a second."""

    def __init__(self, goal: FitGoal, budget: Budget) -> None:
        self._goal, self._budget = goal, budget
        self._phase = "starting"
        self._share: float | None = None
        self._began = time.monotonic()
        self._front: list[FitTrial] = []
        self._trials: dict[int, FitTrial] = {}

    def tell(self, share: float | None, phase: str) -> None:
        self._phase, self._share = phase, share

    def note(self, trial: FitTrial, front: list[FitTrial]) -> None:
        self._trials[trial.number], self._front = trial, front

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        spent = time.monotonic() - self._began
        left = f" of {self._budget.seconds / 60:.3g} min" if self._budget.seconds else ""
        trained = [trial for trial in self._trials.values() if trial.rungs]
        for line in drawn(trained, self._front, self._goal):
            yield Text(line)
        done = "" if self._share is None else f" {self._share:.0%}"
        yield Text(f"{spent / 60:.1f}{left} min · {len(self._trials)} networks · {self._phase}{done}", "dim")
        yield Text("Ctrl-C ends it and keeps the best so far", "dim")


def told(trial: FitTrial, front: Sequence[FitTrial]) -> str:
    """One trial in a line, and the frontier after it."""
    from vggdeploy.report.fits import network

    state = trial.ended or ("trained to the end" if trial.complete else f"training {len(trial.rungs)}")
    best = ", ".join(f"{one.latency.ms:.3g} ms {one.accuracy:.1%}" for one in front)
    return (
        f"trial {trial.number + 1}: {network(trial)}, {trial.latency.ms:.3g} ms, {trial.accuracy:.2%} on validation images; "
        f"{state}. frontier: {best or 'none'}"
    )


def drawn(trials: Sequence[FitTrial], front: Sequence[FitTrial], goal: FitGoal) -> list[str]:
    """Accuracy upwards, milliseconds to the right (logarithmic): ``●`` the frontier, ``·`` the rest, ``─`` and ``│`` the
    goal."""
    if not trials:
        return ["no network is trained yet"]
    times = [math.log(trial.latency.ms) for trial in trials]
    rates = [trial.accuracy for trial in trials]
    if goal.accuracy is not None:
        rates.append(goal.accuracy)
    if goal.latency_ms is not None:
        times.append(math.log(goal.latency_ms))
    low, high = min(times) - 0.1, max(times) + 0.1
    bottom, top = max(0.0, min(rates) - 0.01), min(1.0, max(rates) + 0.01)
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]

    def column(ms: float) -> int:
        return min(_WIDTH - 1, round((math.log(ms) - low) / (high - low) * (_WIDTH - 1)))

    def row(rate: float) -> int:
        return min(_HEIGHT - 1, round((top - rate) / (top - bottom) * (_HEIGHT - 1)))

    if goal.accuracy is not None:
        cells[row(goal.accuracy)] = ["─"] * _WIDTH
    if goal.latency_ms is not None:
        for line in cells:
            line[column(goal.latency_ms)] = "│"
    best = {trial.number for trial in front}
    for trial in sorted(trials, key=lambda trial: trial.number in best):
        cells[row(trial.accuracy)][column(trial.latency.ms)] = "●" if trial.number in best else "·"
    lines = [f"{top - at * (top - bottom) / (_HEIGHT - 1):7.1%} ┤{''.join(line)}" for at, line in enumerate(cells)]
    left, right = f"{math.exp(low):.3g}", f"{math.exp(high):.3g} ms an image"
    return [*lines, f"{'':8}└{'─' * _WIDTH}", f"{'':9}{left}{right:>{_WIDTH - len(left)}}"]
