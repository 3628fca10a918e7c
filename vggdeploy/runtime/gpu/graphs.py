"""CUDA graphs: the work of one batch recorded once, and put into its stream again with a single call.

A size is run as usual the first time it comes. The second time it gets an execution context of its own, because a
context whose shape changes spoils the graphs that were captured from it (TensorRT Developer Guide, "CUDA Graphs"), and
its work is captured. From the third time on it is replayed. Every other size runs without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from vggdeploy.errors import VggdeployError
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.context import Context

MAX_GRAPHS = 8  # a lane: each one keeps a context, and memory of the driver's


class Graphs:
    """The graphs of one stream, by batch size. They are destroyed when ``stack`` is closed.

    Args:
        batches: the sizes to capture. Empty: every size that comes a second time, up to `MAX_GRAPHS` of them.
    """

    def __init__(self, stack: ExitStack, stream: int, *, enabled: bool, batches: tuple[int, ...] = ()) -> None:
        self.refused: dict[int, str] = {}
        self._stack = stack
        self._stream = stream
        self._enabled = enabled
        self._batches = batches
        self._seen: set[int] = set()
        self._ready: dict[int, int] = {}
        stack.callback(self._ready.clear)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that are replayed."""
        return tuple(sorted(self._ready))

    def replay(self, batch: int) -> bool:
        """Put the graph of this size into the stream; False when there is none."""
        graph = self._ready.get(batch)
        if graph is None:
            return False
        cuda.call("cudaGraphLaunch", graph, self._stream)
        return True

    def wanted(self, batch: int) -> bool:
        """Whether this size is to be captured now. The first time it comes it is only remembered."""
        if not self._enabled or batch in self.refused or len(self._ready) >= MAX_GRAPHS:
            return False
        if self._batches:
            return batch in self._batches
        again = batch in self._seen
        self._seen.add(batch)
        return again

    def capture(self, batch: int, prepare: Callable[[ExitStack], Context], enqueue: Callable[[Context], None]) -> bool:
        """Run a batch of a size that is `wanted`, and capture the same work.

        Args:
            prepare: makes a context that is set to this size; the stack closes it. It lives as long as the graph.
            enqueue: puts the work into the stream, with that context.

        Returns:
            Whether the batch is in the stream. Not when there is no room for one more context: `refused` has the
            reason, and the size goes on without a graph. A failed capture is no error either.
        """
        kept = ExitStack()
        try:
            context = prepare(kept)
        except VggdeployError as error:  # no memory for it, usually; the context that is there serves this size too
            kept.close()
            self.refused[batch] = error.cause
            return False
        try:
            enqueue(context)  # TensorRT settles its state for new shapes here, which a capture must not contain
        except BaseException as error:  # the batch's own: the size is tried again with the next one
            cuda.release(lambda: self._discard(kept), error)
            raise
        try:
            self._ready[batch] = self._captured(kept, lambda: enqueue(context))
        except VggdeployError as error:
            self.refused[batch] = error.cause
            self._discard(kept)
        else:
            self._stack.push(kept)
        return True

    def _discard(self, kept: ExitStack) -> None:
        """Free a context that no graph needs, after what it put into the stream."""
        with kept:
            cuda.wait(self._stream)

    def _captured(self, kept: ExitStack, work: Callable[[], None]) -> int:
        cudart = cuda.bindings()
        # Relaxed: other threads and the garbage collector may allocate and free meanwhile, on streams that have
        # nothing to do with this one.
        cuda.call("cudaStreamBeginCapture", self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
        try:
            work()
        except BaseException:
            status, graph = cudart.cudaStreamEndCapture(self._stream)
            if status == cudart.cudaError_t.cudaSuccess:
                cuda.call("cudaGraphDestroy", graph)
            cudart.cudaGetLastError()  # the broken capture's, which would be blamed on the next call
            raise
        graph = cuda.call("cudaStreamEndCapture", self._stream)
        try:
            executable = cuda.call("cudaGraphInstantiate", graph, 0)
            kept.callback(cuda.call, "cudaGraphExecDestroy", executable)
        finally:
            cuda.call("cudaGraphDestroy", graph)
        return int(executable)
