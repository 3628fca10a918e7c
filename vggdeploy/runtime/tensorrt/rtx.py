"""The TensorRT for RTX backend: the session of `vggdeploy.runtime.tensorrt.session`, with kernels compiled on this machine.

The kernels are kept for the next start, in the user's cache and never in a bundle: a bundle's files are the manifest's, and
this one differs from GPU to GPU.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime.base import Availability, Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt.api import backend_library, title
from vggdeploy.runtime.tensorrt.engine import LoadedEngine
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.system.cache import Cache, cache_home, key_of
from vggdeploy.system.sealed import SealedFile
from vggdeploy.types import Device

KERNEL_BYTES = 2**30  # of the kernels of all engines

_REBUILD = "build an engine for this machine: vggdeploy build BUNDLE --engine tensorrt-rtx"
_DRIVER = "update the NVIDIA driver, then: vggdeploy doctor"
# ``EngineInvalidityDiagnostics``, flag by flag: cause and remedy.
_INVALID = {
    "MALFORMED_ENGINE": ("its header is none of an engine of this release", _REBUILD),
    "VERSION_MISMATCH": ("another release built it", _REBUILD),
    "UNSUPPORTED_CC": ("it holds no code for this GPU", _REBUILD),
    "OLD_CUDA_DRIVER": ("it needs a newer NVIDIA driver", _DRIVER),
    "OLD_CUDA_RUNTIME": ("it needs a newer CUDA runtime", _DRIVER),
    "INSUFFICIENT_GPU_MEMORY": ("the GPU has not enough memory for it", "see who holds memory: nvidia-smi"),
    "CUDA_ERROR": ("CUDA does not start", "check nvidia-smi, then: vggdeploy doctor"),
}


class RtxEngine(LoadedEngine):
    """An engine of TensorRT for RTX: the library captures graphs itself, and keeps the kernels that it compiled."""

    engine_name: ClassVar[str] = "tensorrt-rtx"
    may_capture: ClassVar[bool] = False

    def __init__(self, library: Any, source: Source) -> None:
        super().__init__(library, source)
        self._config: Any = None
        self._kernels: Any = None
        self._cache = Cache(
            source.gpu.cache or cache_home() / "rtx-kernels",
            suffix=".cache",
            limit=KERNEL_BYTES,
            note=lambda text: self.log.add("WARNING", f"runtime cache: {text}"),
        )
        self._key = ""
        self._known: bytes | None = None

    def load(self, file: SealedFile) -> None:
        super().load(file)
        library, source = self.library, self.source
        self._config = self.engine.create_runtime_config()
        strategies = library.CudaGraphStrategy
        graphs = source.gpu.graphs and not self.streams_weights
        self._config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
        # Else each context would take what the largest profile needs.
        self._config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        # LAZY would start each new batch size on fallback kernels: the first answers slow, and every benchmark wrong.
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            library.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._kernels = self._made(self._config.create_runtime_cache, "make a runtime cache")
        gpu = cuda.find_gpu(source.device)
        self._key = key_of([source.sha256, library.__version__, gpu.name, gpu.capability, gpu.driver])
        self._known = self._cache.read(self._key, limit=KERNEL_BYTES)
        if self._known and not self._kernels.deserialize(self._known):
            self.log.add("INFO", "the runtime cache is another GPU's or driver's: kernels are compiled again")
        if not self._config.set_runtime_cache(self._kernels):
            self.log.add("WARNING", "the library did not take the runtime cache: kernels are compiled at every start")

    def check_header(self, file: SealedFile) -> None:
        library = self.library
        since = self.log.mark()
        validity, found = self.runtime.get_engine_validity(file.map())
        if validity != library.EngineValidity.INVALID:
            return
        flags = library.EngineInvalidityDiagnostics
        reasons = [why for name, why in _INVALID.items() if found & int(getattr(flags, name, 0))]
        causes = [cause for cause, _ in reasons] or [self.log.cause(since)]
        raise IncompatibleError(
            f"{title(library)} refuses {file.name}: {'; '.join(causes)}", reasons[0][1] if reasons else _REBUILD
        )

    def compiled(self) -> bytes:
        compiled = self._kernels.serialize() if self._kernels is not None else None
        return b"" if compiled is None else bytes(compiled)

    def keep(self, compiled: bytes) -> None:
        if self._key and compiled and compiled != self._known:
            self._cache.write(self._key, compiled)
            self._known = compiled

    def drop(self) -> None:
        self.keep(self.compiled())
        self._key = ""
        self._config = None
        self._kernels = None
        super().drop()

    def create_context(self) -> Any:
        return self.engine.create_execution_context(self._config)


class RtxSession(EngineSession):
    """One engine of TensorRT for RTX."""

    loader: ClassVar[type[LoadedEngine]] = RtxEngine


def known_targets(library: Any) -> tuple[str, ...]:
    """The GPU generations this release builds for, by compute capability: ``sm75``, ``sm80``, …"""
    names = [name for name in library.ComputeCapability.__members__ if name[2:].isdigit()]
    return tuple(name.lower() for name in sorted(names, key=lambda name: int(name[2:])))


def probe(device: Device) -> Availability:
    """Running needs an NVIDIA GPU that the library knows; building needs none."""
    library = backend_library("tensorrt-rtx")
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
