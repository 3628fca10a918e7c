"""Where a search stands: its trials are on disk after each of them, so a search can be resumed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.errors import BundleError, UsageError
from vggdeploy.records import Candidate, Goal, Record, Trial, from_json, to_json
from vggdeploy.system.files import atomic_write, read_regular

STATE_NAME = "search.json"
_LIMIT = 64 * 2**20


class SearchRequest(Record, frozen=True, kw_only=True):
    """What makes two searches the same one: from the same network they would choose the same trials."""

    source_sha256: str
    goal: Goal
    seed: int
    epochs: int
    dataset: str


class SearchProgress(Record, frozen=True, kw_only=True):
    """The trials so far, in their order, and the candidates that came of them."""

    schema_version: int = 1
    question: SearchRequest
    trials: tuple[Trial, ...] = ()
    candidates: tuple[Candidate, ...] = ()


@dataclass
class SearchState:
    """The directory of a search beside its output. What a killed trial left in it is made anew."""

    home: Path
    standing: SearchProgress

    @classmethod
    def begin(cls, output: Path, question: SearchRequest, *, resume: bool, overwrite: bool) -> SearchState:
        """A new search for ``output``, or the interrupted one. One that no trial came out of yet begins anew.

        Raises:
            UsageError: there is one and it is not asked for, there is none and it is asked for, or it is another one.
        """
        home = output.with_name(f"{output.name}.search")
        file = home / STATE_NAME
        if resume and not file.is_file():
            raise UsageError(f"there is no search to go on with: {file} does not exist", "leave --resume out")
        standing = None if overwrite and not resume else _read(file)
        if standing is not None and not resume:
            raise UsageError(
                f"{home} is a search that was interrupted", "go on with it: --resume; or start again: --force"
            )
        if standing is not None:
            if standing.question != question:
                raise UsageError(
                    f"{home} is a search with another {_differs(standing.question, question)}",
                    "give it the same, or start again: --force",
                )
            return cls(home, standing)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        state = cls(home, SearchProgress(question=question))
        state._write()
        return state

    @property
    def holds(self) -> bool:
        """Whether a candidate holds the goal."""
        return any(not c.misses for c in self.standing.candidates)

    def checkpoint(self, number: int) -> Path:
        return self.home / f"trial-{number}"

    def bundle(self, number: int) -> Path:
        return self.home / f"trial-{number}-bundle"

    @staticmethod
    def aware(path: Path) -> Path:
        """Where a trial's network lies that was fine-tuned once more, until it takes the first one's place."""
        return path.with_name(f"{path.name}-aware")

    @staticmethod
    def replace(old: Path, new: Path) -> None:
        shutil.rmtree(old, ignore_errors=True)
        new.rename(old)

    def add(self, trial: Trial, candidates: list[Candidate]) -> None:
        """Keep a trial that is over."""
        old = self.standing
        self.standing = msgspec.structs.replace(
            old, trials=(*old.trials, trial), candidates=(*old.candidates, *candidates)
        )
        self._write()

    def drop_files(self, keep: set[int]) -> None:
        """Remove the networks of all trials but these: a search of a night must not fill the disk."""
        for trial in self.standing.trials:
            if trial.number not in keep:
                shutil.rmtree(self.checkpoint(trial.number), ignore_errors=True)
                shutil.rmtree(self.bundle(trial.number), ignore_errors=True)
            for path in (self.checkpoint(trial.number), self.bundle(trial.number)):
                shutil.rmtree(self.aware(path), ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Leave nothing of a search that has no trial yet."""
        if not self.standing.trials:
            self.remove()

    def _write(self) -> None:
        atomic_write(self.home / STATE_NAME, to_json(self.standing))


def _read(file: Path) -> SearchProgress | None:
    """What stands there; None where there is nothing to lose.

    Raises:
        UsageError: it cannot be read.
    """
    if not file.is_file():
        return None
    try:
        standing = from_json(read_regular(file, limit=_LIMIT), SearchProgress, what=str(file))
    except BundleError as error:
        raise UsageError(error.cause, "start again: --force") from error
    return standing if standing.trials else None


def _differs(one: SearchRequest, other: SearchRequest) -> str:
    pairs = zip(
        SearchRequest.__struct_fields__, msgspec.structs.astuple(one), msgspec.structs.astuple(other), strict=True
    )
    return ", ".join(name.replace("_", " ") for name, a, b in pairs if a != b)
