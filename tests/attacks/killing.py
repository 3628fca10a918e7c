"""Commands in forked children of a process that has imported everything, killed with SIGKILL at random moments.

A trial costs what the command computes, not what Python imports. Half of the kills come at a moment drawn over the command's
measured duration; half come within 10 ms after one of its changes of the disk, drawn over all of them: that is where a
half-written file could be.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vggdeploy.cli import render
from vggdeploy.cli.app import run

_CHANGES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}
_AFTER_CHANGE = 0.01  # seconds


@dataclass(frozen=True)
class Home:
    """Where a command runs: its working directory, its cache, its temporary files and its user's home.

    ``logs``: where what it says is written. Default: beside it.
    """

    root: Path
    logs: Path | None = None

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def log(self) -> Path:
        return (self.logs or self.root.parent) / f"{self.root.name}.log"

    def make(self, given: Path) -> None:
        """Anew, with what the command is given in its working directory."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(given, self.work)
        for name in ("cache", "tmp", "user"):
            (self.root / name).mkdir(mode=0o700)

    def enter(self) -> None:
        """Let this process live here."""
        for variable, name in (("VGGDEPLOY_CACHE", "cache"), ("TMPDIR", "tmp"), ("HOME", "user")):
            os.environ[variable] = str(self.root / name)
        for variable in os.environ.get("ENVIRONMENT_UNSET", "").split(","):
            os.environ.pop(variable, None)
        tempfile.tempdir = None
        os.chdir(self.work)

    def names(self) -> set[str]:
        """The path of everything here, with ``#`` for what is random or a hash."""
        return {re.sub(r"[0-9a-f]{16,}", "#", str(p.relative_to(self.root))) for p in self.root.rglob("*")}


def start(arguments: Sequence[str], home: Home, *, fatal: int = 0, report: bool = False) -> tuple[int, int]:
    """Fork a child that runs a command in a session of its own; its process id, and a pipe that tells of its
    ``fatal``-th change of the disk (or, with ``report``, at its end what it did)."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 99
    try:
        os.setsid()
        os.close(reading)
        atexit._clear()  # what the parent would do at its end is not the child's to do
        home.enter()
        fd = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, 1), os.dup2(fd, 2)
        render.guard_streams()
        changes = _watch_changes(home, fatal, writing)
        before = set(sys.modules)
        code = run(arguments)
        if report:
            loaded = [name for name in sys.modules if name not in before and not name.startswith("__")]
            os.write(writing, json.dumps({"changes": changes(), "modules": loaded}).encode())
        atexit._run_exitfuncs()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _watch_changes(home: Home, fatal: int, writing: int) -> Callable[[], int]:
    seen, root = 0, str(home.root)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            if not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):  # type: ignore[operator]
                return
        elif event not in _CHANGES:
            return
        texts = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes))]
        if any(not os.path.isabs(text) or text.startswith(root) for text in texts):  # noqa: PTH117
            seen += 1
            if seen == fatal:
                os.write(writing, b"!")

    sys.addaudithook(watch)
    return lambda: seen


def ended(child: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole(arguments: Sequence[str], home: Home) -> tuple[float, int]:
    """Run a command to its end, which has to be a good one, and import here what it imported; its seconds and changes."""
    began = time.monotonic()
    child, pipe = start(arguments, home, report=True)
    with os.fdopen(pipe, "rb") as file:
        said = file.read()
    code = ended(child)
    took = time.monotonic() - began
    if code not in (0, 4):  # 4: too few images to prove a variant on, which is not the point here
        raise RuntimeError(f"{arguments} ended with {code}: {home.log.read_text(errors='replace')[-2000:]}")
    told = json.loads(said)
    for name in told["modules"]:
        with suppress(Exception):  # what a command made up is none to import
            importlib.import_module(name)
    return took, told["changes"]


@dataclass(frozen=True)
class Verb:
    """A command that writes. ``share``: how many parts of all kills it gets; those that take long get few."""

    name: str
    arguments: tuple[str, ...]
    share: float = 1.0


@dataclass
class Count:
    """What became of the kills of one verb."""

    verb: str
    kills: int = 0
    in_draft: int = 0  # kills after which something unfinished lay there, under a name that says so
    torn: list[str] = field(default_factory=list)
    leftovers: Counter[str] = field(default_factory=Counter)
    processes: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Rounds:
    """Kills, a few times in the home that the last kill left, then a whole run that has to tidy up."""

    given: Path
    home: Home
    count: Count

    def rounds(self, kills: int, *, each: int = 4) -> Count:
        began = time.monotonic()
        while self.count.kills < kills:
            self.home.make(self.given)
            for _ in range(min(each, kills - self.count.kills)):
                self.kill()
            self.finish()
        self.count.seconds = round(time.monotonic() - began, 1)
        return self.count

    def kill(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError


class Killer(Rounds):
    """Kills one verb again and again.

    Args:
        judge: names what is half-written in a working directory.
    """

    def __init__(self, verb: Verb, given: Path, work: Path, *, judge: Callable[[Path], list[str]], seed: int) -> None:
        self.verb, self.given, self.judge = verb, given, judge
        self.home = Home(work / verb.name)
        self.random = random.Random(f"{seed} {verb.name}")
        self.count = Count(verb.name)
        for _ in range(2):  # the second is as the others will be: everything is imported
            self.home.make(given)
            self.duration, self.changes = whole(verb.arguments, self.home)
        self.clean = self.home.names()

    def kill(self) -> None:
        for _ in range(20):
            fatal = self.random.randint(1, max(1, self.changes)) if self.random.random() < 0.5 else 0
            wait = None if fatal else self.random.uniform(0.0, self.duration)
            child, pipe = start(self.verb.arguments, self.home, fatal=fatal)
            if select.select([pipe], [], [], wait)[0] and fatal:
                time.sleep(self.random.uniform(0.0, _AFTER_CHANGE))
            os.close(pipe)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            killed = ended(child) == -signal.SIGKILL
            self.count.processes += survivors(child)
            if killed:
                break
        else:
            raise RuntimeError(f"{self.verb.name} always ended before it was killed")
        self.count.kills += 1
        self.count.in_draft += bool(self.home.names() - self.clean)
        self.count.torn += [f"kill {self.count.kills}: {text}" for text in self.judge(self.home.work)]

    def finish(self) -> None:
        """Run the verb to its end: it has to succeed, and to tidy up after those that were killed."""
        child, pipe = start(self.verb.arguments, self.home)
        code = ended(child)
        os.close(pipe)
        if code not in (0, 4):
            self.count.failed.append(f"{code}: {self.home.log.read_text(errors='replace')[-400:]}")
        self.count.torn += [f"after a whole run: {text}" for text in self.judge(self.home.work)]
        self.count.leftovers.update(self.home.names() - self.clean)


def survivors(session: int, *, patience: float = 3.0) -> int:
    """Processes of a dead leader's session that still live after a moment; they are then ended."""
    until = time.monotonic() + patience
    while (alive := _of_session(session)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(alive)


def _of_session(session: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(process.name)
            if os.getsid(pid) == session and (process / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(pid)
    return found
