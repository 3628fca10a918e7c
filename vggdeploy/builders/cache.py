"""Engines that were built before, in the user's cache: found by all that decides their bytes, hashed before each use.

One directory an entry, ``engines/KEY``; ``engines/KEY.lock`` is held (flock) by whoever builds or copies it. So of two
processes that want the same engine one builds, and the other waits and copies. An entry that was damaged is built anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.builders.options import parse_size
from vggdeploy.builders.tensorrt import Built
from vggdeploy.bundle import PrecisionProof
from vggdeploy.bundle.store import now
from vggdeploy.errors import BundleError
from vggdeploy.files import read_regular, sha256_of
from vggdeploy.records import Record, from_json, to_json
from vggdeploy.types import TensorSpec
from vggdeploy.usercache import cache_home

ENGINE, LOG, ENTRY = "model.engine", "build.log", "entry.json"
DEFAULT_LIMIT = "10GiB"
SCHEMA_VERSION = 1
_MAX_ENTRY = 2**20
_FICLONE = 0x40049409  # linux/fs.h: share the bytes of another file until one of them is written

Build = Callable[[Path], Built]


class Entry(Record, frozen=True, kw_only=True):
    """``entry.json``: what a build gave beside its bytes. ``about`` is what the key was made of."""

    schema_version: int = SCHEMA_VERSION
    key: str
    about: dict[str, str]
    created: str
    sha256: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    proof: PrecisionProof
    seconds: float


@dataclass(frozen=True)
class Made:
    """An engine that lies in a file for as long as its ``with`` block: built now, or found in the cache."""

    path: Path
    entry: Entry
    log: bytes
    cached: bool


class EngineCache:
    """The cache under ``home``. It needs no care: what is not used is removed once there are more than ``limit`` bytes."""

    def __init__(self, home: Path | None = None, *, limit: int | None = None) -> None:
        self.home = (home or cache_home()) / "engines"
        self.limit = parse_size(os.environ.get("VGGDEPLOY_CACHE_SIZE") or DEFAULT_LIMIT) if limit is None else limit

    def writable(self) -> bool:
        """Whether entries can be kept here. The directory is made."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError:  # a read-only home, or a file in the way
            return False
        return os.access(self.home, os.W_OK | os.X_OK)

    @contextmanager
    def engine(
        self, key: str, about: dict[str, str], build: Build, *, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[Made]:
        """The engine of that key; it cannot be evicted inside the block.

        Args:
            build: writes the engine to the path it is given, when there is none.
            on_wait: called when another process is just building it.

        Raises:
            OSError: the cache cannot be written. Errors of ``build``, which leave nothing behind.
        """
        with _locked(self.home / f"{key}.lock", on_wait):
            entry = self._read(key)
            cached = entry is not None
            if entry is None:
                entry = self._build(key, about, build)
            directory = self.home / key
            os.utime(directory / ENTRY)
            yield Made(directory / ENGINE, entry, read_regular(directory / LOG, limit=_MAX_ENTRY * 64), cached)
        self.trim(keep=key)

    def _read(self, key: str) -> Entry | None:
        """The entry, if it is whole: its engine is hashed. What is not is removed."""
        directory = self.home / key
        for draft in self.home.glob(f".{key}.*"):  # we hold the lock: whoever made it was killed
            shutil.rmtree(draft, ignore_errors=True)
        if not directory.exists():
            return None
        try:
            entry = from_json(read_regular(directory / ENTRY, limit=_MAX_ENTRY), Entry, what=str(directory / ENTRY))
            whole = entry.key == key and sha256_of(directory / ENGINE) == entry.sha256 and (directory / LOG).is_file()
        except (OSError, BundleError):  # an entry that cannot be read is as good as none
            whole = False
        if whole:
            return entry
        shutil.rmtree(directory)
        return None

    def _build(self, key: str, about: dict[str, str], build: Build) -> Entry:
        draft = self.home / f".{key}.{secrets.token_hex(8)}"
        draft.mkdir()
        try:
            entry = build_entry(draft, key, about, build)
            draft.rename(self.home / key)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return entry

    def trim(self, *, keep: str = "") -> None:
        """Remove the entries that were not used for longest until the rest fits. What is in use, or ``keep``, stays."""
        found = []
        for entry in self.home.glob(f"*/{ENTRY}"):
            with contextlib.suppress(OSError):  # another process removed it meanwhile
                size = sum(file.stat().st_size for file in entry.parent.iterdir())
                found.append((entry.stat().st_mtime_ns, size, entry.parent))
        total = sum(size for _, size, _ in found)
        for _, size, directory in sorted(found):
            if total <= self.limit:
                return
            if directory.name != keep and self._remove(directory):
                total -= size

    def _remove(self, directory: Path) -> bool:
        lock = directory.with_name(f"{directory.name}.lock")
        with contextlib.suppress(BlockingIOError), _locked(lock, None):
            shutil.rmtree(directory, ignore_errors=True)
            lock.unlink(missing_ok=True)
            return True
        return False


def build_entry(directory: Path, key: str, about: dict[str, str], build: Build) -> Entry:
    """Build into ``directory``: the engine, its log, and the entry that describes them."""
    built = build(directory / ENGINE)
    (directory / LOG).write_bytes(built.log.encode())
    entry = Entry(
        key=key,
        about=about,
        created=now(),
        sha256=built.sha256,
        size=built.size,
        inputs=built.inputs,
        outputs=built.outputs,
        proof=built.proof,
        seconds=built.seconds,
    )
    (directory / ENTRY).write_bytes(to_json(entry))
    return entry


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold the lock of a file, which is made. Without ``on_wait`` nobody waits: `BlockingIOError` when it is held."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(fd, on_wait)
            if _is_same(path, fd):
                break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the entry was evicted, and its lock with it, while we waited
    try:
        yield
    finally:
        os.close(fd)


def _lock(fd: int, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            raise
        on_wait()
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        # A file system without locks: two builders may build the same engine, and one of them loses its draft.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def _is_same(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def copy_file(source: Path, target: Path) -> None:
    """A copy that shares the bytes where the file system can, else a hard link, else a real copy."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return
        except OSError:  # another file system, or one that cannot share
            pass
    target.unlink()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
