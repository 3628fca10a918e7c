"""Work that others should not notice, in a thread of a low priority."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
# nice: with the lowest a thread gets a hundredth of a core beside one that always computes, with a low one a tenth.
LOW, LOWEST = 10, 19


def lower_priority(nice: int) -> None:
    """Give the calling thread this priority, if its own is higher, for good; the threads that it starts have it too.

    On Linux alone: elsewhere a priority belongs to the whole process, and nothing is changed. Nor is it where a sandbox
    refuses.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))


def behind(work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread of its own with a low priority; raises what it raises."""
    outcome: list[Future[T]] = [Future()]

    def run() -> None:
        lower_priority(LOW)
        finish(work, outcome[0])

    thread = threading.Thread(target=run, name="vggdeploy-behind", daemon=True)
    thread.start()
    try:
        return outcome[0].result()
    finally:
        thread.join()  # also after Ctrl-C: it computes with what the caller closes
        outcome.clear()  # as in `finish`


def finish(work: Callable[[], T], done: Future[T]) -> None:
    """Do it, and put what came of it into ``done``."""
    try:
        done.set_result(work())
    except BaseException as error:  # whoever waits for it is told
        done.set_exception(error)
    finally:
        del done  # else an error would hold itself: its traceback has this frame
