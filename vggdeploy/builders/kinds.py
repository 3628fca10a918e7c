"""The libraries that build engines: a row each, and the way to their modules."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from vggdeploy.errors import MissingDependencyError, unknown_name
from vggdeploy.optional import installed, require


@dataclass(frozen=True)
class EngineKind:
    """A row: the engine's name (its format's and its backend's, too), the library's name, module and extra."""

    name: str
    title: str
    module: str
    extra: str
    needs_gpu: bool


ENGINES: tuple[EngineKind, ...] = (
    EngineKind("tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "rtx", needs_gpu=False),
    EngineKind("tensorrt", "TensorRT", "tensorrt", "gpu", needs_gpu=True),
)
_ALIASES = {"trt": "tensorrt", "rtx": "tensorrt-rtx", "trt-rtx": "tensorrt-rtx"}


def engine_kind(name: str) -> EngineKind:
    """The engine of that name.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    wanted = name.strip().lower().replace("_", "-")
    wanted = _ALIASES.get(wanted, wanted)
    for kind in ENGINES:
        if kind.name == wanted:
            return kind
    raise unknown_name("engine", name, [kind.name for kind in ENGINES])


def open_library(kind: EngineKind) -> ModuleType:
    """The library's module.

    Raises:
        MissingDependencyError: it is not installed; the hint says which extra brings it and what it needs.
        IncompatibleError: it is installed and does not import.
    """
    if kind.needs_gpu and not installed(kind.module):
        raise MissingDependencyError(
            f"the Python package '{kind.module}' is needed to build {kind.name} engines, and it is not installed",
            f"on the machine with the NVIDIA GPU: pip install 'vggdeploy[{kind.extra}]' (it builds only there); "
            "without a GPU: --engine tensorrt-rtx",
        )
    return require(kind.module, to=f"build {kind.name} engines", extra=kind.extra)
