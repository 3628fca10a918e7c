"""What stands on the disk for as long as a command works: known here, so that whatever ends the command can remove it.

What a kill leaves (SIGKILL, a power cut) nobody can remove at that moment. It is locked by its maker (flock), and the kernel
lets the lock go with the process: so the next command that makes the same can tell it, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
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
    """A directory for files that nobody needs later; removed with the block, with the command, or, where that was killed, by
    the next one that makes a directory of this prefix."""
    _remove_abandoned(prefix)
    path, lock = _locked_directory(prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        finished(path)
        os.close(lock)


def _locked_directory(prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        began(path)
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks: nobody but we removes it
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)
        finished(path)


def _remove_abandoned(prefix: str) -> None:
    """Remove this user's temporary directories of that prefix that nobody holds. Others' are left alone, and so are links."""
    home = Path(tempfile.gettempdir())
    name = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}")
    for path in home.glob(f"{prefix}*"):
        with suppress(OSError):  # gone by now, or not ours
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if name.fullmatch(path.name) and os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


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
