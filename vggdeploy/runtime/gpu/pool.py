"""A pool of lanes: bounded, filled when it is needed, so that as many threads run at the same time as there are lanes."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from threading import Lock

from vggdeploy.errors import GpuMemoryError, IncompatibleError, VggdeployError
from vggdeploy.runtime.base import Array
from vggdeploy.runtime.gpu.lane import CLOSED, Lane

# What comes out of the queue beside lanes.
_CLOSED = "closed"
_LOOK = "look again"


class Pool:
    """Lanes, made by ``make`` when all others are at work, up to ``limit``.

    A further lane for which the GPU has no memory, or the library no context, is no error: the pool stays at the size it
    has, and `refused` says so, from the start where that was foreseen. That there is not even room for the first is one.
    """

    def __init__(self, make: Callable[[], Lane], limit: int, *, refused: str = "") -> None:
        self.limit = limit
        self.refused = refused
        self._make = make
        self._lock = Lock()
        self._lanes: list[Lane] = []
        self._closed = False
        # SimpleQueue.put may be called by the garbage collector, whatever this thread holds at that moment.
        self._free: SimpleQueue[Lane | str] = SimpleQueue()
        self._handles: deque[weakref.ref[Pending]] = deque()
        self._handles_lock = Lock()
        self._waiting = 0

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return tuple(self._lanes)

    def take(self) -> Lane:
        """A lane that nobody else uses; give it back with `give`.

        When all are at work, this waits for one. Batches that were started and never asked for do not block: the
        oldest one is finished, and its answer waits in its handle.

        Raises:
            VggdeployError: the session was closed.
        """
        while True:
            try:
                item = self._free.get_nowait()
            except Empty:
                item = self._grow() or self._after_a_handle()
            if item == _CLOSED or self._closed:
                self._free.put(_CLOSED)  # the next one who waits has to see it, too
                raise VggdeployError(*CLOSED)
            if isinstance(item, Lane):
                return item

    def _after_a_handle(self) -> Lane | str:
        """Finish the oldest batch under way; where there is none, wait for a lane or for a new handle."""
        with self._handles_lock:
            wait = not self._handles
            self._waiting += wait
        if not wait:
            self._settle_oldest()
            return _LOOK
        try:
            return self._free.get()  # no timeout: CPython 3.11's SimpleQueue may then wait for ever
        finally:
            with self._handles_lock:
                self._waiting -= 1

    def give(self, lane: Lane) -> None:
        self._free.put(lane)

    def _grow(self) -> Lane | None:
        with self._lock:
            if self._closed:
                raise VggdeployError(*CLOSED)
            if len(self._lanes) >= self.limit:
                return None
            try:
                lane = self._make()
            except (GpuMemoryError, IncompatibleError) as error:  # the library makes no context: seldom with a reason
                if not self._lanes:
                    raise
                self.limit = len(self._lanes)
                self.refused = error.cause
                return None
            self._lanes.append(lane)
            return lane

    @contextmanager
    def alone(self, lane: Lane) -> Iterator[bool]:
        """Whether no thread is in another lane, or makes one, for as long as the block lasts. Waits for none."""
        with ExitStack() as held:
            locks = (self._lock, *(other.lock for other in self._lanes if other is not lane))
            yield all(_taken(lock, held) for lock in locks)

    def start(self, lane: Lane, batch: int, owner: object) -> Pending:
        """A handle of the batch that was put into a lane's stream; the lane comes back with its result.

        ``owner`` lives as long as the handle: the session, which would free the lane when it goes.
        """
        pending = Pending(self, lane, batch, owner)
        with self._handles_lock:
            while self._handles and _is_over(self._handles[0]()):
                self._handles.popleft()
            self._handles.append(weakref.ref(pending))
            waiting = self._waiting
        if waiting:  # for a lane, which from now on comes back only with this handle
            self._free.put(_LOOK)
        return pending

    def _settle_oldest(self) -> None:
        while True:
            with self._handles_lock:
                if not self._handles:
                    return
                pending = self._handles.popleft()()
            if pending is not None and pending.settle():
                return

    def close(self) -> None:
        """Free every lane, after the batch that is on it. A batch that nobody asked for is lost."""
        with self._lock:
            self._closed = True
            with ExitStack() as stack:
                for lane in self._lanes:
                    stack.callback(lane.close)
                self._lanes = []
        self._free.put(_CLOSED)


class Pending:
    """A batch that is under way on the GPU. A handle that is dropped gives its lane back, and its answer is lost."""

    def __init__(self, pool: Pool, lane: Lane, batch: int, owner: object) -> None:
        self._lock = Lock()
        self._lane = lane
        self._batch = batch
        self._owner = owner
        self._results: dict[str, Array] | None = None
        self._error: BaseException | None = None
        self._give_back = weakref.finalize(self, pool.give, lane)
        self._give_back.atexit = False

    @property
    def over(self) -> bool:
        """Whether its lane was given back."""
        return not self._give_back.alive

    def settle(self) -> bool:
        """Wait for the batch, keep its answer or its error, and give the lane back; False when that was done before."""
        with self._lock:
            if self.over:
                return False
            try:
                with self._lane.lock:
                    self._lane.begin()
                    self._results = self._lane.results(self._batch)
            except VggdeployError as error:
                self._error = error
            finally:
                self._give_back()
            return True

    def result(self) -> dict[str, Array]:
        """Wait for the batch: graph output name → array. A second call returns the same.

        Raises:
            VggdeployError: it failed, or the session was closed before.
        """
        self.settle()
        if self._results is None:
            raise self._error or VggdeployError(*CLOSED)
        return self._results


def _taken(lock: Lock, held: ExitStack) -> bool:
    taken = lock.acquire(blocking=False)
    if taken:
        held.callback(lock.release)
    return taken


def _is_over(pending: Pending | None) -> bool:
    return pending is None or pending.over
