"""A lane: one stream with all that a batch needs on it. Lanes of one engine run at the same time, each one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from vggdeploy.errors import VggdeployError
from vggdeploy.runtime.base import Array, Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.context import Context, Contexts, Scratch
from vggdeploy.runtime.gpu.graphs import Graphs
from vggdeploy.system.ranges import ranged

T = TypeVar("T")
_MAX_BORROWED = 8  # batches between arrays on the GPU that are under way: more would hold the callers' memory

CLOSED = ("the session is closed", "use it inside its 'with' block")


class Lane:
    """Stream, contexts, pinned host buffers and device buffers for the largest batch. One thread at a time.

    It has a context for each profile that was used, and one for each captured graph. Their work comes one after the other in
    the lane's stream, so all of them compute in the same scratch memory, which grows with the batches that come.

    Whoever uses it holds ``lock``. `close` frees all of it, and may be called twice.
    """

    def __init__(self, contexts: Contexts, source: Source) -> None:
        self.lock = Lock()
        self._contexts = contexts
        self._source = source
        self._specs = (*source.inputs, *source.outputs)
        self._stack = ExitStack()
        self._own: dict[int, Context] = {}  # by profile
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
        self._scratch = Scratch(stack.enter_context(ExitStack()), source)
        stack.callback(self._drop)
        self._context(source.batch.min)
        for spec in self._specs:
            self._host[spec.name] = cuda.pinned_array(stack, (source.batch.max, *spec.item_shape), spec.dtype)
            self._device[spec.name] = cuda.device_memory(stack, self._host[spec.name].nbytes)
        self.graphs = Graphs(
            stack.enter_context(ExitStack()),
            self.stream,
            enabled=source.gpu.graphs and contexts.captures,
            batches=source.gpu.graph_batches or (source.build.graph_batches if source.build else ()),
        )
        stack.callback(cuda.wait, self.stream)  # comes first: nothing is freed under work that is still under way

    def _drop(self) -> None:
        while self._own:
            self._own.popitem()[1].close()
        self._borrowed.clear()

    def _context(self, batch: int) -> Context:
        """The lane's own context for batches of that size, made when it is first asked for."""
        profile = self._source.profile_of(batch)
        if profile not in self._own:
            self._own[profile] = self._new_context(profile)
        return self._own[profile]

    def _new_context(self, profile: int) -> Context:
        return Context(self._contexts, self._source, profile, self._scratch, self.stream)

    @property
    def captures(self) -> bool:
        """Whether graphs are captured here, and not in the library."""
        return self._contexts.captures

    @property
    def closed(self) -> bool:
        return not self._own

    def close(self) -> None:
        with self.lock:
            self._host.clear()
            self._device.clear()
            self._stack.close()

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
            batch, lambda stack: self._prepare(stack, batch), lambda context: self._enqueue(context, batch)
        ):
            return
        self._enqueue(self._set(batch, self._device), batch)

    def _prepare(self, stack: ExitStack, batch: int) -> Context:
        context = self._new_context(self._source.profile_of(batch))
        stack.callback(context.close)
        context.set(batch, self._device)
        return context

    def _set(self, batch: int, addresses: Mapping[str, int]) -> Context:
        context = self._context(batch)
        context.set(batch, addresses)
        return context

    def _enqueue(self, context: Context, batch: int) -> None:
        self.copy_in(batch)
        context.execute()
        self.copy_out(batch)

    def copy_in(self, batch: int) -> None:
        for spec in self._source.inputs:
            cuda.upload(self._device[spec.name], self._host[spec.name][:batch], self.stream)

    def execute(self, batch: int) -> None:
        """Put the computation alone into the stream, on what is in the device's buffers."""
        self._busy = True
        self._set(batch, self._device).execute()

    def copy_out(self, batch: int) -> None:
        for spec in self._source.outputs:
            cuda.download(self._host[spec.name][:batch], self._device[spec.name], self.stream)

    @ranged("results")
    def results(self, batch: int) -> dict[str, Array]:
        """Wait for the batch; its outputs, as copies that stay."""
        self.settle()
        return {spec.name: self._host[spec.name][:batch].copy() for spec in self._source.outputs}

    def look(self, batch: int, describe: Callable[[Any], T]) -> T:
        """What ``describe`` says of the library's context for this batch size, set to it: nothing is run."""
        return describe(self._set(batch, self._device).held[0])

    def report(self, batch: int) -> None:
        """Have the layers of the batch that is done reported to its context's profiler.

        Raises:
            VggdeployError: the library cannot tell them.
        """
        self._context(batch).report()

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
        context = self._set(batch, addresses)
        self._busy = True
        context.execute()
        done = cuda.Event()
        done.record(self.stream)
        self._borrowed.append((done, keep))
        return done
