"""Which processes a process has started, by what Linux tells in /proc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether it can still compute; of one that has ended its parent may not have asked yet what became of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Those that any of its threads started, and that have not been waited for."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            found += map(int, listed.read_text().split())
    return found


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def called(name: bytes, pid: int) -> list[int]:
    """Of its descendants those whose command line begins so."""
    found = []
    for one in descendants(pid):
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{one}/cmdline").read_bytes().startswith(name):
                found.append(one)
    return found
