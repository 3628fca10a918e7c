"""The TensorRT for RTX backend: the session of `vggdeploy.runtime.tensorrt`, with kernels compiled on this machine."""

from __future__ import annotations

from typing import Any, ClassVar

from vggdeploy.errors import IncompatibleError
from vggdeploy.optional import require
from vggdeploy.runtime import cuda
from vggdeploy.runtime.base import Availability
from vggdeploy.runtime.tensorrt import EngineSession
from vggdeploy.runtime.tensorrt_api import title
from vggdeploy.types import Device


class RtxSession(EngineSession):
    """One engine of TensorRT for RTX."""

    module: ClassVar[str] = "tensorrt_rtx"
    extra: ClassVar[str] = "rtx"
    engine_name: ClassVar[str] = "tensorrt-rtx"

    def create_context(self, library: Any, engine: Any) -> Any:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # LAZY would start each new batch size on fallback kernels: the first answers slow, and every benchmark wrong.
        config.dynamic_shapes_kernel_specialization_strategy = library.DynamicShapesKernelSpecializationStrategy.EAGER
        return engine.create_execution_context(config)


def known_targets(library: Any) -> tuple[str, ...]:
    """The GPU generations this release builds for, by compute capability: ``sm75``, ``sm80``, …"""
    names = [name for name in library.ComputeCapability.__members__ if name[2:].isdigit()]
    return tuple(name.lower() for name in sorted(names, key=lambda name: int(name[2:])))


def probe(device: Device) -> Availability:
    """Running needs an NVIDIA GPU that the library knows; building needs none."""
    library = require("tensorrt_rtx", to="run the tensorrt-rtx backend", extra="rtx")
    version = library.__version__
    try:
        gpu = cuda.find_gpu(device)
    except IncompatibleError as error:
        return Availability(False, str(device), error.cause, error.hint, version, builds=True)
    known = known_targets(library)
    if gpu.capability not in known:
        return Availability(
            False,
            str(device),
            f"{title(library)} does not run on {gpu.name} ({gpu.capability}); it knows {', '.join(known)}",
            "build with TensorRT on this machine: vggdeploy build BUNDLE --engine tensorrt",
            version,
            builds=True,
        )
    return Availability(True, f"{device} ({gpu.name}, {gpu.capability})", version=version, builds=True)


SESSION = RtxSession
