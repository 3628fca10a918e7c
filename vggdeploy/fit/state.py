"""Where a fit stands: its trials are on disk after each training, so a fit can be resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.errors import counted
from vggdeploy.records import Record, to_json
from vggdeploy.records.fit import FitGoal, FitTrial
from vggdeploy.search.state import Claim, open_progress, remove_progress
from vggdeploy.system.files import atomic_write

STATE_NAME = "fit.json"
SUFFIX = ".fit"


class FitRequest(Record, frozen=True, kw_only=True):
    """What makes two fits the same one. ``images`` identifies them, their labels and how they are divided (see `Material`),
    ``teacher`` the weights that teach, ``init`` those of the backbone."""

    dataset: str
    images: str
    goal: FitGoal
    seed: int
    teacher: str
    init: str = ""


class FitProgress(Record, frozen=True, kw_only=True):
    """The trials so far, and the seconds that they took, with those of each end that was written. A trial whose training was
    killed stands at its last rung. ``first``: images that the first rung shows, where the time made it shorter (see
    `vggdeploy.fit.ladder.epochs_of`). ``judged``: how many winners the test images were asked about."""

    schema_version: int = 1
    question: FitRequest
    trials: tuple[FitTrial, ...] = ()
    seconds: float = 0.0
    first: int | None = None
    judged: int = 0


@dataclass
class FitState:
    """The directory of a fit beside its output."""

    home: Path
    standing: FitProgress
    claim: Claim

    @classmethod
    def begin(cls, output: Path, question: FitRequest, *, resume: bool, overwrite: bool) -> FitState:
        """A new fit for ``output``, or the interrupted one. Errors: those of `open_progress`."""
        home = output.with_name(f"{output.name}{SUFFIX}")
        found, claim = open_progress(
            home / STATE_NAME, FitProgress, question, resume=resume, overwrite=overwrite, what="fit"
        )
        if found is not None:
            return cls(home, found, claim)
        state = cls(home, FitProgress(question=question), claim)
        state.write()
        return state

    @property
    def trials(self) -> tuple[FitTrial, ...]:
        return self.standing.trials

    def put(self, trial: FitTrial, *, seconds: float, first: int | None = None) -> None:
        """Keep a trial as it is now, and what is known with it."""
        kept = {t.number: t for t in self.trials} | {trial.number: trial}
        trials = tuple(kept[number] for number in sorted(kept))
        self.standing = msgspec.structs.replace(self.standing, trials=trials, seconds=seconds, first=first)
        self.write()

    def end(self, seconds: float) -> None:
        """Keep that a winner was judged and written, after so many seconds of all calls: the fit can go on."""
        self.standing = msgspec.structs.replace(self.standing, seconds=seconds, judged=self.standing.judged + 1)
        self.write()

    def told(self) -> list[str]:
        """What the report of a fit that went on has to say."""
        if not self.standing.judged:
            return []
        return [
            f"the test images were asked before, about {counted(self.standing.judged, 'winner')} of this fit: a goal that is "
            "held after going on may be luck, and the interval does not know of it"
        ]

    def write(self) -> None:
        atomic_write(self.home / STATE_NAME, to_json(self.standing))

    def remove(self) -> None:
        remove_progress(self.home / STATE_NAME)

    def remove_if_empty(self) -> None:
        """Leave nothing of a fit that trained nothing."""
        if not any(trial.rungs for trial in self.trials):
            self.remove()
