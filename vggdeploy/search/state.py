"""Where a search stands: its trials are on disk after each of them, so a search can be resumed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.errors import BundleError, UsageError
from vggdeploy.records import Candidate, Goal, Record, Trial, from_json, to_json
from vggdeploy.system.files import atomic_write, check_replaceable, read_regular, tidy

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
    claim: Claim

    @classmethod
    def begin(cls, output: Path, question: SearchRequest, *, resume: bool, overwrite: bool) -> SearchState:
        """A new search for ``output``, or the interrupted one. Errors: those of `open_progress`."""
        home = output.with_name(f"{output.name}.search")
        found, claim = open_progress(
            home / STATE_NAME, SearchProgress, question, resume=resume, overwrite=overwrite, what="search"
        )
        if found is not None:
            return cls(home, found, claim)
        state = cls(home, SearchProgress(question=question), claim)
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
        remove_progress(self.home / STATE_NAME)

    def remove_if_empty(self) -> None:
        """Leave nothing of a search that has no trial yet."""
        if not self.standing.trials:
            self.remove()

    def _write(self) -> None:
        atomic_write(self.home / STATE_NAME, to_json(self.standing))


P = TypeVar("P", bound="Progress")


class Progress(Protocol):
    """What a search keeps on disk: what was asked, and what it has tried."""

    @property
    def question(self) -> Record: ...
    @property
    def trials(self) -> Sequence[object]: ...


class Claim:
    """A directory that no other process works in, until `close`, or until this process ends, however that is."""

    def __init__(self, home: Path, what: str) -> None:
        """Make the directory where it is not there, and lock it. Without locks in the file system nobody is kept away.

        Raises:
            UsageError: somebody works in it.
        """
        while True:
            home.mkdir(parents=True, exist_ok=True)
            fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
            self.close = weakref.finalize(self, os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self.close()
                raise UsageError(
                    f"another {what} is at work in {home}", "wait until it ends, or choose another output"
                ) from error
            except OSError:
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(home.stat(), os.fstat(fd)):
                    return
            self.close()  # its owner removed it meanwhile


def open_progress(
    file: Path, kind: type[P], question: Record, *, resume: bool, overwrite: bool, what: str
) -> tuple[P | None, Claim]:
    """What stands in ``file``, and the claim on its directory; None where all begins anew, in a directory that is empty. One
    that no trial came out of yet begins anew. ``what`` is the verb, in words.

    Raises:
        UsageError: there is one and it is not asked for, there is none and it is asked for, or it is another one; its
            directory is somebody else's, or at work.
    """
    home = file.parent
    tidy(home, of=file.name)  # of a kill in the first write
    check_replaceable(home, marker=file.name, overwrite=True)
    if (home / MANIFEST_NAME).exists():
        raise UsageError(f"{home} is a bundle, and a {what} would keep its trials there", "choose another output")
    if resume and not file.is_file():
        raise UsageError(f"there is no {what} to go on with: {file} does not exist", "leave --resume out")
    claim = Claim(home, what)
    try:
        found = _standing(file, kind, question, resume=resume, overwrite=overwrite, what=what)
        if found is None:
            _clear(home)
    except BaseException:
        claim.close()
        raise
    return found, claim


def remove_progress(file: Path) -> None:
    """Remove the directory of a search, the file that makes it one last: what a kill leaves of it can be begun anew."""
    with contextlib.suppress(OSError):
        _clear(file.parent, keep=file.name)
    shutil.rmtree(file.parent, ignore_errors=True)


def _clear(home: Path, *, keep: str = "") -> None:
    for path in home.iterdir():
        if path.name == keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _standing(file: Path, kind: type[P], question: Record, *, resume: bool, overwrite: bool, what: str) -> P | None:
    """
    Raises:
        UsageError: see `open_progress`.
    """
    home = file.parent
    standing = None if overwrite and not resume else _read(file, kind)
    if standing is not None and not resume:
        raise UsageError(f"{home} is a {what} that was interrupted", "go on with it: --resume; or start again: --force")
    if standing is not None and standing.question != question:
        raise UsageError(
            f"{home} is a {what} with another {_differs(standing.question, question)}",
            "give it the same, or start again: --force",
        )
    return standing


def _read(file: Path, kind: type[P]) -> P | None:
    """What stands there; None where there is nothing to lose.

    Raises:
        UsageError: it cannot be read.
    """
    if not file.is_file():
        return None
    try:
        standing = from_json(read_regular(file, limit=_LIMIT), kind, what=str(file))
    except BundleError as error:
        raise UsageError(error.cause, "start again: --force") from error
    return standing if standing.trials else None


def _differs(one: Record, other: Record) -> str:
    names = type(one).__struct_fields__
    pairs = zip(names, msgspec.structs.astuple(one), msgspec.structs.astuple(other), strict=True)
    return ", ".join(name.replace("_", " ") for name, a, b in pairs if a != b)
