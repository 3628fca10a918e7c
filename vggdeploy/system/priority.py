"""Work that others must not notice: in a thread of the lowest priority."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_LOWEST = 19  # nice


def lowest_priority() -> None:
    """Give the calling thread the lowest priority, for good; the threads that it starts have it too.

    On Linux alone: elsewhere a priority belongs to the whole process, and nothing is changed.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


class Background:
    """Work in a thread of the lowest priority, which hands back what has to be done with the priority of who waits for it."""

    def __init__(self) -> None:
        self._handed_back: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()

    def run(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; raises what it raises. Once."""
        done: Future[T] = Future()

        def all_of_it() -> None:
            lowest_priority()
            finish(work, done)
            self._handed_back.put(None)

        thread = threading.Thread(target=all_of_it, name="vggdeploy-background", daemon=True)
        thread.start()
        try:
            while job := self._handed_back.get():
                finish(*job)
        except BaseException:  # Ctrl-C: nobody waits any more, and what is handed back fails
            while job := self._handed_back.get():
                job[1].cancel()
            raise
        thread.join()
        return done.result()

    def in_front(self, job: Callable[[], T]) -> T:
        """For the work: what ``job`` gives in the thread that waits for the work, whose priority its own threads have too.

        Raises:
            What ``job`` raises. CancelledError: nobody waits any more.
        """
        done: Future[T] = Future()
        self._handed_back.put((job, done))
        return done.result()


def finish(work: Callable[[], T], done: Future[T]) -> None:
    """Do it, and put what came of it into ``done``."""
    try:
        done.set_result(work())
    except BaseException as error:  # whoever waits for it is told
        done.set_exception(error)
