"""What else the machine did while we measured: other processes, swapping, throttling, clocks. From /proc and /sys.

Every reader takes the root of the file system, and says None for what this machine does not tell.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_LIMIT = 0.05  # share of the cores that other processes may use while we measure
FREQUENCY_LIMIT = 0.10  # spread of the clock over the turns of one candidate
_ROOT = Path("/")


class CpuWatch:
    """Share of all cores that other processes used between its creation and `others`."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._start = _sample(root)

    def others(self) -> float | None:
        """A share from 0 to 1, or None where the system does not tell."""
        end = _sample(self._root)
        if self._start is None or end is None:
            return None
        busy, own, wall = (b - a for a, b in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1)) if wall > 0 else None


def _sample(root: Path) -> tuple[float, float, float] | None:
    """Busy seconds of all cores, of this process, and the clock."""
    try:
        fields = (root / "proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:  # not Linux: the check is skipped, and the record says so
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(f) for f in fields[:8])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return busy, usage.ru_utime + usage.ru_stime, time.monotonic()


def swapped_pages(root: Path = _ROOT) -> int | None:
    """Pages swapped in and out since the machine started."""
    try:
        lines = (root / "proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    counts = {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}
    return counts["pswpin"] + counts["pswpout"] if {"pswpin", "pswpout"} <= counts.keys() else None


def throttle_events(root: Path = _ROOT) -> int | None:
    """How often the CPU slowed itself down for its temperature, over all cores, since the machine started."""
    found = [_number(p) for p in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    counts = [count for count in found if count is not None]
    return int(sum(counts)) if counts else None


def megahertz(root: Path = _ROOT) -> float | None:
    """The clock of the fastest core that this process may use: right after a measurement, that of a core at work."""
    found = [
        _number(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in os.sched_getaffinity(0)
    ]
    return max((khz / 1e3 for khz in found if khz is not None), default=None)


def governor(root: Path = _ROOT) -> str | None:
    """The frequency governor of the first core."""
    try:
        return (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:  # a virtual machine has none
        return None


def peak_rss(root: Path = _ROOT) -> int | None:
    """Peak resident bytes of this process since its program was started (`ru_maxrss` has its parent's in it)."""
    try:
        lines = (root / "proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not on this machine; "<unknown>" of a core that is off
        return None


@dataclass(frozen=True)
class Counters:
    """Counters of the machine at one moment; None where it does not tell."""

    swapped: int | None
    throttled: int | None

    @classmethod
    def read(cls, root: Path = _ROOT) -> Counters:
        return cls(swapped_pages(root), throttle_events(root))

    def doubts(self, before: Counters) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Reasons against what was measured since ``before``, and what could not be checked."""
        reasons, unchecked = [], []
        if self.swapped is None or before.swapped is None:
            unchecked.append("swap: no /proc/vmstat")
        elif self.swapped > before.swapped:
            reasons.append(f"swap: {self.swapped - before.swapped} pages went in or out")
        if self.throttled is None or before.throttled is None:
            unchecked.append("throttling: no /sys/devices/system/cpu/cpu*/thermal_throttle")
        elif self.throttled > before.throttled:
            reasons.append(f"throttled: the CPU slowed down {self.throttled - before.throttled} times for its heat")
        return tuple(reasons), tuple(unchecked)
