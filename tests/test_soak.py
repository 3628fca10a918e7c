"""An application that lives long neither grows nor leaks: minutes of it here, as `benchmarks/soak.py` measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"
# A process of a few thousand turns is still filling the allocator's free lists; of the whole number the limit is 2%.
GROWTH = {"short": 0.05, "whole": 0.02}


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        pytest.param("short", (6000, 80, 150, 60), marks=pytest.mark.late),
        pytest.param("whole", (200_000, 2000, 2000, 200), marks=pytest.mark.slow),
    ],
)
def test_requests_loads_failures_and_reloads_leave_nothing_behind(
    bundle_dir: Path, size: str, counts: tuple[int, ...]
) -> None:
    names = ("--requests", "--loads", "--failures", "--reloads")
    arguments = [str(part) for pair in zip(names, counts, strict=True) for part in pair]
    runs = [soak(bundle_dir, arguments)]
    if any(part["growth"] >= GROWTH[size] for part in runs[0].values()):
        # After a reload the allocator holds a few percent more or less, and seldom two windows differ by more than the
        # limit. What is lost for good is lost in every process.
        runs.append(soak(bundle_dir, arguments))
    for name in runs[0]:
        assert min(run[name]["growth"] for run in runs) < GROWTH[size], (name, runs)
    for name, part in (item for run in runs for item in run.items()):
        for kind in ("open_files", "threads", "temporary_files"):
            first, last = part[kind]
            assert last <= first, (name, kind, part)


def soak(bundle: Path, arguments: list[str]) -> dict[str, Any]:
    """What a process of its own holds: part → numbers."""
    done = subprocess.run(
        [sys.executable, SOAK, "--bundle", bundle, "--json", *arguments],
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found) == {"requests", "loads", "failed loads", "reloads"}
    return found
