"""The AOTInductor backend: a bundle's program of `torch.export`, compiled on this machine into native code and run from it.

PyTorch holds Python's lock while such code runs (pytorch/pytorch#197516): calls of several threads come one after another.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vggdeploy.errors import BundleError, first_line
from vggdeploy.runtime import torch as pytorch
from vggdeploy.runtime.aoti.package import compiler, missing, packaged
from vggdeploy.runtime.base import Availability, Source
from vggdeploy.runtime.torch import ModuleSession
from vggdeploy.system.drafts import temporary_directory
from vggdeploy.types import Device


class AotiSession(ModuleSession):
    """One package, compiled here. ``compiled_sha256``: see `vggdeploy.runtime.base.CompiledSession`."""

    compiled_sha256 = ""

    def _open(self, source: Source) -> Any:
        with packaged(source) as (sealed, self.compiled_sha256), temporary_directory("vggdeploy-aoti-") as home:
            try:
                runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(_library(sealed.path, home)), 1)
            except (RuntimeError, OSError, ValueError, zipfile.BadZipFile) as error:
                cause = (
                    f"PyTorch {torch.__version__} cannot load what it compiled of {source.name}: {first_line(error)}"
                )
                raise BundleError(cause, "let TMPDIR name a directory whose files may be executed") from error
        return lambda image: runner.run([image])


def _library(package: Path, home: Path) -> Path:
    """The shared library of a package, alone in ``home``. Its place is new: a linker takes a path that it knows for the file
    that it loaded from there before."""
    with zipfile.ZipFile(package) as archive:
        [name] = [each for each in archive.namelist() if each.endswith(".so")]
        target = home / "model.so"
        with archive.open(name) as reader, target.open("xb") as writer:
            while block := reader.read(2**20):
                writer.write(block)
    return target


def probe(device: Device) -> Availability:
    """PyTorch's own, and there has to be a compiler. What it compiled depends on that, too."""
    found = pytorch.probe(device)
    lacking = missing()
    if lacking is not None:
        return replace(found, runs=False, reason=lacking.cause, fix=lacking.hint)
    return replace(found, version=f"{found.version}, {compiler().rpartition(': ')[2]}")


SESSION = AotiSession
__all__ = ["SESSION", "AotiSession", "probe"]
