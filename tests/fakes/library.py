"""TensorRT's Python surface as far as a session uses it, around something that computes: a host function (`fakes.gpu`) or a
kernel on a GPU (`fakes.standin`). It counts what is alive, and fails on demand.

What TensorRT leaves undefined (a shape changed under a captured graph) is an assertion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fakes.network import CLASSES, C, H, W

SUM_BYTES = 4  # of scratch memory, an image

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


class Context:
    """Refuses what TensorRT refuses: a shape outside the profile that it is on, a batch whose shape or memory was not set
    since the profile was. Less memory than the profile needs, and another stream than the one in which the profile was set,
    are undefined there, and assertions here."""

    def __init__(self, library: Library, engine: Engine, *, needs_memory: bool, own: int) -> None:
        self._library = library
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._batch = 0
        self._profile = 0
        self._stream: int | None = None
        self._needs_memory = needs_memory
        self._scratch = 0
        self._own = own
        self._captured = False
        self._under_way: list[int] = []
        self._launched = False
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.nvtx_verbosity = library.ProfilingVerbosity.DETAILED  # that of the build
        library.alive.append("context")

    def __del__(self) -> None:
        self._library.alive.remove("context")
        if self._own:
            self._library.free_scratch(self._own)
        assert not self._under_way, "a context was freed under its work"

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        library = self._library
        assert not self._captured, "a profile changed under a captured graph"
        assert not library.is_capturing(stream_handle), "a profile changed while a graph is captured"
        if library.fault == "set_optimization_profile_async" or profile_index >= len(library.profiles):
            return False
        self._profile, self._stream, self._batch, self._scratch = profile_index, stream_handle, 0, 0
        library.switches.append(profile_index)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        library = self._library
        needed = library.scratch_of(library.profiles[self._profile])
        assert needed <= size and library.holds(memory, size), "less memory than the profile needs"
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
        library = self._library
        in_capture = library.is_capturing(stream_handle)
        if library.fault == "execute_async_v3" or (library.fault == "capture" and in_capture):
            return False
        if not self._batch or (self._needs_memory and not self._scratch):
            return False
        assert self._stream in (None, stream_handle), "a profile was set in another stream"
        self._captured |= in_capture
        if not in_capture:
            self._under_way.append(stream_handle)
        launch = library.launch if self._engine.has_weights else library.launch_without_weights
        started = launch(stream_handle, dict(self._addresses), self._batch, self._own or self._scratch)
        if not in_capture:
            library.after(stream_handle, self._under_way.clear)
        self._launched = True
        if self.profiler is not None and self.enqueue_emits_profile:  # then a launch waits for its own end
            library.wait(stream_handle)
            self.report_to_profiler()
        return started

    def report_to_profiler(self) -> bool:
        """The times of the last launch, which has to be over. The fake's are 1, 2, 3, … ms."""
        library = self._library
        if library.fault == "report_to_profiler" or self.profiler is None or not self._launched:
            return False
        assert not self._under_way, "times were asked for while the launch was under way"
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

    def serialize(self) -> bytes | None:
        self._library.serialised += 1
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


class Engine:
    num_io_tensors = 2
    _names = ("image", "logits")

    def __init__(self, library: Library) -> None:
        self._library = library
        self.refittable = library.stripped
        self.has_weights = not library.stripped
        self._budget = library.streamable
        library.alive.append("engine")

    def __del__(self) -> None:
        self._library.alive.remove("engine")

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._library.profiles)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._library.scratch_of(self._library.profiles[profile_index])

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

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._library.TensorIOMode
        return modes.INPUT if name == "image" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = self._library.DataType
        return kinds.UINT8 if name == "image" else self._library.output_type

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, H, W, C) if name == "image" else (-1, CLASSES)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, H, W, C) for size in self._library.profiles[profile]]

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
        managed = library.ExecutionContextAllocationStrategy.USER_MANAGED
        needs_memory = how == managed or library.strategies[-1:] == [managed]
        own = 0 if needs_memory else library.allocate_scratch()
        return None if own is None else Context(library, self, needs_memory=needs_memory, own=own)


