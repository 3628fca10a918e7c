"""Bytes that nobody can change any more: a file is opened once and read once, and what was hashed is what is used.

A path can lead to another file a moment later, and a file can be written to while a library reads it. So the bytes are copied
while they are hashed, into memory that has no name (``memfd_create``) and is then sealed: the kernel refuses every further
write, ours too. Libraries that want a path get ``/proc/self/fd/N``, those that want a buffer a map of the same pages.

Other systems than Linux have no such memory. There the copy is a file in a directory of its own that only this user can enter,
and it is removed when it is closed: other users can do nothing to it, other programs of the same user could.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.errors import BundleError, IntegrityError
from vggdeploy.system.files import open_regular, sha256_of

_BLOCK = 2**20
_MAX_NAME = 128  # bytes; the kernel takes 249
_HAS_SEALS = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
_LINK = "/memfd:"
_AGAIN = "restore the bundle from its source, or export it again"


@dataclass(frozen=True)
class SealedFile:
    """A copy in memory of the bytes that were hashed, for as long as it is open. What was mapped from it stays.

    ``name`` is that of the file it was read from, for messages.
    """

    fd: int
    name: str
    size: int
    place: Path | None = None  # where there is no sealed memory

    @property
    def path(self) -> Path:
        """Where this process, and no other user, can open it."""
        return self.place or Path(f"/proc/self/fd/{self.fd}")

    def map(self) -> mmap.mmap | bytes:
        """The bytes without another copy."""
        return mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ) if self.size else b""

    def head(self, count: int) -> bytes:
        return os.pread(self.fd, count, 0)


def mapped(path: str | os.PathLike[str]) -> memoryview:
    """The bytes of a regular file, of which only those are read that are looked at.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def shown(path: Path) -> str:
    """The name of a file, for messages; that of what was read, where the path is a sealed copy's."""
    try:
        target = os.readlink(path)  # noqa: PTH115  # Path.readlink would take the link's text for a path
    except OSError:
        return path.name
    return target.removeprefix(_LINK).removesuffix(" (deleted)") if target.startswith(_LINK) else path.name


@dataclass(frozen=True)
class HashedFile:
    """A file of which the SHA-256 is known. What `open` and `read` give are the bytes of that hash, or an error.

    ``size``: its bytes, where they are known: a file of another size is not read. ``on_match`` is called when the bytes were
    read and have the hash.
    """

    path: Path
    sha256: str
    size: int | None = None
    on_match: Callable[[], None] | None = None

    @classmethod
    def of(cls, path: Path) -> HashedFile:
        """A file of our own, as it is now."""
        return cls(path, sha256_of(path))

    @contextmanager
    def open(self) -> Iterator[SealedFile]:
        """Its bytes, sealed, for the length of a ``with`` block.

        Raises:
            IntegrityError: they have another hash, or there are none.
            BundleError: it may not be read, or there is no memory to copy it to.
        """
        if not _HAS_SEALS:
            yield from self._private()
            return
        fd, size = self._sealed()
        try:
            yield SealedFile(fd, self.path.name, size)
        finally:
            os.close(fd)

    def read(self, *, limit: int) -> bytes:
        """Its bytes, of which there may be ``limit`` at most. Raises as `open`."""
        target = io.BytesIO()
        self._copy(target.write, limit=limit)
        return target.getvalue()

    def check(self) -> None:
        """Raise as `open` where it is not what its hash says."""
        self._copy(lambda block: None)

    def _sealed(self) -> tuple[int, int]:
        name = os.fsencode(self.path.name)[:_MAX_NAME].decode(errors="replace").replace("\0", "?")
        writer = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(writer), "wb", buffering=0) as file:
                size = self._copy(lambda block: _write(file, block))
            fcntl.fcntl(
                writer,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
            )
            # Opened again for reading alone: older kernels map a sealed file from no other descriptor.
            return os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC), size
        finally:
            os.close(writer)

    def _private(self) -> Iterator[SealedFile]:
        """A copy in a file that no other user can reach."""
        with tempfile.TemporaryDirectory(prefix="vggdeploy-") as directory:  # its mode is 0700
            place = Path(directory, "copy")
            with place.open("xb", buffering=0) as file:
                size = self._copy(lambda block: _write(file, block))
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield SealedFile(fd, self.path.name, size, place)
            finally:
                os.close(fd)

    def _copy(self, write: Callable[[memoryview], object], *, limit: int | None = None) -> int:
        """Hand the bytes on block by block; their number. They are the right ones only when this returns."""
        digest, block, size = hashlib.sha256(), memoryview(bytearray(_BLOCK)), 0
        try:
            with open_regular(self.path) as file:
                self._check_size(os.fstat(file.fileno()).st_size)
                while count := file.readinto(block):
                    size += count
                    if limit is not None and size > limit:
                        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes")
                    digest.update(block[:count])
                    write(block[:count])
        except (FileNotFoundError, NotADirectoryError):
            raise IntegrityError(f"{self.path} is missing", _AGAIN) from None
        except PermissionError as error:
            raise BundleError(f"{self.path} cannot be read: {error.strerror}", "check its permissions") from error
        except OSError as error:
            raise IntegrityError(f"{self.path} cannot be read: {error.strerror}", _AGAIN) from error
        if digest.hexdigest() != self.sha256:
            raise IntegrityError(f"{self.path} was altered: its SHA-256 is not the manifest's", _AGAIN)
        if self.on_match is not None:
            self.on_match()
        return size

    def _check_size(self, size: int) -> None:
        if self.size is not None and size != self.size:
            raise IntegrityError(f"{self.path} has {size} bytes; the manifest says {self.size}", _AGAIN)


def _write(file: io.FileIO, block: memoryview) -> None:
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        raise BundleError(f"there is no memory for a copy of the file: {error.strerror}", "free some memory") from error
