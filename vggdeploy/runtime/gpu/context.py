"""An execution context that stays on one optimisation profile, with what it is set to; and the memory that contexts share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from vggdeploy.errors import VggdeployError
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.gpu.memory import scratch_block

# One object of the library, in a list that is emptied to let go of it. A plain local variable would live on in the
# traceback of an error, and an engine's memory on the GPU with it, for as long as somebody handles that error.
Held = list[Any]


class Contexts(Protocol):
    """Makes the execution contexts of an engine, for a profile, in ``scratch`` memory of at least `scratch_size`."""

    @property
    def captures(self) -> bool: ...

    def scratch_size(self, profile: int) -> int: ...
    def new_context(self, profile: int, scratch: int, stream: int) -> Any: ...
    def mark(self) -> int: ...
    def failed(self, what: str, since: int) -> VggdeployError: ...


class Scratch:
    """Memory that the contexts of one stream compute in, one after the other: blocks on the GPU, made when they are needed.

    A context for larger batches gets a larger block. The smaller one stays: contexts and captured graphs hold its address.
    They are freed when ``stack`` is closed.
    """

    def __init__(self, stack: ExitStack, source: Source) -> None:
        self._stack = stack
        self._source = source
        self._blocks: list[tuple[int, int]] = []  # size and address, ascending

    def at_least(self, size: int, largest: int) -> int:
        """The address of ``size`` bytes or more, for batches up to ``largest``; 0 for none.

        Raises:
            GpuMemoryError: the GPU has no room for them.
        """
        if not size:
            return 0
        found = next((address for there, address in self._blocks if there >= size), None)
        if found is None:
            found = scratch_block(self._stack, size, largest, self._source.device)
            self._blocks.append((size, found))
        return found


class Context:
    """An execution context for the batches of one profile. One thread at a time, in one stream.

    It never changes its profile: the first batch after a change has to set up every layer again, and a graph that was
    captured from it would be spoilt (``IExecutionContext::setOptimizationProfileAsync``).
    """

    def __init__(self, contexts: Contexts, source: Source, profile: int, scratch: Scratch, stream: int) -> None:
        self._contexts = contexts
        self._source = source
        self._stream = stream
        self._batch = 0  # what it is set to; 0 while it may be half set
        self._addresses: Mapping[str, int] | None = None
        memory = scratch.at_least(contexts.scratch_size(profile), source.profiles[profile].max)
        self.held: Held = [contexts.new_context(profile, memory, stream)]

    def close(self) -> None:
        self.held.clear()

    def set(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Set it to a batch size and to the buffers of its inputs and outputs, where it is not yet."""
        since = self._contexts.mark()
        if addresses is not self._addresses:
            self._addresses = None
            for spec in (*self._source.inputs, *self._source.outputs):
                if not self.held[0].set_tensor_address(spec.name, addresses[spec.name]):
                    raise self._contexts.failed(f"TensorRT refused the buffer of '{spec.name}'", since)
            self._addresses = addresses
        if batch != self._batch:
            self._batch = 0
            for spec in self._source.inputs:
                if not self.held[0].set_input_shape(spec.name, (batch, *spec.item_shape)):
                    raise self._contexts.failed(f"TensorRT refused a batch of {batch}", since)
            self._batch = batch

    def execute(self) -> None:
        """Put the computation into the stream."""
        since = self._contexts.mark()
        if not self.held[0].execute_async_v3(self._stream):
            self._batch = 0
            raise self._contexts.failed("TensorRT did not run the batch", since)

    def report(self) -> None:
        """Have the layers of what has run last reported to the profiler.

        Raises:
            VggdeployError: the library cannot tell them.
        """
        since = self._contexts.mark()
        if not self.held[0].report_to_profiler():
            raise self._contexts.failed("TensorRT did not report the times of its layers", since)
