"""Inputs that coverage chooses: libFuzzer, by Atheris, over one of the targets of `fuzz.targets`.

    python tests/fuzz/guided.py HOME TARGET SECONDS

Where mutations of good files stop at the first check, this finds its way through: what reached a new line of the package is
kept and mutated on. Prints one line of JSON: how many inputs ran, how many branches they reached, and what one did that no
input may do, if any.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent
INPUT_SECONDS, INPUT_MIB = 20, 2048
# libFuzzer asks getrusage for the peak of memory, and that of the process which starts a program counts as the program's: here
# that is a shell's, and not pytest's.
_AFRESH = ("sh", "-c", '"$@"; exit $?', "sh")


@dataclass(frozen=True)
class Guided:
    """``branches``: of the package's own code, that were reached; ``failure``: "" or what was said of the input that failed."""

    target: str
    runs: int
    branches: int
    failure: str
    input: str


def search(home: Path, name: str, seconds: int) -> Guided:
    """Run libFuzzer in a process of its own, which it ends itself."""
    found, kept = home / f"{name}-failures", home / f"{name}-corpus"
    found.mkdir(exist_ok=True)
    kept.mkdir(exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={INPUT_MIB}", "-seed=1"]
    options = [*limits, "-print_final_stats=1", f"-artifact_prefix={found}/", str(kept)]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*_AFRESH, sys.executable, __file__, "--here", str(home), name, *options],
        capture_output=True, text=True, errors="replace", check=False, env=env, timeout=seconds + 300,
    )  # fmt: skip
    runs = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    branches = re.findall(r" cov: (\d+)", done.stderr)
    failed = sorted(found.iterdir())
    told = "" if not failed and done.returncode == 0 else (done.stderr[-2000:] + done.stdout[-2000:])
    return Guided(
        name, int(runs[1]) if runs else 0, int(branches[-1]) if branches else 0, told, str(failed[0]) if failed else ""
    )


def _here(home: Path, name: str, options: list[str]) -> None:
    """In the process that libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["vggdeploy", "fuzz.puzzle"]):
        from fuzz.targets import TARGETS
        from vggdeploy.errors import VggdeployError

        target = TARGETS[name](home)
        with suppress(VggdeployError):
            target.attempt(target.good())  # what it imports is instrumented, too
    for number, seed in enumerate([target.good(), *target.corpus]):
        (Path(options[-1]) / f"seed-{number}").write_bytes(seed)

    def attempt(data: bytes) -> None:
        with suppress(VggdeployError):  # refused, in one line
            target.attempt(data)

    atheris.Setup([sys.argv[0], *options], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "--here":
        _here(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        print(json.dumps(asdict(search(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))
