"""The user's cache of built engines. The key covers all that decides an engine's bytes; each is hashed before use.

One directory an entry, ``engines/KEY``. Of two processes that want the same engine one builds, and the other waits and
copies. An entry that was damaged, or that another user could have written, is built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.build.options import parse_size
from vggdeploy.build.tensorrt import BuildResult
from vggdeploy.bundle import PrecisionProof
from vggdeploy.bundle.store import now
from vggdeploy.errors import BundleError
from vggdeploy.records import Record, from_json, to_json
from vggdeploy.system.cache import Cache, cache_home
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec

ENGINE, LOG, ENTRY = "model.engine", "build.log", "entry.json"
DEFAULT_LIMIT = "10GiB"
SCHEMA_VERSION = 1
_MAX_ENTRY, _MAX_LOG = 2**20, 2**26
_FICLONE = 0x40049409  # linux/fs.h: share the bytes of another file until one of them is written

Build = Callable[[Path], BuildResult]


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
    scratch: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineFile:
    """An engine in a file that exists for the length of a ``with`` block: built now, or taken from the cache."""

    path: Path
    entry: Entry
    log: bytes
    cached: bool

    @property
    def file(self) -> HashedFile:
        return HashedFile(self.path, self.entry.sha256, self.entry.size)


class EngineCache(Cache):
    """The cache of engines. It needs no care: what is not used is removed once there are more than ``limit`` bytes."""

    def __init__(self, *, limit: int | None = None) -> None:
        if limit is None:
            limit = parse_size(os.environ.get("VGGDEPLOY_CACHE_SIZE") or DEFAULT_LIMIT)
        super().__init__(cache_home() / "engines", limit=limit)

    @contextmanager
    def engine(
        self, key: str, about: dict[str, str], build: Build, *, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[EngineFile]:
        """The engine of that key; it cannot be evicted inside the block.

        Args:
            build: writes the engine to the path it is given, when there is none.
            on_wait: called when another process is just building it.

        Raises:
            OSError: the cache cannot be written. Errors of ``build``, which leave nothing behind.
        """

        def make(directory: Path) -> tuple[Entry, bytes]:
            return build_entry(directory, key, about, build), (directory / LOG).read_bytes()

        with self.entry(key, lambda: self._find(key, about), make, on_wait=on_wait) as ((entry, log), cached):
            yield EngineFile(self.path(key) / ENGINE, entry, log, cached)

    def _find(self, key: str, about: dict[str, str]) -> tuple[Entry, bytes] | None:
        """The entry and its log, if they are whole: the engine is hashed, and was made of what is asked for."""
        found, log = self.read(key, ENTRY, limit=_MAX_ENTRY), self.read(key, LOG, limit=_MAX_LOG)
        engine = self.open(key, ENGINE)
        if engine is None:
            return None
        with engine:
            sha256 = hashlib.file_digest(engine, "sha256").hexdigest()
        if found is None or log is None:
            return None
        try:
            entry = from_json(found, Entry, what=str(self.path(key) / ENTRY))
        except BundleError:  # an entry that cannot be read is as good as none
            return None
        return (entry, log) if (entry.key, entry.about, entry.sha256) == (key, about, sha256) else None


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
        scratch=built.scratch,
    )
    (directory / ENTRY).write_bytes(to_json(entry))
    return entry


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
