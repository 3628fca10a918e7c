"""The TensorRT backend: one engine, one execution context, one stream. `EngineSession` serves TensorRT for RTX too.

Deserialising an engine runs its code: the bytes are hashed again, in memory, before the library sees them.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from vggdeploy.errors import BundleError, IncompatibleError, IntegrityError, VggdeployError
from vggdeploy.optional import require
from vggdeploy.runtime import cuda
from vggdeploy.runtime.base import Array, Availability, Source
from vggdeploy.runtime.tensorrt_api import Log, logger_for, no_collection, tensor_spec, title
from vggdeploy.types import Device, TensorSpec

_AGAIN = "build it again: vggdeploy build BUNDLE"


@dataclass
class _Open:
    """What exists between ``__enter__`` and ``__exit__``.

    The library's objects are reached only through here: a local variable would live on in the traceback of an error,
    and an engine with it, in the GPU's memory, for as long as somebody handles that error.
    """

    logger: Any
    runtime: Any = None
    engine: Any = None
    context: Any = None
    stream: int = 0
    host: dict[str, Array] = field(default_factory=dict)
    device: dict[str, int] = field(default_factory=dict)
    batch: int = 0

    def drop(self) -> None:
        """Let go of the library's objects, the last one made first."""
        self.context = None
        self.engine = None
        self.runtime = None
        self.logger = None


