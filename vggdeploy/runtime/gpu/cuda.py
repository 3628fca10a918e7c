"""The CUDA runtime through ``cuda-bindings``: which GPU there is, and memory, streams and events that are always freed.

Torch-free. Every failing call becomes a typed error that names the call.
"""

from __future__ import annotations

import ctypes
import os
import uuid
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import CudaError, GpuMemoryError, IncompatibleError
from vggdeploy.system.optional import require
from vggdeploy.types import Device

_DRIVER = "libcuda.so.1"
_INSTALL = "install the NVIDIA driver (in a container: start it with --gpus all)"


@dataclass(frozen=True)
class Gpu:
    """One GPU: what CUDA calls it, its compute capability (``sm89``), and the CUDA version its driver supports."""

    index: int
    name: str
    capability: str
    driver: str


def bindings() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
    """
    return require("cuda.bindings.runtime", to="use an NVIDIA GPU", extra="rtx")


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; returns its result without the status.

    Raises:
        GpuMemoryError: there is not enough memory.
        CudaError: any other failure.
    """
    cudart = bindings()
    status, *results = getattr(cudart, name)(*arguments)
    if status == cudart.cudaError_t.cudaSuccess:
        return results[0] if len(results) == 1 else (tuple(results) or None)
    code, text = describe(cudart, status)
    cudart.cudaGetLastError()  # an error that CUDA remembers would be blamed on the next call
    cause = f"{name} failed: {text} ({code})"
    if status == cudart.cudaError_t.cudaErrorMemoryAllocation:
        hint = "use a smaller maximum batch, or see who holds memory: nvidia-smi"
        raise GpuMemoryError(cause, hint, call=name, code=code)
    raise CudaError(cause, "see what this machine can run: vggdeploy doctor", call=name, code=code)


def describe(cudart: Any, status: Any) -> tuple[str, str]:
    """CUDA's name of an error and its words for it."""
    return cudart.cudaGetErrorName(status)[1].decode(), cudart.cudaGetErrorString(status)[1].decode()


def check_driver() -> None:
    """Refuse a machine without NVIDIA's driver; no package is needed to find that out.

    Raises:
        IncompatibleError: its library cannot be loaded.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise IncompatibleError(f"there is no NVIDIA driver here ({_DRIVER} cannot be loaded)", _INSTALL) from None


def find_gpu(device: Device) -> Gpu:
    """The GPU that ``device`` names, asked for from the driver itself.

    Raises:
        IncompatibleError: no driver, one that is too old, no GPU, or no GPU of that index; the hint mends it.
    """
    cudart = bindings()
    check_driver()
    driver = _version(call("cudaDriverGetVersion"))
    status, count = cudart.cudaGetDeviceCount()
    errors = cudart.cudaError_t
    if status == errors.cudaErrorInsufficientDriver:
        major = driver.partition(".")[0]
        raise IncompatibleError(
            f"the NVIDIA driver supports CUDA {driver}; the installed cuda-bindings need a newer one",
            f"update the driver, or: pip install 'cuda-bindings=={major}.*'",
        )
    if status == errors.cudaErrorNoDevice or (status == errors.cudaSuccess and not count):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            raise IncompatibleError(f"CUDA_VISIBLE_DEVICES='{hidden}' hides every GPU", "unset CUDA_VISIBLE_DEVICES")
        raise IncompatibleError("the NVIDIA driver finds no GPU", "check nvidia-smi (in a container: --gpus all)")
    if status != errors.cudaSuccess:
        code, text = describe(cudart, status)
        raise IncompatibleError(f"CUDA cannot start: {text} ({code})", "check nvidia-smi, then: vggdeploy doctor")
    if device.index >= count:
        raise IncompatibleError(f"there is no {device}: this machine has {count} GPU(s)", "they count from 0: cuda:0")
    attributes = cudart.cudaDeviceAttr
    major = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device.index)
    minor = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device.index)
    name = call("cudaGetDeviceProperties", device.index).name
    return Gpu(device.index, _text(name), f"sm{major}{minor}", driver)


def uuid_of(device: Device) -> str:
    """The GPU's own number, as ``nvidia-smi -L`` shows it."""
    number = bytes(call("cudaGetDeviceProperties", device.index).uuid.bytes)
    return f"GPU-{uuid.UUID(bytes=number)}"


