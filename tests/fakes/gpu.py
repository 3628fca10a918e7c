"""A CUDA runtime and a TensorRT in memory, for fault injection only: they count what is alive, and fail on demand.

Enumerations, classes and constants are the real modules'; "GPU memory" is host memory, and the "engine" adds up pixels.
Work in a stream is done late, when somebody waits for it: code that forgets to wait, or touches a buffer too early, gets
wrong numbers here too. What CUDA leaves undefined (a shape changed under a captured graph, scratch memory shared by two
streams, pinned memory freed under a copy) is an assertion.
"""

from __future__ import annotations

import ctypes
import json
from collections import defaultdict
from collections.abc import Callable
from threading import RLock
from typing import Any

import numpy as np
import tensorrt_rtx
from cuda.bindings import runtime as real_cudart

ERRORS = real_cudart.cudaError_t
OK = ERRORS.cudaSuccess
OUT_OF_MEMORY = ERRORS.cudaErrorMemoryAllocation
ILLEGAL_ADDRESS = ERRORS.cudaErrorIllegalAddress
H, W, C, CLASSES = 2, 2, 3, 4
ITEM = H * W * C
SCRATCH = 64

# As the inspector of TensorRT 10 and 11 describes an engine that was built with details; names are those of our exporter.
LAYERS = (
    {"Name": "Reformatting CopyNode for Input Tensor 0 to node_conv2d", "LayerType": "Reformat"},
    {
        "Name": "node_conv2d + node_relu",
        "LayerType": "CaskConvolution",
        "Metadata": "[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_relu]",
    },
    {
        "Name": "__myl_Fc_myl0_1",
        "LayerType": "gemm",
        "Metadata": "[ONNX Layer: node_linear]\x1e[ONNX Layer: node_relu_8]",
    },
)

Work = Callable[[], None]


