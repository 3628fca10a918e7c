"""The user's cache: what can be made again and takes long (engines, compiled models and kernels, proofs).

Each kind has a directory, each entry in it a name: the digest of all that decides it. An entry is a file, or a directory
of files. Engines and kernels are code, so nothing is believed that another user could have written: every directory from the
root of the file system down to the kind's, the entry and its files belong to this user or to root, nobody else may write them
(or, above the kind's, remove what is in them), and neither the kind's directory nor what is below it is a link. That is looked
at on open descriptors, each opened from the one above it. A cache that cannot be read or written costs time; it is never an
error. One that another user could have written is named in a warning, once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vggdeploy.errors import VggdeployError
from vggdeploy.system.files import atomic_write, lock_file, tidy

T = TypeVar("T")
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_log = logging.getLogger("vggdeploy")
_warned: set[str] = set()


def user_home() -> Path:
    """The user's directory; ``/`` without ``$HOME`` where no passwd file knows the user, as container engines have it."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def cache_home() -> Path:
    """``$VGGDEPLOY_CACHE``, else ``vggdeploy`` in ``$XDG_CACHE_HOME``, else ``~/.cache/vggdeploy``."""
    own = os.environ.get("VGGDEPLOY_CACHE", "")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path there is invalid, and to be ignored.
    return (Path(base) if os.path.isabs(base) else user_home() / ".cache") / "vggdeploy"  # noqa: PTH117


def key_of(about: object) -> str:
    """The key of an entry: the SHA-256 of all that decides its bytes, given as what JSON can write."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class Cache:
    """The entries of one kind.

    Args:
        home: their directory. It is made when the first entry is written.
        limit: bytes of all entries. Beyond it, those that were not used for longest are removed.
        suffix: what the name of an entry has after its key.
        note: is told in a sentence why an entry was not read or not written.
    """

    def __init__(
        self, home: Path, *, limit: int, suffix: str = "", note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.home = home
        self.limit = limit
        self._suffix = suffix
        self._note = note

    def path(self, key: str) -> Path:
        """Where the entry of that key is, or would be."""
        return self.home / f"{key}{self._suffix}"

    def writable(self) -> bool:
        """Whether entries can be kept here, and would be believed. The directory is made."""
        try:
            for path in reversed((self.home, *self.home.parents)):
                path.mkdir(mode=0o700, exist_ok=True)  # parents=True would make those above it as the umask has it
            os.close(_open_home(self.home))
        except OSError as error:  # a read-only home, a file in the way, a directory that others may write
            self._refused(f"{self.home} is not written", error)
            return False
        return os.access(self.home, os.W_OK | os.X_OK)

    # Entries that are one file

    def open(self, key: str, part: str = "") -> io.BufferedReader | None:
        """The entry, or the file ``part`` of it, which now counts as used; None when there is none that may be believed."""
        path = self.path(key)
        try:
            with contextlib.ExitStack() as opened:
                opened.callback(os.close, fd := _open_home(self.home))
                for name in filter(None, (path.name, part)):
                    # From the descriptor above it: what was checked cannot be exchanged before it is used.
                    opened.callback(os.close, fd := _open_own(name, dir_fd=fd))
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                file = os.fdopen(os.dup(fd), "rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refused(f"{path} is not read", error)
            return None
        with contextlib.suppress(OSError):  # root's, or on a read-only disk
            os.utime(path, follow_symlinks=False)
        return file

    def _refused(self, what: str, error: OSError) -> None:
        text = f"{what}: {error.strerror}"
        self._note(text)
        if isinstance(error, ForeignError) and text not in _warned:
            _warned.add(text)
            _log.warning("%s", text)

    def read(self, key: str, part: str = "", *, limit: int) -> bytes | None:
        """The bytes of what `open` opens; None also when there are more than ``limit``."""
        file = self.open(key, part)
        if file is None:
            return None
        tidy(self.home)
        with file:
            if os.fstat(file.fileno()).st_size > limit:
                self._note(f"{self.path(key)} is not read: it has more than {limit:,} bytes")
                return None
            return file.read()

    def write(self, key: str, data: bytes) -> None:
        """Keep an entry, if that can be."""
        path = self.path(key)
        if not self.writable():
            return
        try:
            if path.is_symlink():
                path.unlink()
            tidy(self.home)
            atomic_write(path, data)
            path.chmod(0o600)
        except (OSError, VggdeployError) as error:
            self._note(f"{path} is not written: {error}")
        self.trim(keep=key)

    # Entries that are a directory

    @contextmanager
    def entry(
        self, key: str, find: Callable[[], T | None], make: Callable[[Path], T], *, on_wait: Callable[[], None]
    ) -> Iterator[tuple[T, bool]]:
        """What ``find`` reads from an entry, or ``make`` writes into the directory that it is given; and whether it was
        found. Nobody changes or removes the entry inside the block: of several processes one makes it, the others wait.

        Args:
            on_wait: called when another process has the entry.

        Raises:
            OSError: the cache is not `writable`. Errors of ``make``, which leave nothing behind.
        """
        with lock_file(self._lock(key), on_wait=on_wait):
            for draft in self.home.glob(f".{key}.*"):  # we hold the lock: whoever made it was killed
                _delete(draft)
            found = find()
            yield (self._make(key, make), False) if found is None else (found, True)
        self.trim(keep=key)

    def _make(self, key: str, make: Callable[[Path], T]) -> T:
        path, draft, old = self.path(key), self._draft(key), self._draft(key)
        draft.mkdir(mode=0o700)
        try:
            made = make(draft)
            for file in draft.iterdir():
                file.chmod(file.stat().st_mode & ~_OTHERS)  # whatever the umask is
            with contextlib.suppress(FileNotFoundError):
                path.rename(old)  # damaged, or another user's: it could not be emptied
            draft.rename(path)
        finally:
            _delete(draft)
            _delete(old)
        return made

    def _draft(self, key: str) -> Path:
        return self.home / f".{key}.{secrets.token_hex(8)}"

    def _lock(self, key: str) -> Path:
        return self.home / f"{key}.lock"

    # The limit

    def trim(self, *, keep: str = "") -> None:
        """Remove the entries that were not used for longest until the rest fits. What is in use, or ``keep``, stays."""
        name = re.compile(rf"[0-9a-f]{{64}}{re.escape(self._suffix)}")
        entries = []
        for path in self.home.glob(f"*{self._suffix}"):
            if name.fullmatch(path.name):
                with contextlib.suppress(OSError):  # another process removed it meanwhile
                    files = path.iterdir() if path.is_dir() else [path]
                    entries.append((path.lstat().st_mtime_ns, sum(file.lstat().st_size for file in files), path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            if path != self.path(keep) and self._remove(path):
                total -= size

    def _remove(self, path: Path) -> bool:
        with contextlib.suppress(OSError):  # in use, or not ours to remove
            if not path.is_dir():
                path.unlink()  # whoever has it open keeps its bytes
                return True
            lock = self._lock(path.name)
            with lock_file(lock, on_wait=None):
                _delete(path)
                lock.unlink()
            return not path.exists()
        return False


def _delete(path: Path) -> None:
    """Remove a file, a link or a directory, as far as that can be."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


