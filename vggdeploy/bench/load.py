"""How busy the machine was with other things while we measured, from /proc/stat."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

BUSY_LIMIT = 0.05  # share of the cores that other processes may use while we measure


class CpuWatch:
    """Share of all cores that other processes used between its creation and `others`."""

    def __init__(self) -> None:
        self._start = _sample()

    def others(self) -> float | None:
        """A share from 0 to 1, or None where the system does not tell."""
        end = _sample()
        if self._start is None or end is None:
            return None
        busy, own, wall = (b - a for a, b in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1)) if wall > 0 else None


def _sample() -> tuple[float, float, float] | None:
    """Busy seconds of all cores, of this process, and the clock."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:  # not Linux: the check is skipped, and the record says so
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(f) for f in fields[:8])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return busy, usage.ru_utime + usage.ru_stime, time.monotonic()
