"""The systems and interpreters that vggdeploy is not for: refused in words, before something fails without any."""

from __future__ import annotations

import sys

from vggdeploy.errors import IncompatibleError


def check_interpreter() -> None:
    """Look at what runs this process.

    Raises:
        IncompatibleError: it is Windows itself, or a free-threaded Python whose lock is off.
    """
    if sys.platform == "win32":
        raise IncompatibleError(
            "vggdeploy does not run on Windows itself: it needs POSIX file locks and directories",
            "run it in the Windows Subsystem for Linux, or open the bundle's ONNX file with ONNX Runtime",
        )
    with_lock = getattr(sys, "_is_gil_enabled", None)  # since Python 3.13
    if with_lock is not None and not with_lock():
        raise IncompatibleError(
            "this Python runs without its global lock (free-threaded), in which vggdeploy has not been tried",
            "start it with PYTHON_GIL=1, or use an ordinary Python",
        )
