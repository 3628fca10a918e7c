"""Requests of many callers, put together into batches: bounded, first come first served, none lost and none run twice.

It knows neither images nor graphs: it calls ``run(group, payloads)``, which gives a result a payload, in their order.
Callers are told through `concurrent.futures.Future`, so they may be threads or any number of event loops.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vggdeploy.errors import Overloaded, VggdeployError
from vggdeploy.system.forks import Birthplace

Payload = TypeVar("Payload")
Result = TypeVar("Result")

# Where a ticket is.
_PREPARING = "preparing"
_READY = "ready"
_GONE = "gone"  # taken into a batch, failed, or cancelled


@dataclass(eq=False)
class Ticket(Generic[Payload, Result]):
    """One request: its place in the queue, and the future of its result. Times are of `time.perf_counter`, seconds."""

    number: int
    group: Any
    future: Future[Result] = field(default_factory=Future)
    payload: Payload | None = None
    rows: int = 1
    state: str = _PREPARING
    arrived: float = field(default_factory=time.perf_counter)
    ready: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    batch_rows: int = 0


@dataclass(frozen=True)
class BatchDone:
    """What an observer is told of each batch: rows and requests in it, and seconds of its run."""

    rows: int
    requests: int
    seconds: float
    failed: bool


class MicroBatcher(Generic[Payload, Result]):
    """A bounded queue, and threads that take batches from it.

    A batch is started as soon as nothing speaks for waiting. It waits, at most ``max_delay`` after its first request was
    ready, while requests are still being prepared, or while it is smaller than the batch before it: a lone request
    is not delayed, and under load batches stay full.

    Args:
        run: a batch's computation. When it fails, each request of the batch is run alone, so that only those fail
            that fail by themselves.
        max_rows: rows of a batch at most.
        max_delay: seconds.
        queue: requests that wait, or are being prepared, at most; one more is answered with `Overloaded`.
        runners: batches that are run at the same time.
        on_batch: called after each batch, in the thread that ran it.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Payload]], Sequence[Result]],
        *,
        max_rows: int,
        max_delay: float,
        queue: int,
        runners: int = 1,
        on_batch: Callable[[BatchDone], None] | None = None,
    ) -> None:
        self.max_rows = max_rows
        self.max_delay = max_delay
        self.queue = queue
        self.runners = runners
        self._run = run
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._ready: list[
            Ticket[Payload, Result]
        ] = []  # by number: who came first is first, however long it was prepared
        self._preparing = 0
        self._active = 0
        self._count = 0
        self._last_rows = 0
        self._closing = False
        self._birthplace = Birthplace()
        # An executor's threads end with the interpreter, in order; a daemon would be cut off inside a native library.
        self._pool = ThreadPoolExecutor(runners, thread_name_prefix="vggdeploy-batch")

    @property
    def waiting(self) -> int:
        """Requests that wait or are being prepared."""
        return self._preparing + len(self._ready)

    @property
    def longest_wait(self) -> float:
        """Seconds since the first of those that wait for their batch was ready for it."""
        with self._changed:
            return time.perf_counter() - self._ready[0].ready if self._ready else 0.0

    def enter(self, group: Any = None) -> Ticket[Payload, Result]:
        """A place in the queue. `submit` or `fail` has to follow; cancelling its future gives the place back.

        ``group``: only requests of the same group share a batch.

        Raises:
            Overloaded: the queue is full.
            VggdeployError: the batcher was closed. IncompatibleError: the process was forked after it was made.
        """
        self._birthplace.check("this queue", again="make it")
        with self._changed:
            if self._closing:
                raise VggdeployError("the queue is closed", "ask before it is closed")
            if self.waiting >= self.queue:
                raise Overloaded(f"{self.waiting} requests are waiting already", "try again a little later")
            self._count += 1
            self._preparing += 1
            ticket: Ticket[Payload, Result] = Ticket(self._count, group)
        ticket.future.add_done_callback(lambda future: self._drop(ticket) if future.cancelled() else None)
        return ticket

    def submit(self, ticket: Ticket[Payload, Result], payload: Payload, rows: int = 1) -> None:
        """The request is ready to be run. One that was cancelled meanwhile is forgotten."""
        with self._changed:
            if ticket.state != _PREPARING:
                return
            self._preparing -= 1
            ticket.payload, ticket.rows, ticket.ready, ticket.state = payload, rows, time.perf_counter(), _READY
            bisect.insort(self._ready, ticket, key=lambda t: t.number)
            if self._active < self.runners:
                self._active += 1
                self._pool.submit(self._drain)
            self._changed.notify_all()

    def fail(self, ticket: Ticket[Payload, Result], error: BaseException) -> None:
        """The request could not be prepared."""
        if self._drop(ticket) and ticket.future.set_running_or_notify_cancel():
            ticket.future.set_exception(error)

    def close(self) -> None:
        """Take no more requests, and wait until those that were taken are answered."""
        if not self._birthplace.here:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self.waiting and not self._active)
        self._pool.shutdown()

    def _drop(self, ticket: Ticket[Payload, Result]) -> bool:
        """Give the place of a ticket back; False when it was gone already."""
        with self._changed:
            state, ticket.state = ticket.state, _GONE
            if state == _PREPARING:
                self._preparing -= 1
            elif state == _READY:
                self._ready.remove(ticket)
            self._changed.notify_all()
            return state != _GONE

    def _drain(self) -> None:
        """Run batches until none is ready."""
        while batch := self._next():
            # From here on a request cannot be cancelled; one that was, between the two lines, is left out.
            if running := [ticket for ticket in batch if ticket.future.set_running_or_notify_cancel()]:
                self._serve(running)

    def _next(self) -> list[Ticket[Payload, Result]]:
        with self._changed:
            while self._ready:
                batch, rows, full = self._fitting()
                wait = 0.0 if full else self._patience(batch[0], rows)
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                del self._ready[: len(batch)]
                for ticket in batch:
                    ticket.state = _GONE
                self._last_rows = rows
                return batch
            self._active -= 1
            self._changed.notify_all()
            return []

    def _fitting(self) -> tuple[list[Ticket[Payload, Result]], int, bool]:
        """The next batch as it stands, its rows, and whether nothing that comes could still join it."""
        batch: list[Ticket[Payload, Result]] = []
        rows = 0
        for ticket in self._ready:
            if rows + ticket.rows > self.max_rows or (batch and ticket.group is not batch[0].group):
                return batch, rows, True
            batch.append(ticket)
            rows += ticket.rows
        return batch, rows, rows == self.max_rows

    def _patience(self, first: Ticket[Payload, Result], rows: int) -> float:
        """Seconds that a batch which is not full still waits."""
        if self._closing or not (self._preparing or self._last_rows > rows):
            return 0.0
        return first.ready + self.max_delay - time.perf_counter()

    def _serve(self, batch: list[Ticket[Payload, Result]]) -> None:
        error = self._attempt(batch)
        if error is None:
            return
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        for ticket in batch:
            alone = self._attempt([ticket])
            if alone is not None:
                ticket.future.set_exception(alone)

    def _attempt(self, batch: list[Ticket[Payload, Result]]) -> BaseException | None:
        """Run these and give them their results; the error where that was none."""
        started, rows = time.perf_counter(), sum(ticket.rows for ticket in batch)
        error: BaseException | None = None
        results: Sequence[Result] = ()
        try:
            results = self._run(batch[0].group, [ticket.payload for ticket in batch])  # type: ignore[misc]
            if len(results) != len(batch):
                raise VggdeployError(
                    f"the session gave {len(results)} results for {len(batch)} requests", "this is a bug: report it"
                )
        except BaseException as caught:  # whatever it is, those who wait have to be told
            error = caught
        finished = time.perf_counter()
        if self._on_batch is not None:
            self._on_batch(BatchDone(rows, len(batch), finished - started, failed=error is not None))
        if error is not None:
            return error
        for ticket, result in zip(batch, results, strict=True):
            ticket.started, ticket.finished, ticket.batch_rows = started, finished, rows
            ticket.payload = None
            ticket.future.set_result(result)
        return None
