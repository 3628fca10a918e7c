"""What else the machine did while we measured: other processes, swapping, throttling, clocks. From /proc and /sys.

Every reader takes the root of the file system, and says None for what this machine does not tell.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.records import Conditions
from vggdeploy.system.machine import quota_stops

BUSY_LIMIT = 0.05  # share of the cores that other processes may use while we measure
MEMORY_LIMIT = 0.01  # share of the time in which a process of this machine waited for memory
FREQUENCY_LIMIT = 0.10  # spread of the clock over the turns of one candidate
_ROOT = Path("/")
# A process is idle when it used less than this share of one core in each of so many pauses in a row.
_IDLE_SECONDS, _IDLE_SHARE, _QUIET_LOOKS, _IDLE_LOOKS = 0.005, 0.05, 2, 200


class CpuWatch:
    """Share of our cores that somebody else had between its creation and `others`: other processes, or the hypervisor.

    Ours are those that this process may use, and those that share a physical core with one of them. On a machine of many
    cores a burner on the one that we are pinned to would be nothing, measured against all.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._cores = with_siblings(os.sched_getaffinity(0), root)
        self._start = _sample(root, self._cores)

    def others(self) -> float | None:
        """A share from 0 to 1, or None where the system does not tell. The system counts in ticks of 10 ms: of a short turn it
        is a few percent too high or too low, also below 0, and only the mean of many is right."""
        end = _sample(self._root, self._cores)
        if self._start is None or end is None:
            return None
        busy, own, wall = (b - a for a, b in zip(self._start, end, strict=True))
        return (busy - own) / (wall * len(self._cores)) if wall > 0 else None


