"""The lean runtime of another release of TensorRT, as pip installs it: it runs that release's version-compatible engines.

Engines of ours hold none, since it is code for the CPU, which loading would have to allow. ``IRuntime.load_runtime`` takes it
from a file: it executes a plan "built with the same version of TensorRT as the loaded runtime library" (NVIDIA's API
reference), in an application with that version or a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vggdeploy.system.optional import installed, version

PACKAGES = ("tensorrt-lean-cu13-libs", "tensorrt-lean-cu12-libs")  # both put their library into the same directory
_MODULE = "tensorrt_lean_libs"


@dataclass(frozen=True)
class LeanRuntime:
    """A lean runtime that is installed: its release and its library."""

    version: str
    path: Path


def find_lean() -> LeanRuntime | None:
    """The one that is installed; None where there is none, or more than one, which overwrite each other."""
    versions = [found for name in PACKAGES if (found := version(name)) is not None]
    if len(versions) != 1 or not installed(_MODULE):
        return None
    spec = find_spec(_MODULE)
    library = f"libnvinfer_lean.so.{versions[0].partition('.')[0]}"
    homes = spec.submodule_search_locations if spec is not None else None
    paths = [path for home in homes or () if (path := Path(home, library)).is_file()]
    return LeanRuntime(versions[0], paths[0]) if paths else None