class Inspector:
    """An ``EngineInspector``."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.execution_context: Any = None

    def get_engine_information(self, format: Any) -> str:  # noqa: A002  # the library's name for it
        assert format == self._library.LayerInformationFormat.JSON
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
        self._engine.has_weights = True
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

    def load_runtime(self, path: str) -> Runtime | None:
        self._library.lean_runtimes.append(path)
        return None if self._library.fault == "load_runtime" else Runtime(self._library, self._logger)

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        """Of TensorRT for RTX. ``fault``: the name of a flag; "VALIDITY": invalid, without one."""
        flag = getattr(self._library.EngineInvalidityDiagnostics, self._library.fault or "", None)
        wrong = flag is not None or self._library.fault == "VALIDITY"
        validity = self._library.EngineValidity
        return validity.INVALID if wrong else validity.VALID, int(flag or 0)

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        self._library.seen.append(bytes(data))
        if self._library.fault == "deserialize_cuda_engine":
            self._logger.log(
                self._library.ILogger.Severity.ERROR,
                "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (built by 1.6 for sm_86. In x at /src/a.cpp:1)",
            )
            return None
        return Engine(self._library)


class Library:
    """The module. ``fault``: the name of the method that fails; "capture": executing while a graph is captured.

    A subclass computes; ``names`` has the enumerations, and the logger's class.
    """

    def __init__(self, names: Any, fault: str | None = None) -> None:
        self._names = names
        self.fault = fault
        self.alive: list[str] = []
        self.seen: list[bytes] = []
        self.lean_runtimes: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.configs: list[Any] = []
        self.max_contexts = 1000
        self.kernels: bytes | None = b"compiled here"
        self.serialised = 0
        self.cache_read: list[bytes] = []
        self.profiles: list[tuple[int, int, int]] = [(1, 2, 4)]
        self.switches: list[int] = []  # profiles that contexts were put on
        self.strategies: list[Any] = []  # of memory, as runtime configurations got them
        self.streamable = 0  # bytes of weights
        self.output_type = names.DataType.FLOAT
        self.stripped = False  # whether the engines are without weights, and wait for some
        self.refitted: list[bytes] = []
        self.layers: list[dict[str, Any]] = [dict(layer) for layer in LAYERS]
        self.__name__ = "tensorrt_rtx"
        self.__version__ = "1.7.1"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._names, name)

    def Refitter(self, engine: Engine, logger: Any) -> Refitter:
        return Refitter(self, engine)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> OnnxParserRefitter:
        return OnnxParserRefitter(self, refitter)

    def Runtime(self, logger: Any) -> Runtime | None:
        if self.fault == "null":  # as the real one where CUDA does not start: an object that must not be used
            text = "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)"
            logger.log(self.ILogger.Severity.ERROR, text)
        return None if self.fault == "Runtime" else Runtime(self, logger)

    @staticmethod
    def scratch_of(profile: tuple[int, ...]) -> int:
        """What a context of a profile computes in."""
        return SUM_BYTES * profile[2]

    @property
    def scratch_bytes(self) -> int:
        """Of the profile with the largest batches."""
        return max(map(self.scratch_of, self.profiles))

    def holds(self, address: int, size: int) -> bool:
        """Whether so many bytes were taken there; True where nobody counts."""
        return True

    def is_capturing(self, stream: int) -> bool:
        raise NotImplementedError

    def launch(self, stream: int, addresses: Mapping[str, int], batch: int, scratch: int) -> bool:
        """Put the network's work into a stream."""
        raise NotImplementedError

    def launch_without_weights(self, stream: int, addresses: Mapping[str, int], batch: int, scratch: int) -> bool:
        """That of an engine that waits for its weights: zeros."""
        raise NotImplementedError

    def wait(self, stream: int) -> None:
        """Until the stream is empty."""
        raise NotImplementedError

    def after(self, stream: int, work: Callable[[], None]) -> None:
        """Call ``work`` once all is done that is in the stream; at once where nobody can tell."""
        work()

    def allocate_scratch(self) -> int | None:
        """Memory for a context that brings its own; 0 where none is computed in, None where there is no room."""
        return 0

    def free_scratch(self, address: int) -> None:
        raise NotImplementedError
