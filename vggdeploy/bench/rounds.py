"""Variants measured against each other: interleaved in rounds, on distinct real inputs, with checked outputs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import msgspec

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.crew import Crew
from vggdeploy.bench.interference import Counters, conditions, megahertz
from vggdeploy.bench.rows import Measured, row_of
from vggdeploy.errors import UsageError
from vggdeploy.parity.reference import Array
from vggdeploy.records import BenchRow, Conditions, FreshStart
from vggdeploy.types import OnProgress, Steps, silent

HOST_SECONDS = 0.3  # for taking a call of the engine apart
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Plan:
    """How to measure: ``seconds`` a variant and batch size, over all ``rounds``; on ``pin``'s CPUs, where there are any."""

    batches: Sequence[int] = (1, 8)
    seconds: float = 2.0
    rounds: int = 7
    threads: int | None = None
    pin: Sequence[int] = ()
    percentile: int = 90

    def __post_init__(self) -> None:
        if not 0 < self.seconds < inf or self.rounds < 3:
            raise UsageError(
                f"nothing can be measured in {self.seconds} seconds and {self.rounds} rounds",
                "give a time above 0 and at least 3 rounds",
            )
        if self.percentile not in PERCENTILES:
            raise UsageError(
                f"the percentile cannot be {self.percentile}", f"give one of {', '.join(map(str, PERCENTILES))}"
            )
        if foreign := set(self.pin) - os.sched_getaffinity(0):
            raise UsageError(
                f"this process may not run on CPU {', '.join(map(str, sorted(foreign)))}",
                f"choose among {', '.join(map(str, sorted(os.sched_getaffinity(0))))}",
            )


@dataclass(frozen=True)
class Comparison:
    """All that was measured in one run."""

    rows: tuple[BenchRow, ...]
    fresh: tuple[FreshStart, ...]
    conditions: Conditions
    threads: int
    harness_cpu_share: float


def measure(
    entries: Sequence[Entry],
    images: Array,
    plan: Plan,
    *,
    on_progress: OnProgress = silent,
) -> Comparison:
    """Latency and throughput of each entry at each batch size; the first entry is the baseline.

    Each backend has a process of its own. They take turns; a worker without a turn sleeps.

    Args:
        images: the pool of distinct inputs, as the graph wants them. Batches walk through it.

    Raises:
        UsageError: a batch outside a variant's range, or one larger than the pool.
        VggdeployError: a variant that cannot be opened or run, or a process that was killed.
    """
    for batch in plan.batches:
        _check_batch(batch, entries, len(images))
    about = conditions(plan.pin)
    before, clock = Counters.read(), megahertz()
    began, own = time.monotonic(), time.process_time()
    rows: list[BenchRow] = []
    steps = Steps(on_progress, len(entries) * len(plan.batches) * plan.rounds, "measuring")
    with Crew(images, batches=plan.batches, threads=plan.threads, pin=plan.pin) as crew:
        opened = [crew.open(entry) for entry in entries]
        checked = [crew.check(entry) for entry in entries]
        for batch in plan.batches:
            candidates = [
                Measured(entry, batch, o, c) for entry, (o, _), c in zip(entries, opened, checked, strict=True)
            ]
            rows += _rounds(crew, candidates, plan, steps)
    share = (time.process_time() - own) / (time.monotonic() - began)
    after = Counters.read()
    return Comparison(
        rows=tuple(rows),
        fresh=tuple(fresh for _, fresh in opened),
        conditions=msgspec.structs.replace(
            about,
            swapped_before=before.swapped,
            swapped_after=after.swapped,
            throttled_before=before.throttled,
            throttled_after=after.throttled,
            mhz_before=clock,
            mhz_after=megahertz(),
        ),
        threads=opened[0][0].threads,
        harness_cpu_share=share,
    )


def _rounds(crew: Crew, candidates: Sequence[Measured], plan: Plan, steps: Steps) -> list[BenchRow]:
    """Candidates at one batch size, in turns; then their outputs once more."""
    before = Counters.read()
    for _ in range(plan.rounds):
        for one in candidates:
            one.turns.append(crew.turn(one.entry, one.batch, plan.seconds / plan.rounds))
            steps.advance()
    doubts, unchecked = Counters.read().doubts(before)
    for one in candidates:
        finished = crew.finish(one.entry, one.batch, min(HOST_SECONDS, plan.seconds))
        one.wrong, one.reasons, one.not_checked = finished.wrong, doubts, unchecked
        one.host = finished.host
    return [row_of(one, candidates[0], plan.percentile) for one in candidates]


def _check_batch(batch: int, entries: Sequence[Entry], pool: int) -> None:
    for entry in entries:
        takes = entry.variant.batch
        if not takes.min <= batch <= takes.max:
            raise UsageError(
                f"batch {batch} is outside {takes.min}…{takes.max} of {entry.name}",
                "measure a smaller batch, or export/build with a larger maximum",
            )
    if batch > pool:
        raise UsageError(f"batch {batch} needs more distinct images than the {pool} there are", "use a smaller batch")
