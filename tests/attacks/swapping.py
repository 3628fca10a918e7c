"""A writer who gives a file other bytes between the moment it is checked and the moment it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def by_rename(path: Path) -> None:
    """Another file takes its place: an open descriptor keeps the old one."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(b"evil" * (path.stat().st_size // 4 + 1))
    new.replace(path)


def in_place(path: Path) -> None:
    """The same file gets other bytes: an open descriptor, and a map of it, see them."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write((b"evil" * (size // 4 + 1))[:size])


SWAPS: dict[str, Callable[[Path], None]] = {"by rename": by_rename, "in place": in_place}


def swap_before(patch: pytest.MonkeyPatch, owner: Any, name: str, swap: Callable[[], None]) -> list[str]:
    """Swap when ``owner.name`` is called, and then call it; returns what is filled with its calls."""
    real, calls = getattr(owner, name), []

    def swapped(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            swap()
        return real(*args, **options)

    patch.setattr(owner, name, swapped)
    return calls
