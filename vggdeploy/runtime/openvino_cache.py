"""Models that OpenVINO compiled on this machine, kept in the user's cache for the next start.

A file is the exported model, and behind it the SHA-256 of its bytes: OpenVINO itself runs on damaged weights. It is read
through a memory map. One that another user may write is not read, since it is as good as code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import VggdeployError
from vggdeploy.files import atomic_write, open_regular
from vggdeploy.machine import fingerprint
from vggdeploy.runtime.base import Source
from vggdeploy.usercache import cache_home

WORTHWHILE_SECONDS = 0.3  # a model that compiles faster is not kept
LIMIT_BYTES = 4 * 2**30  # of all models: those that were not used for longest go
_DIGEST = hashlib.sha256().digest_size


@dataclass
class ModelCache:
    """The file of one model with one configuration. That it cannot be read or written costs time, and nothing else."""

    path: Path
    seconds: float = 0.0

    @classmethod
    def of(cls, source: Source, version: str, config: Mapping[str, Any]) -> Self:
        """Everything that decides the compiled model is in the key: bytes, release, configuration, machine."""
        settings = [f"{name}={value}" for name, value in sorted(config.items())]
        key = hashlib.sha256("\0".join((source.sha256, version, fingerprint(), *settings)).encode()).hexdigest()
        return cls(cache_home() / "openvino" / f"{key}.model")

    def read(self) -> NDArray[np.uint8] | None:
        """The exported model, mapped into memory; None when there is none that may be used."""
        try:
            with open_regular(self.path) as file:
                about = os.fstat(file.fileno())
                foreign = about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if foreign or about.st_size <= _DIGEST:
                    return None
                # Copy on write: OpenVINO takes no read-only arrays, and nothing of it reaches the file.
                data = np.memmap(file, dtype=np.uint8, mode="c")
            if hashlib.sha256(data.data[:-_DIGEST]).digest() != data[-_DIGEST:].tobytes():
                return None
            os.utime(self.path)  # what was used last goes last
        except OSError:
            return None
        return data[:-_DIGEST]

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Measures the compilation that the cache would spare."""
        start = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - start

    def keep(self, export: Callable[[], memoryview]) -> None:
        """Keep a model, where that spares the next start something."""
        if self.seconds < WORTHWHILE_SECONDS:
            return
        with contextlib.suppress(OSError, VggdeployError):  # a full or read-only cache
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = export()
            atomic_write(self.path, b"".join((data, hashlib.sha256(data).digest())))
            self.path.chmod(0o600)
            _trim(self.path)


def _trim(keep: Path) -> None:
    """Remove what was not used for longest, until there is room."""
    files = sorted(keep.parent.glob("*.model"), key=lambda path: -path.stat().st_mtime)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > LIMIT_BYTES and path != keep:
            path.unlink(missing_ok=True)
