"""Which library builds the engine where nobody named one: TensorRT on the GPU that is here, else TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vggdeploy.build.request import gpu_device
from vggdeploy.build.targets import DEFAULT_TARGETS
from vggdeploy.errors import IncompatibleError, MissingDependencyError
from vggdeploy.runtime.base import Availability
from vggdeploy.runtime.gpu.cuda import check_driver, find_gpu
from vggdeploy.runtime.registry import ENGINES, Backend, get_engine
from vggdeploy.types import Device

TENSORRT, RTX = get_engine("tensorrt"), get_engine("tensorrt-rtx")


@dataclass(frozen=True)
class EngineChoice:
    """A library, why it was taken, and the GPU that it builds for; no ``device`` where there is none."""

    backend: Backend
    reason: str
    device: Device | None = None


def choose_engine(device: Device | None = None, targets: Sequence[str] | None = None) -> EngineChoice:
    """The library that fits the GPU: TensorRT where it is installed, else TensorRT for RTX where that knows the GPU.

    Args:
        device: the GPU to build for. Default: the first, and without one the default targets of TensorRT for RTX.
        targets: GPUs by name, which need not be here: only TensorRT for RTX builds for them.

    Raises:
        UsageError: the device is no GPU.
        IncompatibleError: no library here builds for the GPU, or the GPU that was named is not here; there is a driver, and
            no cuda-bindings to ask it for its GPU.
    """
    if targets is not None:
        return EngineChoice(RTX, f"only {RTX.title} builds for GPUs that --target names", device)
    where = gpu_device(device)
    try:
        gpu = find_gpu(where)
    except IncompatibleError as error:
        if device is not None or _driver_without_bindings(error):
            raise
        default = ", ".join(DEFAULT_TARGETS)
        return EngineChoice(RTX, f"no GPU can be used here ({error.cause}), and it builds without one, for {default}")
    here = f"{where} is {gpu.name} ({gpu.capability})"
    refused: list[Availability] = []
    for backend in (TENSORRT, RTX):
        found = backend.probe(where)
        if found.runs:
            return EngineChoice(backend, "; ".join((here, *(each.reason for each in refused))), where)
        refused.append(found)
    raise IncompatibleError(
        f"nothing here builds an engine for this GPU: {here}; {'; '.join(each.reason for each in refused)}",
        f"{refused[0].fix}; for other GPUs than this one: --target {','.join(DEFAULT_TARGETS)}",
    )


def _driver_without_bindings(error: IncompatibleError) -> bool:
    """Whether there may be a GPU here that only a Python package is missing for: then it is not built for others."""
    if not isinstance(error, MissingDependencyError):
        return False
    try:
        check_driver()
    except IncompatibleError:
        return False
    return True


def other_engine(backend: Backend, device: Device) -> Backend | None:
    """Another library that runs engines on that GPU, for the one that does not."""
    return next((other for other in ENGINES if other is not backend and other.probe(device).runs), None)
