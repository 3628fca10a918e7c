"""The highest Poisson rate at which ``server`` keeps its p99 under the bound; LoadGen's VALID or INVALID is the judge."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vggdeploy.bench.loadgen.scenarios import Issued, Load, invalid_reasons
from vggdeploy.records import RateSearch, RateTry

MAX_PROBES = 16
MAX_CONFIRMATIONS = 3
PROBE_SHARE = 1 / 4  # of a load's seconds
# LoadGen wants 459 queries for p99 if none is late; of 1000, two may be.
QUERIES = 1000
UP, DOWN = 1.5, 0.5
CLOSE_ENOUGH = 1.05  # the rate that holds and the one that does not
_STEP_BACK = 0.9  # after a full run that did not hold
_SLOWEST = 4  # the time said up front is enough for rates down to this part of the first


@dataclass
class Search:
    """One search. ``limit_seconds`` is said before it starts, and no run is started that would end after it."""

    issue: Callable[[Load], Issued]
    load: Load
    start_qps: float
    clock: Callable[[], float] = time.monotonic
    tries: list[RateTry] = field(default_factory=list)
    _runs: list[tuple[Load, Issued]] = field(default_factory=list)
    _began: float = 0.0

    @property
    def limit_seconds(self) -> float:
        slowest = self.start_qps / _SLOWEST
        return MAX_PROBES * self._seconds(slowest, PROBE_SHARE) + MAX_CONFIRMATIONS * self._seconds(slowest, 1)

    def plan(self) -> str:
        """What is about to be done, in a sentence."""
        return (
            f"at most {MAX_PROBES} runs to find the rate and {MAX_CONFIRMATIONS} to confirm it, "
            f"{math.ceil(self.limit_seconds):,} s at most; the first is at {self.start_qps:.3g} queries a second"
        )

    def run(self) -> tuple[RateSearch, Load, Issued]:
        """Search, and confirm by a run of the whole time.

        Returns:
            The search; the load and the finding of the confirming run or, where no rate holds, of the run whose p99 came
            closest to the bound.
        """
        self._began = self.clock()
        holds, breaks = self._bracket()
        while holds and breaks and breaks / holds > CLOSE_ENOUGH and self._room(math.sqrt(holds * breaks)):
            middle = math.sqrt(holds * breaks)
            holds, breaks = (middle, breaks) if self._holds(middle) else (holds, middle)
        confirmed = self._confirm(holds)
        bound = self.load.latency_bound_ms
        assert bound is not None  # noqa: S101  # Load has checked it
        result = RateSearch(bound_ms=bound, qps=confirmed, tries=tuple(self.tries), seconds=self.clock() - self._began)
        return result, *(self._runs[-1] if confirmed else self._closest())

    def _bracket(self) -> tuple[float | None, float | None]:
        """A rate that holds and a higher one that does not; None for one that was not found."""
        holds = breaks = None
        rate = self.start_qps
        while (holds is None or breaks is None) and self._room(rate):
            if self._holds(rate):
                holds, rate = rate, rate * UP
            else:
                breaks, rate = rate, rate * DOWN
        return holds, breaks

    def _confirm(self, rate: float | None) -> float | None:
        for _ in range(MAX_CONFIRMATIONS):
            if rate is None or not self._in_time(rate, 1):
                return None
            if self._try(rate, confirms=True):
                return rate
            rate *= _STEP_BACK
        return None

    def _holds(self, rate: float) -> bool:
        """A rate that does not hold is tried once more: one hiccup of the machine must not be the end of the search.
        One at which queries pile up is not."""
        if self._try(rate):
            return True
        return not self._runs[-1][1].piled_up and self._room(rate) and self._try(rate)

    def _try(self, rate: float, *, confirms: bool = False) -> bool:
        load = self._load(rate, 1 if confirms else PROBE_SHARE)
        issued = self.issue(load)
        self._runs.append((load, issued))
        self.tries.append(
            RateTry(
                qps=rate,
                queries=issued.queries,
                p50_ms=issued.p50_ms,
                p99_ms=issued.p99_ms,
                valid=issued.valid,
                reasons=tuple(invalid_reasons(load, issued)),
                confirms=confirms,
            )
        )
        return issued.valid

    def _load(self, rate: float, share: float) -> Load:
        return replace(
            self.load,
            find_qps=False,
            target_qps=rate,
            seconds=self.load.seconds * share,
            min_queries=max(QUERIES, self.load.min_queries),
        )

    def _seconds(self, rate: float, share: float) -> float:
        return max(self.load.seconds * share, QUERIES / rate)

    def _room(self, rate: float) -> bool:
        return len(self.tries) < MAX_PROBES and self._in_time(rate, PROBE_SHARE)

    def _in_time(self, rate: float, share: float) -> bool:
        """Whether a run may start; one that probes leaves the time for a run that confirms."""
        after = 0 if share == 1 else self._seconds(rate, 1)
        return self.clock() - self._began + self._seconds(rate, share) + after <= self.limit_seconds

    def _closest(self) -> tuple[Load, Issued]:
        full = [run for run, tried in zip(self._runs, self.tries, strict=True) if tried.confirms]
        return min(full or self._runs, key=lambda run: run[1].p99_ms or math.inf)


def no_rate(found: RateSearch) -> str:
    """The reason of a search that found none."""
    full = [tried for tried in found.tries if tried.confirms]
    closest = min(full or found.tries, key=lambda t: t.p99_ms or math.inf)
    near = f"p99 of {closest.p99_ms:.3g} ms" if closest.p99_ms else "no p99"
    return f"no rate holds p99 ≤ {found.bound_ms:g} ms; closest: {near} at {closest.qps:.3g} queries a second"
