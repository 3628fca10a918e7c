"""A stand-in for TensorRT on a real NVIDIA GPU: its ``execute_async_v3`` launches two kernels (``standin.cu``) that NVRTC
compiled for the GPU that is there. So lanes, pools, graphs, streams, DLPack and errors are driven for real without TensorRT.

It needs cuda-bindings, which sessions on a GPU need anyway, and libnvrtc, which PyTorch brings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cuda.bindings import driver, nvrtc
from fakes import library, names
from fakes.network import CLASSES, ITEM

from vggdeploy.errors import GpuMemoryError
from vggdeploy.runtime.gpu import cuda
from vggdeploy.types import Device

SOURCE = Path(__file__).with_name("standin.cu")
KERNELS = ("add_up", "spread")
THREADS = 128  # of a block


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *results = answer
    if int(status) != 0:
        raise RuntimeError(f"NVRTC: {status!r}")
    return results[0] if results else None


def architectures() -> list[int]:
    """Compute capabilities that this NVRTC knows: 75, 80, …, in ascending order."""
    return sorted(_checked(nvrtc.nvrtcGetSupportedArchs()))


@cache
def compiled(capability: str) -> bytes:
    """The kernels for ``sm90``: machine code, or, where NVRTC is older than the GPU, PTX that its driver compiles."""
    number = int(capability.removeprefix("sm"))
    known = architectures()
    exact = number in known
    target = f"sm_{number}" if exact else f"compute_{max(n for n in known if n <= number)}"
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
    status, *_ = nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={target}".encode()])
    if int(status) != 0:
        text = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, text)
        raise RuntimeError(text.decode())
    size, read = (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if exact else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    image = b" " * _checked(size(program))
    _checked(read(program, image))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return image


class Library(library.Library):
    """``tensorrt``, whose engine is two kernels. ``nanoseconds``: how long each of them lasts at least.

    Args:
        loader: the module ``cuda.bindings.driver``, or what stands for it.
    """

    def __init__(self, fault: str | None = None, *, nanoseconds: int = 0, loader: Any = driver) -> None:
        super().__init__(names, fault)
        self.nanoseconds = nanoseconds
        self.errors: list[str] = []
        self._driver = loader
        self._functions: dict[str, Any] = {}

    def is_capturing(self, stream: int) -> bool:
        active = cuda.bindings().cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
        return bool(cuda.call("cudaStreamIsCapturing", stream) == active)

    def launch(self, stream: int, addresses: Mapping[str, int], batch: int, scratch: int) -> bool:
        image = 16 if self.fault == "illegal" else addresses["image"]  # nothing lies at 16
        return self._started(
            "add_up", batch, stream, (image, scratch, batch, ITEM, self.nanoseconds)
        ) and self._started(
            "spread", batch * CLASSES, stream, (scratch, addresses["logits"], batch, CLASSES, self.nanoseconds)
        )

    def allocate_scratch(self) -> int | None:
        try:
            return int(cuda.call("cudaMalloc", self.scratch_bytes))
        except GpuMemoryError:  # the real library says None, too
            return None

    def free_scratch(self, address: int) -> None:
        cuda.call("cudaFree", address)

    def _started(self, name: str, count: int, stream: int, values: tuple[int, ...]) -> bool:
        arguments = (ctypes.c_uint64 * len(values))(*values)
        at = ctypes.addressof(arguments)
        pointers = (ctypes.c_void_p * len(values))(*(at + 8 * n for n in range(len(values))))
        blocks = -(-count // THREADS)
        status, *_ = self._driver.cuLaunchKernel(
            *(self._function(name), blocks, 1, 1, THREADS, 1, 1, 0, stream, ctypes.addressof(pointers), 0)
        )  # it has copied the arguments when it returns
        if int(status) != 0:
            self.errors.append(f"cuLaunchKernel: {status!r}")
        return int(status) == 0

    def _function(self, name: str) -> Any:
        """A kernel, loaded into the GPU's context with the first call: before any capture, since a batch runs first."""
        if not self._functions:
            module = _checked(self._driver.cuModuleLoadData(compiled(cuda.find_gpu(Device("cuda")).capability)))
            self._functions = {k: _checked(self._driver.cuModuleGetFunction(module, k.encode())) for k in KERNELS}
        return self._functions[name]
