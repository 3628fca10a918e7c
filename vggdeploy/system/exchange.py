"""Two directories that change places in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from pathlib import Path

from vggdeploy.errors import UsageError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, as renameat2(2) takes them
# errno with which a file system says that it cannot exchange two directories in one step.
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(draft: Path, target: Path) -> None:
    """Put ``draft`` where ``target`` stands, and ``target`` where the draft stood (or away).

    Raises:
        UsageError: ``target`` belongs to a lower layer of an overlay. OSError: the file system refuses it.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
        code = ctypes.get_errno()
        if code == errno.EXDEV:  # overlayfs does not rename a directory of a lower layer
            raise UsageError(f"{target} comes from a container image's layer and cannot be replaced", "work on a copy")
        if code not in _NO_EXCHANGE:
            raise OSError(code, os.strerror(code), str(target))
    # A file system without an exchange: for an instant nothing stands at the target. If we are killed in that instant,
    # the next writer puts the old one back.
    aside = target.with_name(f".{target.name}.old-{secrets.token_hex(8)}")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
