"""A CUDA runtime and a TensorRT in memory, for fault injection only: they count what is alive, and fail on demand.

Enumerations, classes and constants are the real modules'; "GPU memory" is host memory, and the "engine" adds up pixels.
Work in a stream is done late, when somebody waits for it: code that forgets to wait, or touches a buffer too early, gets
wrong numbers here too. What CUDA leaves undefined (a shape changed under a captured graph, scratch memory shared by two
streams, pinned memory freed under a copy) is an assertion.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import tensorrt_rtx
from fakes.cudart import ILLEGAL_ADDRESS, OUT_OF_MEMORY, Cudart, real_cudart  # noqa: F401  # with the library, for the tests

H, W, C, CLASSES = 2, 2, 3, 4
ITEM = H * W * C
SCRATCH = 64


class Context:
    """Refuses what TensorRT refuses: a shape outside the profile that it is on, a batch whose shape or memory was not set
    since the profile was. Less memory than the profile needs, and another stream than the one in which the profile was set,
    are undefined there, and assertions here."""

    def __init__(self, library: Library, needs_memory: bool) -> None:
        self._library = library
        self._addresses: dict[str, int] = {}
        self._batch = 0
        self._profile = 0
        self._stream: int | None = None
        self._needs_memory = needs_memory
        self._scratch = 0
        self._captured = False
        library.alive.append("context")

    def __del__(self) -> None:
        self._library.alive.remove("context")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert not self._captured, "a profile changed under a captured graph"
        assert stream_handle not in self._library.cudart.capturing, "a profile changed while a graph is captured"
        if self._library.fault == "set_optimization_profile_async" or profile_index >= len(self._library.profiles):
            return False
        self._profile, self._stream, self._batch, self._scratch = profile_index, stream_handle, 0, 0
        self._library.switches.append(profile_index)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        needed = scratch_of(self._library.profiles[self._profile])
        assert needed <= size <= self._library.cudart.sizes[memory], "less memory than the profile needs"
        self._scratch = memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self._captured, "an address changed under a captured graph"
        self._addresses[name] = memory
        return self._library.fault != "set_tensor_address"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._captured, "a shape changed under a captured graph"
        smallest, _, largest = self._library.profiles[self._profile]
        if not smallest <= shape[0] <= largest:
            return False
        self._batch = shape[0]
        self._library.shapes.append(shape)
        return self._library.fault != "set_input_shape"

    def execute_async_v3(self, stream_handle: int) -> bool:
        library, cudart = self._library, self._library.cudart
        in_capture = stream_handle in cudart.capturing
        if library.fault == "execute_async_v3" or (library.fault == "capture" and in_capture):
            return False
        if not self._batch or (self._needs_memory and not self._scratch):
            return False
        assert self._stream in (None, stream_handle), "a profile was set in another stream"
        self._captured |= in_capture
        if self._needs_memory:
            assert cudart.scratch.setdefault(self._scratch, stream_handle) == stream_handle, "scratch of two streams"
        batch, addresses = self._batch, dict(self._addresses)

        def work() -> None:
            pixels = view(addresses["image"], batch * ITEM, np.uint8).reshape(batch, -1)
            logits = view(addresses["logits"], batch * CLASSES * 4, np.float32).reshape(batch, -1)
            logits[:] = pixels.sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)

        cudart.put(stream_handle, work)
        return True


class RuntimeCache:
    def __init__(self, library: Library) -> None:
        self._library = library

    def deserialize(self, blob: bytes) -> bool:
        self._library.cache_read.append(bytes(blob))
        return self._library.fault != "deserialize"

    def serialize(self) -> bytes:
        return self._library.kernels


class RuntimeConfig:
    def __init__(self, library: Library) -> None:
        self._library = library

    def create_runtime_cache(self) -> RuntimeCache | None:
        return None if self._library.fault == "create_runtime_cache" else RuntimeCache(self._library)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._library.strategies.append(strategy)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return self._library.fault != "set_runtime_cache"


def scratch_of(profile: tuple[int, ...]) -> int:
    """What a context of a profile computes in."""
    return SCRATCH * profile[2]


class Engine:
    num_io_tensors = 2
    names = ("image", "logits")

    def __init__(self, library: Library) -> None:
        self._library = library
        self._budget = library.streamable
        library.alive.append("engine")

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._library.profiles)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return scratch_of(self._library.profiles[profile_index])

    @property
    def streamable_weights_size(self) -> int:
        return self._library.streamable

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        """As the real one: it is refused without a word while there are contexts."""
        if "context" not in self._library.alive and self._library.fault != "weight_streaming_budget_v2":
            self._budget = size

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
        return [(size, H, W, C) for size in self._library.profiles[profile]]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self._library)

    def create_execution_context(self, how: Any = None) -> Context | None:
        library = self._library
        library.configs.append(how)
        limit = library.max_contexts
        if library.fault == "create_execution_context" or library.alive.count("context") >= limit:
            return None
        managed = tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(library, how == managed or library.strategies[-1:] == [managed])


class Runtime:
    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger
        library.alive.append("runtime")

    def __del__(self) -> None:
        self._library.alive.remove("runtime")

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        self._library.seen.append(bytes(data))
        if self._library.fault == "deserialize_cuda_engine":
            self._logger.log(
                tensorrt_rtx.ILogger.Severity.ERROR,
                "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (built by 1.6 for sm_86. In x at /src/a.cpp:1)",
            )
            return None
        return Engine(self._library)


class Library:
    """``tensorrt_rtx``. ``fault``: the name of the method that fails; "capture": executing while a graph is captured."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault = fault
        self.cudart = Cudart()
        self.alive: list[str] = []
        self.seen: list[bytes] = []
        self.shapes: list[tuple[int, ...]] = []
        self.configs: list[Any] = []
        self.max_contexts = 1000
        self.kernels = b"compiled here"
        self.cache_read: list[bytes] = []
        self.profiles: list[tuple[int, int, int]] = [(1, 2, 4)]
        self.switches: list[int] = []  # profiles that contexts were put on
        self.strategies: list[Any] = []  # of memory, as runtime configurations got them
        self.streamable = 0  # bytes of weights
        self.output_type = tensorrt_rtx.DataType.FLOAT
        self.__name__ = "tensorrt_rtx"
        self.__version__ = "1.7.1"

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def Runtime(self, logger: Any) -> Runtime | None:
        return None if self.fault == "Runtime" else Runtime(self, logger)


def view(address: int, size: int, dtype: Any) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)


def pixels(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, H, W, C), dtype=np.uint8)


def expected(image: np.ndarray) -> np.ndarray:
    """What the "engine" computes."""
    return image.reshape(len(image), -1).sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)
