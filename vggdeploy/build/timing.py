"""A timing cache: the times of kernels that earlier builds measured, in a file that builds read first and add to afterwards."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vggdeploy.errors import BuildError
from vggdeploy.runtime.tensorrt.api import title
from vggdeploy.system.files import atomic_write, lock_file, read_regular

MAX_BYTES = 2**30
_log = logging.getLogger("vggdeploy")


def use_times(library: Any, config: Any, file: Path) -> None:
    """Give a builder's configuration the times in ``file``, or none where there is no such file yet.

    Raises:
        BuildError: the library refuses them.
    """
    cache = config.create_timing_cache(_read(file))
    # ignore_mismatch=False: times of another version or GPU would choose the wrong kernels.
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildError(
            f"{title(library)} refuses the timing cache {file}: it comes from another version or GPU",
            "name a new file with --timing-cache",
        )


def keep_times(library: Any, config: Any, file: Path) -> None:
    """Add what a build measured to ``file``, which other builds may have added to meanwhile: nothing of theirs is lost.

    A file that has become one of another version or GPU is left as it is, and a warning says so: the engine is built.
    """
    mine = bytes(config.get_timing_cache().serialize())
    lock = file.with_name(f".{file.name}.lock")
    with lock_file(lock, on_wait=lambda: None):
        try:
            theirs = _read(file)
            merged = config.create_timing_cache(mine)
            if not theirs:
                atomic_write(file, mine)
            elif merged.combine(config.create_timing_cache(theirs), False):
                atomic_write(file, bytes(merged.serialize()))
            else:
                _log.warning(
                    "%s is not written: it was replaced by a timing cache of another version or GPU than %s",
                    file,
                    title(library),
                )
        finally:
            lock.unlink()


def _read(file: Path) -> bytes:
    return read_regular(file, limit=MAX_BYTES) if file.exists() else b""
