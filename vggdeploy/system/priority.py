"""Work that others must not notice: in a thread of the lowest priority."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_LOWEST = 19  # nice


def lowest_priority() -> None:
    """Give the calling thread the lowest priority, for good; the threads that it starts have it too.

    On Linux alone: elsewhere a priority belongs to the whole process, and nothing is changed.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def at_lowest_priority(work: Callable[[], T]) -> T:
    """What ``work`` gives, from a thread of its own with the lowest priority; raises what it raises."""
    done: Future[T] = Future()

    def run() -> None:
        lowest_priority()
        try:
            done.set_result(work())
        except BaseException as error:  # whoever waits for it is told
            done.set_exception(error)

    thread = threading.Thread(target=run, name="vggdeploy-background", daemon=True)
    thread.start()
    try:
        return done.result()
    finally:
        thread.join()
