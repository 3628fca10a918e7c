"""Files that are either whole or not there: atomic writes, SHA-256, and paths that stay inside their directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vggdeploy.errors import BundleError, IntegrityError, UsageError
from vggdeploy.system.drafts import PLACING, began, finished
from vggdeploy.system.exchange import exchange

# What a writer of a file makes beside it: its draft, and what stood there before. The first group is the file's name.
_DRAFT = re.compile(r"\.(.+)\.(?:tmp|old)-[0-9a-f]{16}", re.DOTALL)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading. Nothing else is read: a pipe may block for ever, a device may never end.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer. It changes nothing for a regular file.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL or a lone surrogate: no file has such a name
        raise OSError(errno.EINVAL, str(error), ascii(os.fspath(path))) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        text = os.strerror(code) if stat.S_ISDIR(mode) else "not a regular file"
        raise OSError(code, text, os.fspath(path))
    return os.fdopen(fd, "rb")


def read_regular(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """The bytes of a regular file, of which there may be ``limit`` at most.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger (``EFBIG``).
    """
    with open_regular(path) as file:
        data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if data is None or len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", os.fspath(path))
    return data


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a regular file, read in blocks: memory stays flat at any size."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_join(root: Path, relative: str) -> Path:
    """``root / relative``, for a path that came from a file we did not write.

    Raises:
        IntegrityError: the path is absolute, climbs out, is not in normal form, or passes through a symbolic link.
    """
    source = "do not use a bundle from this source"
    pure = PurePosixPath(relative)
    # isprintable: no NUL, and nothing that would break or forge the line of an error.
    plain = relative not in ("", ".") and str(pure) == relative and "\\" not in relative and relative.isprintable()
    if not plain or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise IntegrityError(f"the path {relative!r} leaves its directory", source)
    path = root
    for part in pure.parts:
        path = path / part
        if os.path.islink(path):  # noqa: PTH114  # Path.is_symlink() raises for a name that is too long
            raise IntegrityError(f"the path {relative!r} leads through a symbolic link", source)
    return path


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file through a temporary neighbour: a reader sees the old bytes or the new ones, never a part.

    A symbolic link stays, and what it points to is replaced.

    Raises:
        UsageError: something that is no regular file stands there: root would replace even ``/dev/null``.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file", "choose another output file")
    draft = FileDraft(path)
    try:
        draft.file.write(data)
        draft.finish()
        draft.place()
    finally:
        draft.discard()


class FileDraft:
    """The temporary neighbour of a file: it takes the file's place with `place`, and is removed with `discard`."""

    def __init__(self, target: Path) -> None:
        self.target = target.resolve() if target.is_symlink() else target
        self.target.parent.mkdir(parents=True, exist_ok=True)
        tidy(self.target.parent, of=self.target.name)
        # The kernel applies the umask to this mode: asking for the umask would change it for every thread meanwhile.
        self.path, fd = _new_draft(self.target, lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        self.file = os.fdopen(fd, "wb")

    def finish(self) -> None:
        """Bring every byte to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def place(self) -> None:
        """Take the file's place, of which the disk learns, too."""
        with PLACING:
            self.path.replace(self.target)
        _fsync(self.target.parent)

    def discard(self) -> None:
        """Remove the draft where it was not placed, and close it."""
        self.path.unlink(missing_ok=True)
        finished(self.path)
        with contextlib.suppress(
            OSError
        ):  # a full disk refuses the rest a second time; the first error is the one to tell
            self.file.close()


@contextmanager
def atomic_directory(target: Path, *, marker: str, overwrite: bool, unchanged: bytes | None = None) -> Iterator[Path]:
    """A new directory to fill; it takes ``target``'s place in one step when the block ends without an error.

    A killed process leaves what stood at ``target`` before, or nothing. ``marker`` is the file that makes a directory
    one of ours: any other directory that is not empty is never replaced. ``unchanged`` are the bytes that the marker
    must still have at the end: then nobody else's change is lost.

    Raises:
        UsageError: ``target`` exists and may not be replaced.
        BundleError: another process changed it meanwhile.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100  # Path.absolute() keeps ".."
    tidy(target.parent, of=target.name)
    check_replaceable(target, marker=marker, overwrite=overwrite)
    with scratch_directory(target) as draft:  # after the exchange it holds what stood there before
        yield draft
        for path in sorted(draft.rglob("*"), reverse=True):
            _fsync(path)
        _fsync(draft)
        _place(draft, target, marker=marker, overwrite=overwrite, unchanged=unchanged)
        _fsync(target.parent)


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """A directory to work in, beside ``target`` and on its disk. It is removed at the end of the block; after a kill,
    by the next writer of ``target``."""
    target = Path(os.path.abspath(target))  # noqa: PTH100  # as above
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch, fd = _new_draft(target, _make_directory)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        finished(scratch)
        os.close(fd)


def check_replaceable(target: Path, *, marker: str, overwrite: bool) -> None:
    """Refuse early, before hours of work, what `atomic_directory` would refuse at its end.

    Raises:
        UsageError: ``target`` is a file, a link, a mount point, the current directory or one above it, somebody
            else's directory, or one of ours without ``overwrite``.
    """
    if target.is_symlink():
        raise UsageError(f"{target} is a symbolic link", f"give the directory itself: {target.resolve()}")
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is not a directory", "choose another output directory")
    if os.path.ismount(target):
        raise UsageError(f"{target} is a mount point and cannot be replaced", f"give one below it: {target / 'NAME'}")
    if _holds_current(target):  # the shell would go on in a directory that is gone
        raise UsageError(f"the current directory lies in {target.resolve()}", "cd out of it, then give its path")
    if any(target.iterdir()):
        if not (target / marker).is_file():
            raise UsageError(f"{target} holds other files (no {marker})", "choose an empty or a new output directory")
        if not overwrite:
            raise UsageError(f"{target} already exists", "add --force to replace it, or choose another directory")


def check_writable(target: Path) -> None:
    """Find out before the work, not after it, that nothing could be put at ``target``.

    Raises:
        OSError: with ``target`` as its file name.
    """
    if os.path.ismount(target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
    # A bind mount of the same disk is no mount to `ismount`.
    if target.exists() and os.statvfs(target).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
    parent = next(path for path in target.absolute().parents if path.exists())
    try:
        _make_nameless(parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _make_nameless(directory: Path) -> None:
    """Make a file that has no name, and is gone with this process, however that ends."""
    try:
        os.close(os.open(directory, os.O_WRONLY | os.O_TMPFILE, 0o600))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # a file system without such files
            raise
        tempfile.TemporaryFile(dir=directory).close()


def _holds_current(directory: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(directory.resolve())
    except FileNotFoundError:  # the current directory was removed: nothing can hold it
        return False


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


# Drafts: ".NAME.tmp-TOKEN" beside NAME, and ".NAME.old-TOKEN" for a directory that is being replaced where the file
# system has no exchange. Their writer holds their lock (flock), which the kernel lets go when it dies: so anyone can
# tell a draft in the making from an abandoned one, across containers and where process ids are used again.

_DRAFTS = 100  # made one after the other, before we believe that none can be


def _new_draft(target: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new draft, and the descriptor that holds its lock."""
    for left in range(_DRAFTS, 0, -1):
        draft = target.with_name(f".{target.name}.tmp-{secrets.token_hex(8)}")
        began(draft)
        try:
            fd = make(draft)
        except FileNotFoundError:
            if left == 1 or not target.parent.is_dir():  # /proc is a directory in which nothing can be made
                raise
            continue  # taken for abandoned before it was locked
        if _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) is not False and _is_same(draft, fd):
            return draft, fd
        os.close(fd)
    raise OSError(errno.EAGAIN, "drafts are taken away as soon as they are made", str(target))


