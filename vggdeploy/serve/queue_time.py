"""How many replicas there have to be, by how long requests wait for their batch. Ray's controller asks; a replica tells."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

_AT_ONCE = (
    2.0  # at most so many times as many: waiting grows without bound near the capacity, and says no more than "more"
)
_BUSY = 0.6  # of the time, the most that those which stay may compute when one of them goes


class Load:
    """What one replica waited and computed since it was last asked. For any thread.

    Args:
        target: seconds that a request should wait for its batch at most.
    """

    def __init__(self, target: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._target = target
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._requests = 0
        self._waited = self._computed = 0.0

    def answered(self, waited: float) -> None:
        """A request waited so long (seconds) for its batch."""
        with self._lock:
            self._requests += 1
            self._waited += waited

    def computed(self, seconds: float) -> None:
        """A batch ran so long."""
        with self._lock:
            self._computed += seconds

    def told(self, longest: float = 0.0) -> dict[str, float]:
        """``queue_time``: the mean of the requests that were answered, or that of the one which waits longest if that is
        more (``longest``, seconds), as a multiple of the target. ``busy``: the share of the time in which a batch ran.
        """
        with self._lock:
            now = self._clock()
            mean = self._waited / self._requests if self._requests else 0.0
            busy = self._computed / max(now - self._since, 1e-9)
            self._since, self._requests, self._waited, self._computed = now, 0, 0.0, 0.0
        return {"queue_time": max(mean, longest) / self._target, "busy": min(busy, 1.0)}


def wanted_replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray's policy: more of them where requests wait longer than the target, one less where the others have room for its work.

    Args:
        context: `ray.serve.config.AutoscalingContext`, with what each replica told as custom metrics. Ray itself keeps to the
            bounds, and to the delays after which it acts.
    """
    told = context.aggregated_metrics or {}
    waits, busy = (list(told.get(name, {}).values()) for name in ("queue_time", "busy"))
    now: int = context.current_num_replicas
    if not waits:  # nobody has told anything yet
        return context.target_num_replicas, {}
    wait = sum(waits) / len(waits)
    if wait > 1:
        return max(context.target_num_replicas, math.ceil(now * min(wait, _AT_ONCE))), {}
    if context.target_num_replicas > now:  # one is on its way, and what it will change is not known
        return context.target_num_replicas, {}
    if now > 1 and sum(busy) / (now - 1) < _BUSY:
        return now - 1, {}
    return now, {}
