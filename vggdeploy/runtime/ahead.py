"""Work that is done before it is asked for: images are prepared while a session runs the ones before them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 8  # decoding is the smaller part of the work: more threads only take cores from the session
T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Generator[tuple[T, Future[R]]]:
    """Each item with its result, computed on a few threads at most ``ahead`` items before it is asked for."""
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
