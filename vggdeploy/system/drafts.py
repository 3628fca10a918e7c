"""What stands on the disk for as long as a command works: known here, so that whatever ends the command can remove it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock

# Held while a draft takes its target's place: a draft that is half removed must not be placed.
PLACING = RLock()
_unfinished: set[Path] = set()


def began(path: Path) -> None:
    """From now on ``path`` is removed when the command is ended from outside."""
    _unfinished.add(path)


def finished(path: Path) -> None:
    """``path`` was placed, or removed."""
    _unfinished.discard(path)


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A directory for files that nobody needs later; removed with the block, or with the command."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    began(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        finished(path)


def remove_unfinished(wait: float) -> None:
    """Remove everything that is not placed yet, on the way to the process's end: from now on nothing can be placed.

    Args:
        wait: seconds for a placing that is under way. If it takes longer, all is left to the next writer's tidying.
    """
    if not PLACING.acquire(timeout=wait):
        return
    for path in tuple(_unfinished):
        for _ in range(3):  # a library may still be writing there
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)
                break
