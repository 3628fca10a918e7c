"""What every target of the fleet is: a name, what is missing here, how that is prepared, and the child that runs there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vggdeploy.bundle import Variant
from vggdeploy.errors import IncompatibleError, one_line
from vggdeploy.runtime import backend_for
from vggdeploy.system.cache import Cache, cache_home, key_of
from vggdeploy.types import OnProgress

_LIMIT_BYTES = 8 * 2**30
_READY = "ready.json"  # the last file of a prefix that is written
PREPARE = "add --prepare, which installs it into the user's cache"


@dataclass(frozen=True)
class Missing:
    """Why a target cannot run here, and what to type."""

    reason: str
    fix: str


@dataclass(frozen=True)
class Target(ABC):
    """A processor or a browser. To add one: a class here or in a file of its own, and a row in `TARGETS`.

    ``provider`` is the execution provider of ONNX Runtime Web, empty where vggdeploy's own sessions run.
    """

    name: str
    title: str
    provider: str = ""
    onnx_only: ClassVar[bool] = False

    @abstractmethod
    def missing(self) -> Missing | None:
        """What has to be installed first; None where nothing has to."""

    @abstractmethod
    def command(self, address: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        """The child that fetches its job from ``address``: its command and its environment. ``folder`` is its own."""

    def prepare(self, on_progress: OnProgress) -> None:  # noqa: B027  # most have nothing to prepare
        """Install into the user's cache what needs no administrator."""

    def refuses(self, variant: Variant) -> str:
        """Why a variant can never run there; "" where it may."""
        if self.onnx_only and variant.format != "onnx":
            return f"this target has ONNX Runtime alone, and the variant is of the format {variant.format}"
        backend = backend_for(variant)
        if backend.compiles:
            return f"{backend.title} compiles it where it runs, and what an emulated processor starts is not emulated"
        where = " and ".join(backend.devices)
        return "" if "cpu" in backend.devices else f"{variant.format} runs on {where}, and this target has no GPU"

    def library(self) -> Path | None:
        """The script of ONNX Runtime Web, with all that it loads beside it; None where none is needed."""
        return None


@dataclass(frozen=True)
class Prefix:
    """A directory in the user's cache that was filled from package registries. Another ``recipe`` is another directory."""

    recipe: Mapping[str, object]

    def path(self) -> Path | None:
        """Where it is; None before `fill`. What another user could have written is not believed."""
        cache, key = self._cache(), key_of(self.recipe)
        file = cache.open(key, _READY)
        if file is None:
            return None
        file.close()
        return cache.path(key)

    def fill(self, make: Callable[[Path], None], on_wait: Callable[[], None]) -> None:
        """Let ``make`` fill the directory that it is given, unless it is there already.

        Raises:
            IncompatibleError: the user's cache cannot be written.
        """
        cache = self._cache()
        if not cache.writable():
            raise IncompatibleError(f"{cache.home} cannot be written", "set VGGDEPLOY_CACHE to a directory of your own")

        def fill(draft: Path) -> Path:
            make(draft)
            (draft / _READY).write_text(json.dumps(self.recipe))
            return draft

        with cache.entry(key_of(self.recipe), self.path, fill, on_wait=on_wait):
            pass

    @staticmethod
    def _cache() -> Cache:
        return Cache(cache_home() / "fleet", limit=_LIMIT_BYTES)


def run_tool(args: Sequence[str | Path], *, to: str, fix: str) -> None:
    """Run a package manager to its end.

    Raises:
        IncompatibleError: it is not installed, or it failed; with the last thing that it said.
    """
    name = str(args[0])
    if shutil.which(name) is None:
        raise IncompatibleError(f"{name} is needed to {to}, and it is not installed", fix)
    done = subprocess.run(
        [str(part) for part in args], capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        said = last_line(done.stderr) or last_line(done.stdout)
        raise IncompatibleError(f"{Path(name).name} could not {to}: {said}", "check the network, then run this again")


def last_line(data: bytes) -> str:
    """The last line that is not empty, or a warning of qemu's about what it cannot emulate."""
    lines = [one_line(line) for line in data.decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and "warning: TCG doesn't support" not in line), "")
