"""Work beside the callers' path: in a thread of the lowest priority, from a bounded list."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from vggdeploy.serve.telemetry import LOGGER
from vggdeploy.system.priority import LOWEST, lower_priority

Item = TypeVar("Item")
_JOIN_SECONDS = 10.0


class Aside(Generic[Item]):
    """A thread that does ``work`` for each item, in their order.

    The threads that it starts have that priority too: so also a runtime's own that are started by ``begin`` or by what
    `do` is given.

    Args:
        begin: called first, in the thread.
        work: must not raise; where it does, the item is lost, and the log says so.
        end: called last, in the thread.
        most: items that wait at most.
        room: bytes that they may hold together.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Item], None],
        *,
        begin: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
        most: int = 64,
        room: int = 64 * 2**20,
    ) -> None:
        self._work, self._begin, self._end = work, begin, end
        self._most, self._room, self._held = most, room, 0
        self._items: deque[tuple[Item, int]] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = self._working = False
        self._thread = threading.Thread(target=self._run, name=f"vggdeploy-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, item: Item, size: int = 0) -> bool:
        """Whether there was room for it. Never waits for the work."""
        with self._changed:
            if self._closing or len(self._items) >= self._most or self._held + size > self._room:
                return False
            self._items.append((item, size))
            self._held += size
            self._changed.notify_all()
        return True

    def do(self, job: Callable[[], None]) -> None:
        """Do this soon, in the thread and before what waits; once, where it waits already. Never waits for it.

        Args:
            job: as ``work``, it must not raise.
        """
        with self._changed:
            if job not in self._jobs:
                self._jobs.append(job)
                self._changed.notify_all()

    def clear(self) -> int:
        """Forget what waits; how much that was."""
        with self._changed:
            count, self._held = len(self._items), 0
            self._items.clear()
            self._changed.notify_all()
        return count

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is left to do; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._items or self._jobs or self._working), seconds)

    def close(self) -> None:
        """Forget what waits, and end after the item that is under way. A second call does nothing."""
        self.clear()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        lower_priority(LOWEST)
        self._begin()
        while True:
            with self._changed:
                self._working = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._jobs or self._closing)
                if self._closing:
                    break
                self._working = True
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    item, size = self._items.popleft()
                    self._held -= size
            try:
                if job is None:
                    self._work(item)
                else:
                    job()
            except Exception:
                LOGGER.exception("a bug beside the callers' path; they are not concerned")
        self._end()
