"""A CUDA runtime and a TensorRT in memory, for fault injection only: they count what is alive, and fail on demand.

Enumerations, classes and constants are the real modules'; "GPU memory" is host memory, and the "engine" adds up pixels.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import tensorrt_rtx
from cuda.bindings import runtime as real_cudart

OK = real_cudart.cudaError_t.cudaSuccess
OUT_OF_MEMORY = real_cudart.cudaError_t.cudaErrorMemoryAllocation
ILLEGAL_ADDRESS = real_cudart.cudaError_t.cudaErrorIllegalAddress
H, W, C, CLASSES = 2, 2, 3, 4
ITEM = H * W * C


class Cudart:
    """``cuda.bindings.runtime``. ``fail_at``: the number of the call (from 0) that fails, or its name."""

    def __init__(self, fail_at: int | str | None = None, error: Any = ILLEGAL_ADDRESS) -> None:
        self.fail_at = fail_at
        self.error = error
        self.calls: list[str] = []
        self.alive: dict[int, tuple[str, Any]] = {}
        self._next = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(real_cudart, name)

    def _fails(self, name: str) -> bool:
        self.calls.append(name)
        return self.fail_at in (len(self.calls) - 1, name)

    def _made(self, name: str, kind: str, size: int) -> tuple[Any, int | None]:
        if self._fails(name):
            return self.error, None
        block = ctypes.create_string_buffer(max(1, size))
        handle = ctypes.addressof(block)
        self.alive[handle] = (kind, block)
        return OK, handle

    def _gone(self, name: str, kind: str, handle: int) -> tuple[Any]:
        if self._fails(name):
            return (self.error,)
        assert self.alive.pop(int(handle))[0] == kind
        return (OK,)

    def cudaMalloc(self, size: int) -> Any:
        return self._made("cudaMalloc", "device", size)

    def cudaFree(self, address: int) -> Any:
        return self._gone("cudaFree", "device", address)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self._made("cudaHostAlloc", "host", size)

    def cudaFreeHost(self, address: int) -> Any:
        return self._gone("cudaFreeHost", "host", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._made("cudaStreamCreateWithFlags", "stream", 1)

    def cudaStreamDestroy(self, stream: int) -> Any:
        return self._gone("cudaStreamDestroy", "stream", stream)

    def cudaSetDevice(self, index: int) -> Any:
        return (self.error if self._fails("cudaSetDevice") else OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        return (self.error if self._fails("cudaStreamSynchronize") else OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        if self._fails("cudaMemcpyAsync"):
            return (self.error,)
        ctypes.memmove(target, source, size)
        return (OK,)


class Context:
    def __init__(self, library: Library) -> None:
        self._library = library
        self._addresses: dict[str, int] = {}
        self._batch = 0
        library.alive.append("context")

    def __del__(self) -> None:
        self._library.alive.remove("context")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self._library.fault != "set_tensor_address"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._batch = shape[0]
        self._library.shapes.append(shape)
        return self._library.fault != "set_input_shape"

    def execute_async_v3(self, stream: int) -> bool:
        if self._library.fault == "execute_async_v3":
            return False
        pixels = _view(self._addresses["image"], self._batch * ITEM, np.uint8).reshape(self._batch, -1)
        logits = _view(self._addresses["logits"], self._batch * CLASSES * 4, np.float32).reshape(self._batch, -1)
        logits[:] = pixels.sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)
        return True


class Engine:
    num_io_tensors = 2
    names = ("image", "logits")

    def __init__(self, library: Library) -> None:
        self._library = library
        library.alive.append("engine")

    def __del__(self) -> None:
        self._library.alive.remove("engine")

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = tensorrt_rtx.TensorIOMode
        return modes.INPUT if name == "image" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = tensorrt_rtx.DataType
        return kinds.UINT8 if name == "image" else self._library.output_type

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, H, W, C) if name == "image" else (-1, CLASSES)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, H, W, C) for size in self._library.profile]

    def create_runtime_config(self) -> Any:
        return type("RuntimeConfig", (), {})()

    def create_execution_context(self, config: Any = None) -> Context | None:
        self._library.configs.append(config)
        return None if self._library.fault == "create_execution_context" else Context(self._library)


class Runtime:
    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger
        library.alive.append("runtime")

    def __del__(self) -> None:
        self._library.alive.remove("runtime")

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        self._library.seen.append(data)
        if self._library.fault == "deserialize_cuda_engine":
            self._logger.log(
                tensorrt_rtx.ILogger.Severity.ERROR,
                "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (built by 1.6 for sm_86. In x at /src/a.cpp:1)",
            )
            return None
        return Engine(self._library)


class Library:
    """``tensorrt_rtx``. ``fault``: the name of the method that fails."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault = fault
        self.alive: list[str] = []
        self.seen: list[bytes] = []
        self.shapes: list[tuple[int, ...]] = []
        self.configs: list[Any] = []
        self.profile = (1, 2, 4)
        self.output_type = tensorrt_rtx.DataType.FLOAT
        self.__name__ = "tensorrt_rtx"
        self.__version__ = "1.7.1"

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def Runtime(self, logger: Any) -> Runtime | None:
        return None if self.fault == "Runtime" else Runtime(self, logger)


def _view(address: int, size: int, dtype: Any) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)