class EngineSession:
    """One engine file. Buffers are allocated once, for the largest batch; ``run`` calls queue on a lock.

    A subclass names the library's module, the extra that brings it, and how a context is made.
    """

    module: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "gpu"
    engine_name: ClassVar[str] = "tensorrt"

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self._source = source
        self._log = Log()
        self._lock = Lock()
        self._state: _Open | None = None
        self._free: weakref.finalize[..., Any] | None = None

    def __enter__(self) -> Self:
        library = require(self.module, to=f"run the {self.engine_name} backend", extra=self.extra)
        unread = [self._read()]
        stack = ExitStack()
        try:
            with no_collection():
                self._state = self._open(library, unread, stack)
        except BaseException as error:
            _release(stack.close, error)
            raise
        # Also when nobody leaves the 'with' block: a generator that was dropped, an interpreter that ends.
        self._free = weakref.finalize(self, stack.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._state = None
            if self._free is None:
                return
            _release(self._free, error)

    def _read(self) -> bytes:
        source = self._source
        try:
            data = source.path.read_bytes()
        except OSError as error:
            raise BundleError(f"{source.path} cannot be read: {error.strerror}", "check its permissions") from error
        if hashlib.sha256(data).hexdigest() != source.sha256:
            raise IntegrityError(
                f"{source.path} was altered: its SHA-256 is not the manifest's",
                "restore the bundle from its source, or build the engine again",
            )
        return data

    def _open(self, library: Any, unread: list[bytes], stack: ExitStack) -> _Open:
        source = self._source
        cuda.use(source.device)
        state = _Open(logger_for(library, self._log))
        state.stream = cuda.open_stream(stack)
        stack.callback(state.drop)
        state.runtime = self._checked(library, library.Runtime(state.logger), "start")
        # engine_host_code_allowed stays False: an engine may hold no code for the CPU.
        # The bytes are popped: once the library has them, this copy is gone.
        state.engine = self._checked(
            library, state.runtime.deserialize_cuda_engine(unread.pop()), f"load {source.path.name}"
        )
        _check_tensors(library, state, source)
        state.context = self._checked(
            library, self.create_context(library, state.engine), "prepare the engine (GPU memory?)"
        )
        for spec in (*source.inputs, *source.outputs):
            state.host[spec.name] = cuda.pinned_array(stack, (source.batch.max, *spec.item_shape), spec.dtype)
            state.device[spec.name] = cuda.device_memory(stack, state.host[spec.name].nbytes)
            if not state.context.set_tensor_address(spec.name, state.device[spec.name]):
                raise self._failed(f"TensorRT refused the buffer of '{spec.name}'")
        stack.callback(cuda.wait, state.stream)  # comes first: nothing is freed under a copy that is still under way
        return state

    def create_context(self, library: Any, engine: Any) -> Any:
        """An execution context; None when the library cannot make one."""
        return engine.create_execution_context()

    def _checked(self, library: Any, created: Any, verb: str) -> Any:
        """What the library made, or why it made nothing."""
        if created is None:
            raise IncompatibleError(
                f"{title(library)} cannot {verb}: {self._log.cause()}",
                f"build an engine for this machine: vggdeploy build BUNDLE --engine {self.engine_name}",
            )
        self._log.begin()
        return created

    def _failed(self, what: str) -> VggdeployError:
        return VggdeployError(f"{what}: {self._log.cause()}", "try a smaller batch, or prove it: vggdeploy verify")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            state = self._state
            if state is None:
                raise VggdeployError("the session is closed", "use it inside its 'with' block")
            self._log.begin()
            cuda.use(self._source.device)  # this thread may not be the one that opened the session
            batch = len(feeds[self.inputs[0].name])
            reshape, state.batch = batch != state.batch, 0  # 0 until this batch is through: the context may be half set
            for spec in self.inputs:
                if reshape and not state.context.set_input_shape(spec.name, (batch, *spec.item_shape)):
                    raise self._failed(f"TensorRT refused a batch of {batch}")
                staged = state.host[spec.name][:batch]
                np.copyto(staged, feeds[spec.name])
                cuda.upload(state.device[spec.name], staged, state.stream)
            if not state.context.execute_async_v3(state.stream):
                raise self._failed("TensorRT did not run the batch")
            for spec in self.outputs:
                cuda.download(state.host[spec.name][:batch], state.device[spec.name], state.stream)
            cuda.wait(state.stream)
            state.batch = batch
            return {spec.name: state.host[spec.name][:batch].copy() for spec in self.outputs}


def _release(close: Callable[[], Any], error: BaseException | None) -> None:
    """Free everything. A failure of that is an error of its own only when there is none before it."""
    try:
        close()
    except cuda.CudaError as failed:
        if error is None:
            raise
        error.add_note(f"and while freeing the GPU's memory: {failed}")


def _check_tensors(library: Any, state: _Open, source: Source) -> None:
    """The engine has to have the inputs, outputs and batch range of the manifest: buffers are sized by them."""
    found: dict[bool, set[TensorSpec]] = {True: set(), False: set()}
    for index in range(state.engine.num_io_tensors):
        name = state.engine.get_tensor_name(index)
        spec = tensor_spec(name, state.engine.get_tensor_dtype(name), state.engine.get_tensor_shape(name))
        is_input = state.engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
        found[is_input].add(_any_batch(spec))
        if not is_input:
            continue
        smallest, _, largest = (shape[0] for shape in state.engine.get_tensor_profile_shape(name, 0))
        if smallest > source.batch.min or largest < source.batch.max:
            raise BundleError(
                f"{source.path.name} takes batches of {smallest}…{largest}; the manifest says {source.batch}", _AGAIN
            )
    wanted = {_any_batch(s) for s in source.inputs}, {_any_batch(s) for s in source.outputs}
    if (found[True], found[False]) != wanted:
        texts = ", ".join(sorted(str(s) for s in found[True] | found[False]))
        raise BundleError(f"{source.path.name} has not the inputs and outputs of the manifest, but {texts}", _AGAIN)


def _any_batch(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, ("N", *spec.item_shape))


def probe(device: Device) -> Availability:
    """A GPU and its driver have to be here, both to run and to build."""
    library = require("tensorrt", to="run the tensorrt backend", extra="gpu")
    try:
        gpu = cuda.find_gpu(device)
    except IncompatibleError as error:
        return Availability(False, str(device), error.cause, error.hint, library.__version__)
    return Availability(True, f"{device} ({gpu.name}, {gpu.capability})", version=library.__version__, builds=True)


SESSION = EngineSession
