"""Variants measured against each other: interleaved in rounds, on distinct real inputs, with checked outputs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from vggdeploy.bench.candidates import MIN_CALLS, WARMUP_CALLS, Entry
from vggdeploy.bench.crew import Crew
from vggdeploy.bench.interference import Counters, conditions, megahertz
from vggdeploy.bench.messages import CheckReply, OpenReply, TurnReply, joined
from vggdeploy.bench.rows import Measured, row_of, unstable
from vggdeploy.bench.stats import shares
from vggdeploy.errors import UsageError
from vggdeploy.parity.metrics import distance
from vggdeploy.parity.reference import Array
from vggdeploy.records import BenchRow, Conditions, FreshStart
from vggdeploy.types import OnProgress, Steps, silent

DEFAULT_ROUNDS, MOST_PROCESSES = 12, 4
MORE = 1  # times the rounds of a batch size are measured again, at most, if one of its rows is unstable
MAX_LAPS, LAP_SECONDS = 4, 0.05  # of a round, and the shortest turn in one
HOST_SECONDS = 0.3  # for taking a call of the engine apart
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Plan:
    """How to measure: ``seconds`` a variant and batch size, over all ``rounds``, in so many ``processes`` one after another
    (None: `MOST_PROCESSES`, or as many as there are rounds); on ``pin``'s CPUs, where there are any. ``more``: how many
    times all that may be measured again where a row is unstable."""

    batches: Sequence[int] = (1, 8)
    seconds: float = 2.0
    rounds: int = DEFAULT_ROUNDS
    threads: int | None = None
    pin: Sequence[int] = ()
    percentile: int = 90
    processes: int | None = None
    more: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf or self.rounds < 3:
            raise UsageError(
                f"nothing can be measured in {self.seconds} seconds and {self.rounds} rounds",
                "give a time above 0 and at least 3 rounds",
            )
        if not 1 <= self.parts <= self.rounds:
            raise UsageError(
                f"{self.rounds} rounds cannot be measured in {self.parts} processes",
                "give at least one process, and at least one round for each",
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

    @property
    def parts(self) -> int:
        return min(MOST_PROCESSES, self.rounds) if self.processes is None else self.processes


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

    Each backend has a process of its own. They take turns; a worker without a turn sleeps. After a share of the rounds all
    begin again in new processes: what a process got by chance is part of what the intervals cover. Batch sizes of which a
    row is unstable get more of both (see `Plan`): what a longer measurement settles is not refused.

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
    steps = Steps(on_progress, len(entries) * len(plan.batches) * plan.rounds, "measuring")
    candidates: dict[int, list[Measured]] = {}
    fresh: list[FreshStart] = []
    parts = shares(plan.rounds, plan.parts)
    for number in range(plan.parts * (1 + plan.more)):
        batches = plan.batches if number < plan.parts else _unsettled(candidates)
        if not batches:
            break
        rounds = parts[min(number, plan.parts - 1)]  # the smallest share, as `by_process` takes them apart
        if number >= plan.parts:
            steps.more(len(entries) * len(batches) * rounds, "measuring again what was unstable")
        with Crew(images, batches=plan.batches, threads=plan.threads, pin=plan.pin) as crew:
            if not candidates:
                opened, fresh = _open_fresh(crew, entries)
            else:
                opened = [crew.open(entry) for entry in entries]
            checked = [crew.check(entry, golden=not candidates) for entry in entries]
            for batch in batches:
                first = batch not in candidates
                if first:
                    candidates[batch] = [
                        Measured(entry, batch, o, c, 0) for entry, o, c in zip(entries, opened, checked, strict=True)
                    ]
                _doubt(candidates[batch], checked)
                _take_turns(crew, candidates[batch], plan, rounds, steps, host=first)
    share = (time.process_time() - own) / (time.monotonic() - began)
    after = Counters.read()
    return Comparison(
        rows=tuple(row_of(one, each[0], plan.percentile) for each in candidates.values() for one in each),
        fresh=tuple(fresh),
        conditions=msgspec.structs.replace(
            about,
            swapped_before=before.swapped,
            swapped_after=after.swapped,
            throttled_before=before.throttled,
            throttled_after=after.throttled,
            mhz_before=clock,
            mhz_after=megahertz(),
        ),
        threads=opened[0].threads,
        harness_cpu_share=share,
    )


def _unsettled(candidates: Mapping[int, Sequence[Measured]]) -> list[int]:
    """The batch sizes of which a row is unstable, and would not be with more rounds of the same spread."""
    return [batch for batch, each in candidates.items() if any(unstable(one.medians()) for one in each)]


def _open_fresh(crew: Crew, entries: Sequence[Entry]) -> tuple[list[OpenReply], list[FreshStart]]:
    both = [crew.open_fresh(entry) for entry in entries]
    return [opened for opened, _ in both], [fresh for _, fresh in both]


def _doubt(candidates: Sequence[Measured], checked: Sequence[CheckReply]) -> None:
    """A process whose answers are others than the first one's, which the golden pair was run in, is wrong."""
    for one, found in zip(candidates, checked, strict=True):
        for first, again in zip(one.checked.answers, found.answers, strict=True):
            if not distance(np.asarray(first), np.asarray(again)) <= one.checked.tolerance:
                one.wrong = tuple(dict.fromkeys((*one.wrong, "wrong output: another process has another answer")))


def _laps(candidates: Sequence[Measured], seconds: float) -> int:
    """How many times all take a part of their turn in one round: the shorter the parts, the more of what the machine does
    hits all alike. None is so short that a candidate could not make its calls in it."""
    slowest = max((one.medians()[-1] for one in candidates if one.turns), default=math.inf)
    shortest = max(LAP_SECONDS, slowest * (MIN_CALLS + WARMUP_CALLS) / 1e3)
    return max(1, min(MAX_LAPS, int(seconds / shortest)))


def _take_turns(
    crew: Crew, candidates: Sequence[Measured], plan: Plan, rounds: int, steps: Steps, *, host: bool
) -> None:
    """Candidates at one batch size in one process each, in turns; then their outputs once more. Whoever begins a lap
    ends the next, so that none has always the same one before it."""
    before = Counters.read()
    for one in candidates:
        one.processes += 1
    for number in range(rounds):
        laps = _laps(candidates, plan.seconds / plan.rounds)
        replies: list[list[TurnReply]] = [[] for _ in candidates]
        for lap in range(laps):
            start = (number * laps + lap) % len(candidates)
            for place in (*range(start, len(candidates)), *range(start)):
                one = candidates[place]
                replies[place].append(crew.turn(one.entry, one.batch, plan.seconds / plan.rounds / laps))
        for one, parts in zip(candidates, replies, strict=True):
            one.turns.append(joined(parts))
            steps.advance()
    doubts, unchecked = Counters.read().doubts(before)
    for one in candidates:
        finished = crew.finish(one.entry, one.batch, min(HOST_SECONDS, plan.seconds) if host else 0.0)
        one.wrong = tuple(dict.fromkeys((*one.wrong, *finished.wrong)))
        one.reasons = tuple(dict.fromkeys((*one.reasons, *doubts)))
        one.not_checked = tuple(dict.fromkeys((*one.not_checked, *unchecked)))
        one.host = finished.host or one.host


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