class Cudart:
    """``cuda.bindings.runtime``. ``fail_at``: the number of the call (from 0) that fails, or its name."""

    def __init__(self, fail_at: int | str | None = None, error: Any = ILLEGAL_ADDRESS) -> None:
        self.fail_at = fail_at
        self.error = error
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self.alive: dict[int, tuple[str, Any]] = {}
        self.streams: dict[int, list[Work]] = defaultdict(list)
        self.capturing: dict[int, list[Work]] = {}
        self.device_of: dict[int, int] = {}
        self.scratch: dict[int, int] = {}  # address → the stream that computes in it
        self._lock = RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(real_cudart, name)

    def kinds(self) -> list[str]:
        """What is alive, sorted."""
        return sorted(kind for kind, _ in self.alive.values())

    def _fails(self, name: str, *arguments: Any) -> bool:
        self.calls.append(name)
        self.arguments.append(arguments)
        return self.fail_at in (len(self.calls) - 1, name)

    def _made(self, name: str, kind: str, size: int, *arguments: Any, thing: Any = None) -> tuple[Any, int | None]:
        with self._lock:
            if self._fails(name, *arguments):
                return self.error, None
            block = ctypes.create_string_buffer(max(1, size) + 256)
            handle = ctypes.addressof(block)
            handle += -handle % 256  # as cudaMalloc aligns
            self.alive[handle] = (kind, (block, thing))
            return OK, handle

    def _gone(self, name: str, kind: str, handle: int) -> tuple[Any]:
        with self._lock:
            if self._fails(name, handle):
                return (self.error,)
            assert self.alive.pop(int(handle))[0] == kind
            self.scratch.pop(int(handle), None)
            return (OK,)

    def _thing(self, handle: int, kind: str) -> Any:
        found, (_, thing) = self.alive[int(handle)]
        assert found == kind
        return thing

    def put(self, stream: int, work: Work) -> None:
        """Into a stream, or into the graph that is being captured from it."""
        with self._lock:
            self.capturing.get(stream, self.streams[stream]).append(work)

    def drain(self, stream: int, until: Work | None = None) -> None:
        with self._lock:
            queue = self.streams[stream]
            while queue:
                work = queue.pop(0)
                work()
                if work is until:
                    return

    # Memory

    def cudaMalloc(self, size: int) -> Any:
        return self._made("cudaMalloc", "device", size, size)

    def cudaFree(self, address: int) -> Any:
        for stream in list(self.streams):  # it waits for the whole GPU
            self.drain(stream)
        return self._gone("cudaFree", "device", address)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self._made("cudaHostAlloc", "host", size, size, flags)

    def cudaFreeHost(self, address: int) -> Any:
        assert self.fail_at is not None or not any(self.streams.values()), "pinned memory freed under work in a stream"
        return self._gone("cudaFreeHost", "host", address)

    def cudaMemGetInfo(self) -> Any:
        return (self.error, None, None) if self._fails("cudaMemGetInfo") else (OK, 6 << 30, 8 << 30)

    def cudaDeviceGetPCIBusId(self, length: int, device: int) -> Any:
        if self._fails("cudaDeviceGetPCIBusId", length, device):
            return self.error, None
        return OK, b"0000:01:00.0".ljust(length, b"\0")

    def cudaPointerGetAttributes(self, address: int) -> Any:
        if self._fails("cudaPointerGetAttributes", address):
            return self.error, None
        return OK, type("Attributes", (), {"device": self.device_of.get(address, 0)})()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        if self._fails("cudaMemcpyAsync", target, source, size, kind, stream):
            return (self.error,)
        self.put(stream, lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cudaMemcpy(self, target: int, source: int, size: int, kind: Any) -> Any:
        if self._fails("cudaMemcpy", target, source, size, kind):
            return (self.error,)
        ctypes.memmove(target, source, size)
        return (OK,)

    # Streams and events

    def cudaSetDevice(self, index: int) -> Any:
        return (self.error if self._fails("cudaSetDevice", index) else OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._made("cudaStreamCreateWithFlags", "stream", 1, flags)

    def cudaStreamDestroy(self, stream: int) -> Any:
        return self._gone("cudaStreamDestroy", "stream", stream)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        with self._lock:
            if self._fails("cudaStreamSynchronize", stream):
                return (self.error,)
            assert stream not in self.capturing
            self.drain(stream)
            return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self._made(
            "cudaEventCreateWithFlags", "event", 1, flags, thing={"work": None, "stream": 0, "over": True}
        )

    def cudaEventDestroy(self, event: int) -> Any:
        return self._gone("cudaEventDestroy", "event", event)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        if self._fails("cudaEventRecord", event, stream):
            return (self.error,)
        state = self._thing(event, "event")
        state.update(stream=stream, over=False, work=lambda: state.update(over=True))
        self.put(stream, state["work"])
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        if self._fails("cudaStreamWaitEvent", stream, event, flags):
            return (self.error,)
        state = self._thing(event, "event")
        self.put(stream, lambda: self._reach(state))
        return (OK,)

    def _reach(self, state: Any) -> None:
        if not state["over"]:
            self.drain(state["stream"], state["work"])

    def cudaEventSynchronize(self, event: int) -> Any:
        if self._fails("cudaEventSynchronize", event):
            return (self.error,)
        self._reach(self._thing(event, "event"))
        return (OK,)

    def cudaEventQuery(self, event: int) -> Any:
        if self._fails("cudaEventQuery", event):
            return (self.error,)
        return (OK if self._thing(event, "event")["over"] else ERRORS.cudaErrorNotReady,)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        if self._fails("cudaEventElapsedTime", start, end):
            return self.error, None
        assert self._thing(start, "event")["over"] and self._thing(end, "event")["over"]
        return OK, 0.25

    # Graphs

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        if self._fails("cudaStreamBeginCapture", stream, mode):
            return (self.error,)
        self.capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        work = self.capturing.pop(stream, [])
        return self._made("cudaStreamEndCapture", "graph", 1, stream, thing=work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        work = list(self._thing(graph, "graph"))
        return self._made("cudaGraphInstantiate", "executable", 1, graph, flags, thing=work)

    def cudaGraphDestroy(self, graph: int) -> Any:
        return self._gone("cudaGraphDestroy", "graph", graph)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        return self._gone("cudaGraphExecDestroy", "executable", executable)

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:
        if self._fails("cudaGraphLaunch", executable, stream):
            return (self.error,)
        for work in self._thing(executable, "executable"):
            self.put(stream, work)
        return (OK,)


class Context:
    def __init__(self, library: Library, engine: Engine, needs_memory: bool) -> None:
        self._library = library
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._batch = 0
        self._needs_memory = needs_memory
        self._scratch = 0
        self._captured = False
        self._launched = False
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.nvtx_verbosity = tensorrt_rtx.ProfilingVerbosity.DETAILED  # that of the build
        library.alive.append("context")

    def __del__(self) -> None:
        self._library.alive.remove("context")

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size == SCRATCH
        self._scratch = memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self._captured, "an address changed under a captured graph"
        self._addresses[name] = memory
        return self._library.fault != "set_tensor_address"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._captured, "a shape changed under a captured graph"
        self._batch = shape[0]
        self._library.shapes.append(shape)
        return self._library.fault != "set_input_shape"

    def execute_async_v3(self, stream_handle: int) -> bool:
        library, cudart = self._library, self._library.cudart
        in_capture = stream_handle in cudart.capturing
        if library.fault == "execute_async_v3" or (library.fault == "capture" and in_capture):
            return False
        self._captured |= in_capture
        if self._needs_memory:
            assert cudart.scratch.setdefault(self._scratch, stream_handle) == stream_handle, "scratch of two streams"
        batch, addresses, weights = self._batch, dict(self._addresses), self._engine.weights

        def work() -> None:
            pixels = view(addresses["image"], batch * ITEM, np.uint8).reshape(batch, -1)
            logits = view(addresses["logits"], batch * CLASSES * 4, np.float32).reshape(batch, -1)
            logits[:] = pixels.sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)
            if not weights:
                logits[:] = 0

        cudart.put(stream_handle, work)
        self._launched = True
        if self.profiler is not None and self.enqueue_emits_profile:  # then a launch waits for its own end
            cudart.drain(stream_handle)
            self.report_to_profiler()
        return True

    def report_to_profiler(self) -> bool:
        """The times of the last launch, which has to be over. The fake's are 1, 2, 3, … ms."""
        library = self._library
        if library.fault == "report_to_profiler" or self.profiler is None or not self._launched:
            return False
        assert not any(library.cudart.streams.values()), "times were asked for while the launch was under way"
        self._launched = False
        for number, layer in enumerate(library.layers, 1):
            self.profiler.report_layer_time(layer["Name"], float(number))
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

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return self._library.fault != "set_runtime_cache"


class Engine:
    num_io_tensors = 2
    device_memory_size_v2 = SCRATCH
    names = ("image", "logits")

    def __init__(self, library: Library) -> None:
        self._library = library
        self.refittable = library.stripped
        self.weights = [] if library.stripped else [b"its own"]  # what is in a stream holds these, and no engine
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

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._library)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self._library)

    def create_execution_context(self, how: Any = None) -> Context | None:
        library = self._library
        library.configs.append(how)
        limit = library.max_contexts
        if library.fault == "create_execution_context" or library.alive.count("context") >= limit:
            return None
        return Context(library, self, how == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED)


