"""Files that are either whole or not there: atomic writes, SHA-256, and paths that stay inside their directory."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vggdeploy.errors import IntegrityError, UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks: memory stays flat at any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_join(root: Path, relative: str) -> Path:
    """``root / relative``, for a path that came from a file we did not write.

    Raises:
        IntegrityError: the path is absolute, climbs out, is not in normal form, or a symbolic link leads elsewhere.
    """
    pure = PurePosixPath(relative)
    plain = relative not in ("", ".") and str(pure) == relative and "\\" not in relative and "\0" not in relative
    if not plain or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise IntegrityError(f"the path {relative!r} leaves its directory", "do not use a bundle from this source")
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise IntegrityError(f"the path {relative!r} leads outside through a link", "do not use a bundle from this source")
    return path


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file through a temporary neighbour: a reader sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def atomic_directory(target: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """A new directory to fill; it takes ``target``'s place in one step when the block ends without an error.

    A killed process leaves what stood at ``target`` before, or nothing. ``marker`` is the file that makes a directory
    one of ours: any other directory that is not empty is never replaced.

    Raises:
        UsageError: ``target`` exists and may not be replaced.
    """
    check_replaceable(target, marker=marker, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-{os.getpid()}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        for path in sorted(draft.rglob("*"), reverse=True):
            _fsync(path)
        _fsync(draft)
        _swap(draft, target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # after the swap: what stood there before


def check_replaceable(target: Path, *, marker: str, overwrite: bool) -> None:
    """Refuse early, before hours of work, what `atomic_directory` would refuse at its end.

    Raises:
        UsageError: ``target`` is a file, somebody else's directory, or one of ours without ``overwrite``.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} is not a directory", "choose another output directory")
    if target.is_dir() and any(target.iterdir()):
        if not (target / marker).is_file():
            raise UsageError(f"{target} holds other files (no {marker})", "choose an empty or a new output directory")
        if not overwrite:
            raise UsageError(f"{target} already exists", "add --force to replace it, or choose another directory")


def _swap(draft: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        draft.rename(target)  # POSIX rename replaces an empty directory too
        return
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(target))
    # A file system without an atomic exchange: for an instant nothing stands at the target.
    aside = draft.with_name(f"{draft.name}-old")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Remove drafts for this target whose process is gone (it was killed before it could clean up)."""
    for path in target.parent.glob(f".{target.name}.tmp-*"):
        pid = path.name.removeprefix(f".{target.name}.tmp-").partition("-")[0]
        if path.is_dir() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def link_tree(source: Path, target: Path, *, skip: frozenset[str] = frozenset()) -> None:
    """Hard-link every file of ``source`` into ``target`` (a copy where links cannot be made).

    ``skip`` names relative paths to leave out; a directory in it leaves out all below it.
    """
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if any(str(p) in skip for p in (relative, *relative.parents)) or path.is_symlink() or not path.is_file():
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copyfile(path, copy)