def _make_directory(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _lock(fd: int, how: int) -> bool | None:
    """Whether we got the lock; None where the file system has no locks."""
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_same(path: Path, fd: int) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def tidy(directory: Path, *, of: str = "") -> None:
    """Clean up after killed writers of the file ``of`` a directory (default: of any, as its next writer may never come): remove
    their drafts, put back what they had set aside."""
    try:
        drafts = [found for name in os.listdir(directory) if (found := _DRAFT.fullmatch(name))]  # noqa: PTH208  # only names
    except OSError:  # not there yet, or not ours to list: then there is nothing that we could clean
        return
    for path, target in ((directory / found[0], directory / found[1]) for found in drafts if of in ("", found[1])):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone by now, or not ours
            continue
        try:
            if _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_same(path, fd):
                _settle(path, target)
        finally:
            os.close(fd)


def _settle(path: Path, target: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif path.name.startswith(f".{target.name}.old-") and not target.exists():
        path.rename(target)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _place(draft: Path, target: Path, *, marker: str, overwrite: bool, unchanged: bytes | None) -> None:
    """Put the draft at the target. Of several writers one goes after the other, and each looks again before it."""
    if unchanged is None:
        try:
            with PLACING:
                draft.rename(target)  # POSIX: this replaces nothing, or an empty directory
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    place = target / marker
    with _locked(target):
        check_replaceable(target, marker=marker, overwrite=overwrite)
        if unchanged is not None and not (place.is_file() and place.read_bytes() == unchanged):
            raise BundleError(f"{target} was changed by another command meanwhile", "run this command again")
        with PLACING:
            exchange(draft, target)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Wait for the directory's lock, and hold it."""
    while True:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise BundleError(f"{directory} was removed meanwhile", "run this command again") from None
        _lock(fd, fcntl.LOCK_EX)
        if _is_same(directory, fd):
            break
        os.close(fd)  # another writer replaced it while we waited
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def lock_file(path: Path, *, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold the lock of a file, which is made. Where the file system has no locks, nobody waits.

    Args:
        on_wait: called when another process holds it, before we wait. None: do not wait.

    Raises:
        BlockingIOError: another process holds it, and nobody is to wait.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
                if on_wait is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
                on_wait()
                _lock(fd, fcntl.LOCK_EX)
            if _is_same(path, fd):  # else its holder removed it while we waited
                yield
                return
        finally:
            os.close(fd)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
