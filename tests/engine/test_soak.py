"""An application that lives long neither grows nor leaks: minutes of it here, as `benchmarks/soak.py` measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
# A process of a few thousand turns is still filling the allocator's free lists; of the whole number the limit is 2%.
GROWTH = {"short": 0.05, "whole": 0.02}


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        pytest.param("short", (6000, 80, 150, 30), marks=pytest.mark.late),
        pytest.param("whole", (200_000, 2000, 2000, 200), marks=pytest.mark.slow),
    ],
)
def test_requests_loads_failures_and_reloads_leave_nothing_behind(
    bundle_dir: Path, size: str, counts: tuple[int, ...]
) -> None:
    names = ("--requests", "--loads", "--failures", "--reloads")
    arguments = [str(part) for pair in zip(names, counts, strict=True) for part in pair]
    done = subprocess.run(
        [sys.executable, SOAK, "--bundle", bundle_dir, "--json", *arguments],
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"requests", "loads", "failed loads", "reloads"}
    for name, part in found.items():
        assert part["growth"] < GROWTH[size], (name, part)
        for kind in ("open_files", "threads", "temporary_files"):
            first, last = part[kind]
            assert last <= first, (name, kind, part)
