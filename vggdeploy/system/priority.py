"""Work that others should not notice, in a thread of a low priority."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    """What ``work`` gives, in a thread of its own with a low priority; raises what it raises.

    Also after Ctrl-C it comes back when the work has ended, which computes with what the caller closes.
    """
    with ThreadPoolExecutor(1, "vggdeploy-behind", initializer=lower_priority, initargs=(LOW,)) as pool:
        return pool.submit(work).result()