class Inspector:
    """An ``EngineInspector``."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.execution_context: Any = None

    def get_engine_information(self, format: Any) -> str:  # noqa: A002  # the library's name for it
        assert format == tensorrt_rtx.LayerInformationFormat.JSON
        shapes = self.execution_context is not None and self.execution_context._batch
        layers = [
            {
                key: "N/A due to dynamic shapes" if key == "Format/Datatype" and not shapes else value
                for key, value in x.items()
            }
            for x in self._library.layers
        ]
        return json.dumps({"Layers": layers})


class Refitter:
    """A ``Refitter``: it may be told weights by name, or by an `OnnxParserRefitter`; nothing counts before it refits."""

    def __init__(self, library: Library, engine: Engine) -> None:
        self._library, self._engine = library, engine
        self.told: bytes | None = None

    def get_missing_weights(self) -> list[str]:
        names = ["features.0.weight", "features.0.bias", "classifier.6.bias", "classifier.6.weight"]
        return names if self.told is None or self._library.fault == "get_missing_weights" else []

    def refit_cuda_engine(self) -> bool:
        if self._library.fault == "refit_cuda_engine" or self.get_missing_weights():
            return False
        assert self.told is not None
        self._library.refitted.append(bytes(self.told))
        self._engine.weights[:] = [bytes(self.told)]
        return True


class ParserError:
    def desc(self) -> str:
        return "ModelRefitter.cpp:10: the initializer features.0.weight has another size"


class OnnxParserRefitter:
    def __init__(self, library: Library, refitter: Refitter) -> None:
        self._library, self._refitter = library, refitter
        self.num_errors = 0

    def refit_from_bytes(self, model: Any) -> bool:
        if self._library.fault == "refit_from_bytes":
            self.num_errors = 1
            return False
        self._refitter.told = model[:]
        return True

    def get_error(self, index: int) -> ParserError:
        assert 0 <= index < self.num_errors
        return ParserError()


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
        self.profile = (1, 2, 4)
        self.output_type = tensorrt_rtx.DataType.FLOAT
        self.stripped = False  # whether the engines are without weights, and wait for some
        self.refitted: list[bytes] = []
        self.layers: list[dict[str, Any]] = [dict(layer) for layer in LAYERS]
        self.__name__ = "tensorrt_rtx"
        self.__version__ = "1.7.1"

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)

    def Refitter(self, engine: Engine, logger: Any) -> Refitter:
        return Refitter(self, engine)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> OnnxParserRefitter:
        return OnnxParserRefitter(self, refitter)

    def Runtime(self, logger: Any) -> Runtime | None:
        return None if self.fault == "Runtime" else Runtime(self, logger)


def view(address: int, size: int, dtype: Any) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)


def pixels(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, H, W, C), dtype=np.uint8)


def expected(image: np.ndarray) -> np.ndarray:
    """What the "engine" computes."""
    return image.reshape(len(image), -1).sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)
