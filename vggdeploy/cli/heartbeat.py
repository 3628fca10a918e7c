"""Lines in a log while a long function works: nothing is silent for three seconds, however long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SOON = 2.5  # seconds of silence that are allowed


class Heartbeat:
    """What is going on, and how long nothing was said of it.

    Args:
        say: writes a line.
        phase: what is going on until somebody tells.
        clock: seconds, ascending.
    """

    def __init__(self, say: Callable[[str], None], phase: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._phase, self._share = phase, 0.0
        self._begun = self._spoken = clock()

    def tell(self, share: float | None, phase: str) -> None:
        """What is going on from now on. A phase of unknown length is said at once, another one when it is due."""
        self._phase, self._share = phase, share or 0.0
        if share is None:
            self._say(phase)
            self.heard()

    def heard(self) -> None:
        """Something was said just now."""
        self._spoken = self._clock()

    def due(self) -> float:
        """Seconds until something has to be said."""
        return self._spoken + SOON - self._clock()

    def beat(self) -> None:
        """Say what is going on, if it is due."""
        if self.due() > 0:
            return
        share = f"{self._share:.0%}, " if self._share else ""
        self._say(f"{self._phase} ({share}{self._clock() - self._begun:.0f} s)")
        self.heard()


@contextmanager
def beating(heart: Heartbeat) -> Iterator[None]:
    """Within it a thread says what is due."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(max(heart.due(), 0.05)):
            heart.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