def _version(number: int) -> str:
    """CUDA's 13050 → ``13.5``."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(name: bytes | str) -> str:
    return name.split(b"\0")[0].decode(errors="replace") if isinstance(name, bytes) else name


def use(device: Device) -> None:
    """Make ``device`` the calling thread's: CUDA keeps that choice for each thread."""
    call("cudaSetDevice", device.index)


def memory() -> tuple[int, int]:
    """Free and total bytes of the calling thread's GPU."""
    free, total = call("cudaMemGetInfo")
    return int(free), int(total)


def room(device: Device) -> int:
    """Bytes that can still be taken on ``device``, which is the calling thread's GPU.

    An integrated GPU shares the machine's memory, where what is not free may be a cache that gives way: all of it counts.
    """
    integrated = call("cudaDeviceGetAttribute", bindings().cudaDeviceAttr.cudaDevAttrIntegrated, device.index)
    free, total = memory()
    return total if integrated else free


def open_stream(stack: ExitStack) -> int:
    """A stream of its own; it is destroyed when ``stack`` is closed."""
    # Non-blocking: the legacy default stream would make this one wait for every other library in the process.
    stream = call("cudaStreamCreateWithFlags", bindings().cudaStreamNonBlocking)
    stack.callback(call, "cudaStreamDestroy", stream)
    return int(stream)


def device_memory(stack: ExitStack, size: int) -> int:
    """The address of ``size`` bytes on the GPU; they are freed when ``stack`` is closed."""
    address = call("cudaMalloc", size)
    stack.callback(call, "cudaFree", address)
    return int(address)


def pinned_array(stack: ExitStack, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """An array in page-locked host memory, which the GPU copies from and to without the CPU.

    It must not be touched after ``stack`` was closed.
    """
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    address = call("cudaHostAlloc", size, bindings().cudaHostAllocDefault)
    stack.callback(call, "cudaFreeHost", address)
    block = (ctypes.c_uint8 * size).from_address(int(address))
    return np.ctypeslib.as_array(block).view(kind).reshape(shape)


def upload(target: int, source: NDArray[Any], stream: int) -> None:
    """Copy a contiguous host array to the GPU, in the order of ``stream``."""
    kind = bindings().cudaMemcpyKind.cudaMemcpyHostToDevice
    call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, kind, stream)


def download(target: NDArray[Any], source: int, stream: int) -> None:
    """Copy from the GPU into a contiguous host array, in the order of ``stream``."""
    kind = bindings().cudaMemcpyKind.cudaMemcpyDeviceToHost
    call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, stream)


def wait(stream: int) -> None:
    """Until all that was put into ``stream`` is done."""
    call("cudaStreamSynchronize", stream)


class Event:
    """A point in a stream: to wait for, and to measure from. Destroyed with its last reference."""

    def __init__(self, *, timing: bool = False) -> None:
        cudart = bindings()
        flags = cudart.cudaEventDefault if timing else cudart.cudaEventDisableTiming  # without a clock it is cheaper
        self.handle = int(call("cudaEventCreateWithFlags", flags))
        self._free = weakref.finalize(self, call, "cudaEventDestroy", self.handle)

    def record(self, stream: int) -> None:
        """The event stands for all that is in ``stream`` now."""
        call("cudaEventRecord", self.handle, stream)

    def hold(self, stream: int) -> None:
        """What is put into ``stream`` from now on waits for the event; the CPU does not."""
        call("cudaStreamWaitEvent", stream, self.handle, bindings().cudaEventWaitDefault)

    def wait(self) -> None:
        """Until the event has happened."""
        call("cudaEventSynchronize", self.handle)

    def happened(self) -> bool:
        cudart = bindings()
        if cudart.cudaEventQuery(self.handle)[0] == cudart.cudaError_t.cudaErrorNotReady:
            return False
        call("cudaEventQuery", self.handle)  # any other error is one
        return True

    def since(self, start: Event) -> float:
        """Milliseconds on the GPU's clock between two events that were made with ``timing`` and have happened."""
        return float(call("cudaEventElapsedTime", start.handle, self.handle))


def release(close: Callable[[], Any], error: BaseException | None) -> None:
    """Free everything. A failure of that is an error of its own only when there is none before it."""
    try:
        close()
    except CudaError as failed:
        if error is None:
            raise
        error.add_note(f"and while freeing the GPU's memory: {failed}")
