"""The limits of a container: how many cores, and how much memory, this process may really use.

A container's CPU limit is a quota of time, which the number of cores does not show: 64 threads on a quota of two cores
spend most of their time stopped. Read are the files of Linux' control groups, versions 2 and 1
(docs.kernel.org: admin-guide/cgroup-v2 and cgroup-v1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Cores this process may use: its affinity, or the CPU quota rounded up where that is less; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """The smallest CPU quota, in cores, of this process's control group and those above it; None without one."""
    found = [*_v2_quotas(root), *_v1_quotas(root)]
    return min(found, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """The smallest memory limit, in bytes, of this process's control group and those above it; None without one."""
    found = [_number(folder / "memory.max") for folder in _folders(root, "")]
    found += [_number(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    # Version 1 writes "no limit" as the largest page-aligned number.
    return min((limit for limit in found if limit is not None and 0 < limit < 2**62), default=None)


def _v2_quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _v1_quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:  # -1 is no limit
            yield quota / period


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's group of a controller (version 2: ``""``) and every group above it, as far as they can be seen.

    In a container the path that /proc names may lie outside of what is mounted: its own limits stand at the mount.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _number_of, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        mounts = {root / "sys/fs/cgroup" / name for name in ((names, controller) if controller else ("", "unified"))}
        for mount in sorted(mounts):
            group = mount.joinpath(*(part for part in path.split("/") if part not in ("", "..", ".")))
            while group != mount:
                yield group
                group = group.parent
            yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not there: no such controller, another version, or no Linux
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 25 else None
