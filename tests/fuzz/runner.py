"""Runs inputs in processes of their own, so that a crash or a hang is seen, and belongs to one input.

python tests/fuzz/runner.py HOME TARGET FIRST LAST [SEED]   # one target's inputs, in this process: a line for each
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
OUTCOMES = ("refused", "accepted", "refuted", "crash", "hang", "traceback", "memory")
FAILURES = OUTCOMES[3:]
_BATCH = 2000
_MEMORY = 768 * 2**20  # what one input may add to the peak
_ADDRESSES = 24 * 2**30  # where a machine is protected from what is not ours


@dataclass
class Count:
    """What became of a target's inputs, and the first failures of each kind: (input, outcome, what was said)."""

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        return sum(self.outcomes[kind] for kind in FAILURES)


def count(home: Path, target: str, inputs: int, *, seed: int = 0, limit: float = 10.0, first: int = 0) -> Count:
    """Try ``inputs`` inputs of a target.

    Args:
        home: what `fuzz.seeds.prepare` made.
        limit: seconds that one input may take.
    """
    found, at, begun = Count(target), first, time.monotonic()
    while at < first + inputs:
        at = _batch(home, found, at, min(at + _BATCH, first + inputs), seed, limit)
    found.seconds = time.monotonic() - begun
    return found


def _batch(home: Path, found: Count, first: int, last: int, seed: int, limit: float) -> int:
    """One process; gives the input to go on with."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "VGGDEPLOY_CACHE": str(home / "cache")}
    command = [sys.executable, __file__, str(home), found.target, str(first), str(last), str(seed)]
    with (home / f"{found.target}.log").open("wb") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=env, process_group=0)
        assert process.stdout is not None
        at, patience, waiting = first, 120.0, b""  # the start imports libraries
        try:
            while True:
                if not select.select([process.stdout], [], [], patience)[0]:
                    _note(found, at, "hang", f"more than {limit:g} s")
                    return at + 1
                if not (data := os.read(process.stdout.fileno(), 1 << 16)):
                    break
                *lines, waiting = (waiting + data).split(b"\n")
                for line in lines:
                    kind, number, *rest = json.loads(line)
                    at, patience = number, limit
                    if kind != "begun":
                        _note(found, number, kind, rest[0])
                        at += 1
            code = process.wait()
            if patience > limit:
                raise RuntimeError((home / f"{found.target}.log").read_text(errors="replace")[-3000:])
            if at < last or code:
                how = signal.Signals(-code).name if code < 0 else f"exit {code}"
                _note(found, at, "crash", f"{how}: {(home / f'{found.target}.log').read_bytes()[-300:]!r}")
                at += 1
            return at
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()


def _note(found: Count, number: int, kind: str, text: str) -> None:
    found.outcomes[kind] += 1
    if kind in FAILURES and len(found.failures) < 200:
        found.failures.append((number, kind, text))


def _work(home: Path, name: str, first: int, last: int, seed: int) -> None:
    from fuzz.targets import TARGETS
    from vggdeploy.errors import VggdeployError

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    target = TARGETS[name](home)
    with suppress(VggdeployError):
        target.attempt(target.good())  # what is imported and allocated once belongs to no input
    for number in range(first, last):
        answers.write(json.dumps(["begun", number]).encode() + b"\n")
        data, peak, text = target.input(number, seed), _peak(), ""
        try:
            outcome = target.attempt(data)
        except VggdeployError as error:
            outcome, text = "refused", error.cause[:200]
        except MemoryError:
            outcome = "memory"
        except BaseException as error:
            outcome, text = "traceback", _where(error)
        if (added := _peak() - peak) > _MEMORY:
            outcome, text = "memory", f"{added >> 20} MiB"
        answers.write(json.dumps([outcome, number, text]).encode() + b"\n")


def _peak() -> int:
    """Of this program. `ru_maxrss` starts at the peak of the process that started us, and so hides what stays below that."""
    from vggdeploy.bench.interference import peak_rss

    found = peak_rss()
    assert found is not None
    return found


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/vggdeploy/" in f.filename]
    place = f"{frames[-1].filename.rpartition('/vggdeploy/')[2]}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:160]}"


if __name__ == "__main__":
    _work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int((*sys.argv, "0")[5]))