def with_siblings(cores: Iterable[int], root: Path = _ROOT) -> frozenset[int]:
    """These logical CPUs, and those on the same physical cores (hyper-threads)."""
    found = set(cores)
    for core in tuple(found):
        listed = _text(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        for part in filter(None, listed.split(",")):  # "0,64" or "0-1"
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _sample(root: Path, cores: frozenset[int]) -> tuple[float, float, float] | None:
    """Busy seconds of these cores, of this process, and the clock."""
    try:
        lines = (root / "proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: the check is skipped, and the record says so
        return None
    ticks = 0
    for name, *fields in map(str.split, lines):
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return ticks / os.sysconf("SC_CLK_TCK"), usage.ru_utime + usage.ru_stime, time.monotonic()


def wait_until_idle(
    *, clock: Callable[[], float] = time.process_time, pause: Callable[[float], None] = time.sleep
) -> None:
    """Wait until the threads of this process have stopped computing: until its CPU time stops growing.

    ONNX Runtime's idle threads spin for some 40 ms of CPU after a call, OpenMP's and TBB's for some milliseconds: they
    would take the time of whoever has the next turn. A process that never rests is left alone after a second.
    """
    quiet = 0
    for _ in range(_IDLE_LOOKS):
        before = clock()
        pause(_IDLE_SECONDS)
        quiet = quiet + 1 if clock() - before < _IDLE_SHARE * _IDLE_SECONDS else 0
        if quiet == _QUIET_LOOKS:
            return


def swapped_pages(root: Path = _ROOT) -> int | None:
    """Pages swapped in and out since the machine started."""
    try:
        lines = (root / "proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    counts = {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}
    return counts["pswpin"] + counts["pswpout"] if {"pswpin", "pswpout"} <= counts.keys() else None


def memory_waits(root: Path = _ROOT) -> float | None:
    """Seconds in which some process waited for memory (reclaim, swap) since the machine started: Linux's pressure stall
    information."""
    for line in _text(root / "proc/pressure/memory").splitlines():
        kind, *fields = line.split()
        total = dict(field.partition("=")[::2] for field in fields).get("total", "")
        if kind == "some" and total.isdecimal():
            return int(total) / 1e6
    return None


def throttle_events(root: Path = _ROOT) -> int | None:
    """How often the CPU slowed itself down for its temperature, over all cores, since the machine started."""
    readings = [_number(p) for p in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    counts = [count for count in readings if count is not None]
    return int(sum(counts)) if counts else None


def megahertz(root: Path = _ROOT) -> float | None:
    """The clock of the fastest core that this process may use: right after a measurement, that of a core at work."""
    clocks = [
        _number(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in os.sched_getaffinity(0)
    ]
    return max((khz / 1e3 for khz in clocks if khz is not None), default=None)


def governor(root: Path = _ROOT) -> str | None:
    """The frequency governor of the first core."""
    try:
        return (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:  # a virtual machine has none
        return None


def peak_rss(root: Path = _ROOT, *, pid: int | str = "self") -> int | None:
    """Peak resident bytes of a process since its program was started (`ru_maxrss` has its parent's in it)."""
    try:
        lines = (root / f"proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or it has ended
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
    stopped: int | None = None
    waited: float | None = None
    at: float = 0.0

    @classmethod
    def read(cls, root: Path = _ROOT) -> Counters:
        waited = memory_waits(root)
        return cls(swapped_pages(root), throttle_events(root), quota_stops(root), waited, time.monotonic())

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
        if self.stopped is not None and before.stopped is not None and self.stopped > before.stopped:
            reasons.append(f"quota: this container's CPU quota stopped it in {self.stopped - before.stopped} periods")
        if self.waited is None or before.waited is None:
            unchecked.append("memory pressure: no /proc/pressure/memory")
        elif (waited := self.waited - before.waited) > MEMORY_LIMIT * (self.at - before.at):
            reasons.append(f"memory: processes waited {waited:.2f} s for it")
        return tuple(reasons), tuple(unchecked)


Reading = dict[str, float]


class Rapl:
    """Packages and memory of the CPUs, in joules (Linux powercap; only root may read them since CVE-2020-8694).

    They count the whole machine, so other processes are in it; a busy machine is invalid for its own reason.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))  # AMD's have this name too
        self._zones = {str(zone): zone for zone in zones if _text(zone / "name").startswith(("package", "dram"))}

    def read(self) -> Reading | None:
        """Joules of each counter now; None where one of them cannot be read, or there is none."""
        readings = {name: _joules(zone / "energy_uj") for name, zone in self._zones.items()}
        counts = {name: joules for name, joules in readings.items() if joules is not None}
        return counts if counts and len(counts) == len(readings) else None

    def since(self, before: Reading | None) -> float | None:
        """Joules since ``before``, over all counters."""
        now = self.read()
        if now is None or before is None or now.keys() != before.keys():
            return None
        total = 0.0
        for name, zone in self._zones.items():
            used = now[name] - before[name]
            if used < 0:  # the counter starts again at zero; a turn is shorter than one lap (minutes)
                lap = _joules(zone / "max_energy_range_uj")
                if lap is None:
                    return None
                used += lap
            total += used
        return total


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # not there, or not for us
        return ""


def _joules(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1e6 if text.isdecimal() else None


# What the libraries take thread counts, waiting and instruction sets from.
_VARIABLES = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "ORT_",
    "OV_",
    "TORCH_",
    "CUDA_",
    "NVIDIA_TF32",
)
_GIT_SECONDS = 5.0


def conditions(pin: Sequence[int] = ()) -> Conditions:
    """What holds for a whole run, before it starts. The counters are filled in by who measures."""
    return Conditions(
        affinity=tuple(sorted(pin or os.sched_getaffinity(0))),
        pinned=bool(pin),
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        governor=governor(),
        commit=git_commit(),
    )


def git_commit(directory: Path | None = None) -> str | None:
    """The commit that is checked out in the current directory, with ``-dirty`` where files differ; else None."""
    # fsmonitor: a repository may name a program there, which a look at it would run.
    command = ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # no git here; a repository on a disk that does not answer
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
