"""What a session's tests run on: the fakes in memory, the stand-in's kernels on the CPU, the stand-in's kernels on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.network import pixels
from fakes.sessions import source_at

from vggdeploy.errors import GpuMemoryError, IncompatibleError
from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.device_arrays import DeviceArray
from vggdeploy.runtime.tensorrt import session as backend
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import BatchRange, Device

CUDA = Device("cuda")
MIB = 2**20


@dataclass
class Machine:
    """A GPU or what stands for it, and the library whose engines run on it. ``left``: what was not freed, "" for nothing."""

    library: Any
    left: Callable[[], str]
    full: Callable[[], Any]  # a context in which it has no memory left
    real: bool = False

    def array(self, values: np.ndarray) -> DeviceArray:
        """The values in GPU memory."""
        made = DeviceArray(values.shape, values.dtype.name, CUDA)
        kind = cuda.bindings().cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.call("cudaMemcpy", made.address, values.ctypes.data, values.nbytes, kind)
        cuda.wait(0)  # of pageable memory it returns once it has its own copy
        return made


def faked(patch: pytest.MonkeyPatch, library: Any, cudart: Any) -> Machine:
    from fakes.gpu import OUT_OF_MEMORY

    patch.setattr(cuda, "bindings", lambda: cudart)
    patch.setattr(cuda, "find_gpu", lambda device: cuda.Gpu(0, "Test GPU", "sm89", "13.0"))

    def left() -> str:
        gc.collect()
        return " ".join([*cudart.kinds(), *library.alive])

    @contextmanager
    def full() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(cudart, "fail_at", "cudaMalloc")
            inner.setattr(cudart, "error", OUT_OF_MEMORY)
            yield

    return Machine(library, left, full)


def in_memory(patch: pytest.MonkeyPatch, folder: Path) -> Machine:
    from fakes.gpu import Cudart, Library

    library = Library()
    library.cudart = Cudart()
    return faked(patch, library, library.cudart)


def on_the_processor(patch: pytest.MonkeyPatch, folder: Path) -> Machine:
    from fakes.gpu import Cudart
    from fakes.processor import Processor, compile_kernels
    from fakes.standin import Library

    cudart = Cudart()
    library = Library(loader=Processor(cudart, compile_kernels(folder)))
    return faked(patch, library, cudart)


def on_a_gpu(patch: pytest.MonkeyPatch, folder: Path) -> Machine:
    try:
        cuda.find_gpu(CUDA)
        from fakes.standin import Library, compiled

        compiled(cuda.find_gpu(CUDA).capability)
    except IncompatibleError as error:
        pytest.skip(f"it waits for a GPU and cuda-bindings: {error.cause}")
    except Exception as error:  # cuda-pathfinder's: libnvrtc is not found
        pytest.skip(f"it waits for CUDA's NVRTC (PyTorch for CUDA brings it): {error}")
    cuda.use(CUDA)
    library = Library()
    with patch.context() as first:  # CUDA's context and the kernels take memory, once
        first.setattr(backend, "backend_library", lambda *a, **k: library)
        with EngineSession(source_of(folder / "first.engine")) as session:
            session.run({"image": pixels(1)})
    gc.collect()
    before = cuda.memory()[0]

    def left() -> str:
        gc.collect()
        lost = before - cuda.memory()[0]
        return " ".join(library.alive) + (f" {lost} bytes" if lost > 8 * MIB else "")

    @contextmanager
    def full() -> Iterator[None]:
        with ExitStack() as stack:
            size = cuda.memory()[0]
            while size >= MIB // 4:  # less than the buffers of the largest batch
                try:
                    cuda.device_memory(stack, size)
                except GpuMemoryError:
                    size //= 2
            yield

    return Machine(library, left, full, real=True)


def source_of(path: Path, batch: BatchRange = BatchRange(1, 2, 4), **gpu: Any) -> Source:
    return replace(source_at(path), batch=batch, gpu=GpuOptions(**gpu))
