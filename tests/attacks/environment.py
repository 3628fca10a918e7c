"""Run every verb that writes, in this environment, in forked children of one process.

    python environment.py prepare DIRECTORY
    python environment.py run GIVEN HOME [VERB…]       GIVEN: of prepare; HOME: a new directory

Prints one JSON object, on the last line: verb → exit code, what it said, and what was not there before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from attacks.killed_verbs import VERBS, prepare
from attacks.killing import Home, Verb, ended, start

_LIMIT = 240.0

# Beside the verbs that write, those that only read.
READERS = (
    Verb("predict", ("predict", "bundle", "images")),
    Verb("inspect", ("inspect", "bundle")),
    Verb("verify", ("verify", "bundle", "--samples", "20")),
    Verb("bench", ("bench", "bundle", "--variant", "onnx-fp32", "--batch", "1", "--seconds", "0.05", "--rounds", "3")),
    Verb("summary", ("summary", "checkpoint")),
)


def run_all(given: Path, root: Path, verbs: list[str]) -> dict[str, dict[str, object]]:
    home = Home(root, Path(tempfile.mkdtemp(prefix="logs-")))  # the disk of the home may be full
    home.make(given)
    _prepare(home)
    answers = {}
    for verb in (*VERBS, *READERS):
        if verbs and verb.name not in verbs:
            continue
        before = home.names()
        child, pipe = start(verb.arguments, home)
        code = _within(child)
        os.close(pipe)
        said = home.log.read_text(errors="replace") if home.log.exists() else ""
        answers[verb.name] = {"code": code, "said": said, "new": sorted(home.names() - before)}
    return answers


def _prepare(home: Home) -> None:
    """What the environment's variables ask for, once the home is there."""
    for name in filter(None, os.environ.get("ENVIRONMENT_READ_ONLY", "").split(",")):
        path = home.root / name
        subprocess.run(["mount", "--bind", path, path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
    if full := os.environ.get("ENVIRONMENT_FILL"):
        with suppress(OSError), (Path(full) / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))


def _within(child: int) -> int | str:
    """The exit code of a child, or that it hangs."""
    until = time.monotonic() + _LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    ended(child)
    return "hangs"


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
    else:
        print(json.dumps(run_all(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])))