class ForeignError(PermissionError):
    """Another user could have written it."""


def _open_home(path: Path) -> int:
    """A descriptor of a directory of which no part of the path is another user's to exchange.

    Raises:
        OSError: there is none, it is a link itself, or another user may write it or what is above it.
    """
    whole = Path(os.path.realpath(path.parent)) / path.name  # above it links are common: what they lead to is looked at
    fd = os.open("/", _PASS | os.O_DIRECTORY)
    for place in (*reversed(whole.parents), whole)[1:]:
        above = fd
        try:
            fd = _open_own(place.name, _PASS | os.O_DIRECTORY, dir_fd=above, shown=place, sticky=place != whole)
        finally:
            os.close(above)
    return fd


# A directory above may be one that this user can pass, and not list. (macOS has no such flag.)
_PASS = getattr(os, "O_PATH", os.O_RDONLY)


def _open_own(
    name: str, flags: int = os.O_RDONLY, *, dir_fd: int, shown: Path | None = None, sticky: bool = False
) -> int:
    """A descriptor of a file or a directory that nobody but this user and root could have written.

    Args:
        sticky: a directory in which everybody may make files, but remove only their own (``/tmp``), is one of these.

    Raises:
        OSError: there is none, it is a link, or another user may write it.
    """
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    about = os.fstat(fd)
    writable = about.st_mode & _OTHERS and not (sticky and about.st_mode & stat.S_ISVTX)
    if about.st_uid not in (0, os.geteuid()) or writable:
        os.close(fd)
        owner, mode = user_name(about.st_uid), stat.S_IMODE(about.st_mode)
        cause = f"another user may write {shown or name} (it belongs to {owner}, its mode is {mode:04o})"
        raise ForeignError(errno.EPERM, cause, os.fspath(shown or name))
    return fd


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container has no name for it
        return f"user {uid}"
