"""What the benchmark scripts share: whole processes timed by the operating system, and results with their machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.bundle.store import now
from vggdeploy.records import to_json
from vggdeploy.system.machine import machine
from vggdeploy.verify.prove import tool_versions

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Process:
    """One finished process: wall-clock seconds and the peak of its resident memory in bytes."""

    seconds: float
    peak_bytes: int


def run_process(command: Sequence[object], *, cwd: Path | None = None) -> Process:
    """Run a command to its end; it has to succeed.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} failed with {process.returncode}:\n{output.decode(errors='replace')}")
    return Process(seconds, usage.ru_maxrss * 1024)


def repeat(command: Sequence[object], runs: int, *, cwd: Path | None = None) -> dict[str, float]:
    """Minimum, median and maximum of the wall-clock seconds of ``runs`` runs, after one that does not count."""
    run_process(command, cwd=cwd)
    times = [run_process(command, cwd=cwd).seconds for _ in range(runs)]
    return {"min_s": min(times), "median_s": float(np.median(times)), "max_s": max(times), "runs": runs}


def write_result(name: str, measured: dict[str, Any], targets: list[dict[str, Any]], *, command: str = "") -> int:
    """Write ``results/NAME.json``, print each target, and return the exit code.

    Args:
        command: the script with its arguments, where it is not ``NAME.py`` alone.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    record = {
        "schema_version": 1,
        "name": name,
        "created": now(),
        "command": f"python benchmarks/{command or f'{name}.py'}",
        "commit": commit.stdout.strip() or None,
        "machine": machine(),
        "tools": tool_versions(),
        "measured": measured,
        "targets": targets,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(to_json(record))
    for target in targets:
        print(
            f"{'met   ' if target['met'] else 'MISSED'} {target['what']}: {target['found']} (target {target['target']})"
        )
    return 0 if all(target["met"] for target in targets) else 4


def target(what: str, found: float, limit: float, unit: str) -> dict[str, Any]:
    """A target of the form "at most"."""
    return {"what": what, "found": f"{found:.3g} {unit}", "target": f"≤ {limit:g} {unit}", "met": found <= limit}


def at_least(what: str, found: dict[str, float], limit: float, unit: str) -> dict[str, Any]:
    """A target of the form "at least", which the lower end of the interval of ``found`` (median, low, high) has to hold."""
    told = f"{found['median']:.3g} {unit} [{found['low']:.3g}, {found['high']:.3g}]"
    return {"what": what, "found": told, "target": f"≥ {limit:g} {unit}", "met": found["low"] >= limit}
