"""The kernels that TensorRT for RTX compiled on this machine, kept for the next start.

They lie in the user's cache and never in a bundle: a bundle's files are the manifest's, and this one differs from GPU to
GPU. A kernel is code, so what another user could have written is not read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vggdeploy.errors import VggdeployError
from vggdeploy.files import atomic_write, open_regular
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.cuda import Gpu
from vggdeploy.runtime.tensorrt_api import Log
from vggdeploy.usercache import cache_home

_MAX_BYTES = 1 << 30


@dataclass
class RtxCache:
    """One file. That it cannot be read or written costs time at the next start and nothing else: it is logged."""

    path: Path
    log: Log
    _known: bytes = b""

    @classmethod
    def of(cls, source: Source, version: str, gpu: Gpu, log: Log) -> Self:
        """The cache of one engine, for one release of the library, GPU and driver."""
        home = source.gpu.cache or cache_home() / "rtx-kernels"
        key = "\0".join((source.sha256, version, gpu.name, gpu.capability, gpu.driver))
        return cls(home / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cache", log)

    def read(self) -> bytes:
        """What was kept; empty when there is nothing that may be used."""
        try:
            with open_regular(self.path) as file:
                owner = os.fstat(file.fileno())
                if owner.st_uid != os.geteuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    self._note("it is not read: another user may write it")
                    return b""
                if owner.st_size > _MAX_BYTES:
                    self._note("it is not read: it is too large to be one")
                    return b""
                self._known = file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._note(f"it cannot be read: {error.strerror}")
            return b""
        return self._known

    def write(self, data: bytes) -> None:
        """Keep ``data``, where it is new."""
        if not data or data == self._known:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(self.path, data)
            self.path.chmod(0o600)
        except (OSError, VggdeployError) as error:
            self._note(f"it cannot be written: {error}")
            return
        self._known = data

    def _note(self, text: str) -> None:
        self.log.add("WARNING", f"runtime cache {self.path}: {text}")
