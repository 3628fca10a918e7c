"""How a step times what runs on a GPU: warmed up first, since idle clocks are a fifth of those under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

_WARM_SECONDS = 0.4
_LEAST_CALLS = 5


@dataclass(frozen=True)
class Timed:
    """``single``: median seconds of a call that is waited for; ``flow``: seconds a call, many put in one after another."""

    single: float
    flow: float
    calls: int


def timed(call: Callable[[], object], wait: Callable[[], object], seconds: float = 0.8) -> Timed:
    """Time ``call``, which may return before the GPU has finished; ``wait`` returns once it has."""
    _repeat(call, wait, _WARM_SECONDS)
    single = _repeat(call, wait, seconds / 2)
    calls = max(_LEAST_CALLS, round(seconds / 2 / median(single)))
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return Timed(median(single), (time.perf_counter() - start) / calls, len(single) + calls)


def _repeat(call: Callable[[], object], wait: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return times
