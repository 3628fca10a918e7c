"""A lane: one stream with all that a batch needs on it. Lanes of one engine run at the same time, each one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np

from vggdeploy.errors import VggdeployError
from vggdeploy.runtime.base import Array, Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.graphs import Graphs, Held
from vggdeploy.system.ranges import ranged

T = TypeVar("T")
_MAX_BORROWED = 8  # batches between arrays on the GPU that are under way: more would hold the callers' memory

CLOSED = ("the session is closed", "use it inside its 'with' block")


class Contexts(Protocol):
    """Makes the execution contexts of an engine. All contexts of a lane work in the same ``scratch`` memory."""

    captures: bool

    def scratch_size(self) -> int: ...
    def new_context(self, scratch: int) -> Any: ...
    def mark(self) -> int: ...
    def failed(self, what: str, since: int) -> VggdeployError: ...


class Lane:
    """Stream, contexts, pinned host buffers and device buffers for the largest batch. One thread at a time.

    Whoever uses it holds ``lock``. `close` frees all of it, and may be called twice.
    """

    def __init__(self, contexts: Contexts, source: Source) -> None:
        self.lock = Lock()
        self._contexts = contexts
        self._source = source
        self._specs = (*source.inputs, *source.outputs)
        self._stack = ExitStack()
        self._held: Held = []
        self._mark = 0
        self._batch = 0  # what the context is set to; 0 while it may be half set
        self._own_buffers = False  # whether the context works on the lane's buffers
        self._busy = False
        self._borrowed: deque[tuple[cuda.Event, Any]] = deque()
        self._host: dict[str, Array] = {}
        self._device: dict[str, int] = {}
        try:
            cuda.use(source.device)
            self._open(self._stack)
        except BaseException as error:
            cuda.release(self.close, error)
            raise

    def _open(self, stack: ExitStack) -> None:
        source, contexts = self._source, self._contexts
        self.stream = cuda.open_stream(stack)
        size = contexts.scratch_size()
        self._scratch = cuda.device_memory(stack, size) if size else 0
        stack.callback(self._drop)
        self._held.append(contexts.new_context(self._scratch))
        for spec in self._specs:
            self._host[spec.name] = cuda.pinned_array(stack, (source.batch.max, *spec.item_shape), spec.dtype)
            self._device[spec.name] = cuda.device_memory(stack, self._host[spec.name].nbytes)
        self.graphs = Graphs(
            stack.enter_context(ExitStack()),
            self.stream,
            enabled=source.gpu.graphs and contexts.captures,
            batches=source.gpu.graph_batches or (source.build.graph_batches if source.build else ()),
        )
        self._bind(self._held, self._device)
        self._own_buffers = True
        stack.callback(cuda.wait, self.stream)  # comes first: nothing is freed under work that is still under way

    def _drop(self) -> None:
        self._held.clear()
        self._borrowed.clear()

    @property
    def captures(self) -> bool:
        """Whether graphs are captured here, and not in the library."""
        return self._contexts.captures

    @property
    def closed(self) -> bool:
        return not self._held

    def close(self) -> None:
        with self.lock:
            self._host.clear()
            self._device.clear()
            self._stack.close()

    def _bind(self, held: Held, addresses: Mapping[str, int]) -> None:
        for spec in self._specs:
            if not held[0].set_tensor_address(spec.name, addresses[spec.name]):
                raise self._failed(f"TensorRT refused the buffer of '{spec.name}'")

    def _shape(self, held: Held, batch: int) -> None:
        for spec in self._source.inputs:
            if not held[0].set_input_shape(spec.name, (batch, *spec.item_shape)):
                raise self._failed(f"TensorRT refused a batch of {batch}")

    def _set(self, batch: int) -> None:
        """Set the lane's own context to a batch size, where it is not yet."""
        if batch != self._batch:
            self._batch = 0
            self._shape(self._held, batch)
            self._batch = batch

    def settle(self) -> None:
        """Wait until nothing is under way, so that the host's buffers may be touched."""
        if self._busy:
            cuda.wait(self.stream)
            self._busy = False
        self._borrowed.clear()

    def begin(self) -> None:
        """The start of every use: this thread may not be the one that opened the lane.

        Raises:
            VggdeployError: it was closed meanwhile.
        """
        if self.closed:
            raise VggdeployError(*CLOSED)
        self._mark = self._contexts.mark()
        cuda.use(self._source.device)

    @ranged("stage")
    def stage(self, feeds: Mapping[str, Array]) -> int:
        """Put a batch into the pinned buffers; returns its size."""
        self.settle()
        batch = len(feeds[self._source.inputs[0].name])
        for spec in self._source.inputs:
            np.copyto(self._host[spec.name][:batch], feeds[spec.name])
        return batch

    @ranged("enqueue")
    def enqueue(self, batch: int) -> None:
        """Put the staged batch into the stream: copy in, execute, copy out. By its graph, where there is one."""
        self._busy = True
        if self.graphs.replay(batch):
            return
        if self.graphs.wanted(batch) and self.graphs.capture(
            batch, lambda held: self._prepare(held, batch), lambda held: self._enqueue(held, batch)
        ):
            return
        self.use_own_buffers()
        self._set(batch)
        self._enqueue(self._held, batch)

    def _prepare(self, held: Held, batch: int) -> None:
        held.append(self._contexts.new_context(self._scratch))
        self._bind(held, self._device)
        self._shape(held, batch)

    def _failed(self, what: str) -> VggdeployError:
        return self._contexts.failed(what, self._mark)

    def use_own_buffers(self) -> None:
        """Point the context at the lane's buffers again, after a batch between arrays that others own."""
        if not self._own_buffers:
            self._bind(self._held, self._device)
            self._own_buffers = True

    def _enqueue(self, held: Held, batch: int) -> None:
        self.copy_in(batch)
        self._execute(held)
        self.copy_out(batch)

    def copy_in(self, batch: int) -> None:
        for spec in self._source.inputs:
            cuda.upload(self._device[spec.name], self._host[spec.name][:batch], self.stream)

    def execute(self, batch: int) -> None:
        """Put the computation alone into the stream, on what is in the device's buffers."""
        self._busy = True
        self.use_own_buffers()
        self._set(batch)
        self._execute(self._held)

    def _execute(self, held: Held) -> None:
        if not held[0].execute_async_v3(self.stream):
            self._batch = 0
            raise self._failed("TensorRT did not run the batch")

    def copy_out(self, batch: int) -> None:
        for spec in self._source.outputs:
            cuda.download(self._host[spec.name][:batch], self._device[spec.name], self.stream)

    @ranged("results")
    def results(self, batch: int) -> dict[str, Array]:
        """Wait for the batch; its outputs, as copies that stay."""
        self.settle()
        return {spec.name: self._host[spec.name][:batch].copy() for spec in self._source.outputs}

    def look(self, batch: int, describe: Callable[[Any], T]) -> T:
        """What ``describe`` says of the lane's context, which is set to this batch size: nothing is run."""
        self._set(batch)
        return describe(self._held[0])

    def report(self) -> None:
        """Have the layers of the batch that is done reported to the context's profiler.

        Raises:
            VggdeployError: the library cannot tell them.
        """
        held = self._held
        if not held[0].report_to_profiler():
            raise self._failed("TensorRT did not report the times of its layers")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One batch from host arrays to host arrays."""
        with self.lock:
            self.begin()
            batch = self.stage(feeds)
            self.enqueue(batch)
            return self.results(batch)

    def run_between(self, batch: int, addresses: Mapping[str, int], keep: Any) -> cuda.Event:
        """Put a batch between arrays on the GPU into the stream; returns the event of its end.

        ``keep`` holds what the addresses belong to, and is let go of once the batch is done.
        """
        while self._borrowed and (len(self._borrowed) >= _MAX_BORROWED or self._borrowed[0][0].happened()):
            self._borrowed[0][0].wait()
            self._borrowed.popleft()
        self._own_buffers = False
        self._bind(self._held, addresses)
        self._set(batch)
        self._busy = True
        self._execute(self._held)
        done = cuda.Event()
        done.record(self.stream)
        self._borrowed.append((done, keep))
        return done
