"""Variants measured against each other: interleaved in rounds, on distinct real inputs, with checked outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from vggdeploy.bench.entries import Entry
from vggdeploy.bench.load import BUSY_LIMIT, CpuWatch
from vggdeploy.bench.stats import drift, percentile, quantiles, ratio_interval
from vggdeploy.errors import UsageError
from vggdeploy.parity import check_golden
from vggdeploy.parity.compare import Array
from vggdeploy.records import BenchRow
from vggdeploy.runtime import CheckedSession, backend_for, open_session
from vggdeploy.types import Verdict

DRIFT_LIMIT = 0.25  # spread of the round medians
MIN_CALLS = 5  # a round
WARMUP_CALLS = 2  # after each switch: the other backend's threads and caches have to give way
SETTLE_SECONDS = 0.02  # idle threads of the backend before go on spinning for some milliseconds


@dataclass
class Candidate:
    """One variant at one batch size, open, with what was measured of it."""

    entry: Entry
    session: CheckedSession
    batch: int
    load_ms: float
    verdict: Verdict
    reasons: list[str]
    rounds: list[list[float]] = field(default_factory=list)
    _next: int = 0

    def call(self, images: Array) -> float:
        """Milliseconds of one call on the next ``batch`` images of the pool."""
        count = len(images)
        rows = np.arange(self._next, self._next + self.batch) % count
        self._next = (self._next + self.batch) % count
        feeds = {self.session.inputs[0].name: images[rows]}
        start = time.perf_counter_ns()
        self.session.run(feeds)
        return (time.perf_counter_ns() - start) / 1e6

    def medians(self) -> list[float]:
        return [float(np.median(times)) for times in self.rounds]


def measure(
    entries: Sequence[Entry],
    images: Array,
    *,
    batches: Sequence[int],
    seconds: float = 2.0,
    rounds: int = 7,
    threads: int | None = None,
    on_progress: Callable[[int], None] = lambda steps: None,
) -> list[BenchRow]:
    """Latency and throughput of each entry at each batch size; the first entry is the baseline.

    Args:
        images: the pool of distinct inputs, as the graph wants them. Batches walk through it.
        seconds: measuring time a variant and batch size, over all rounds.
        rounds: how often the candidates take turns.

    Raises:
        UsageError: a batch outside a variant's range, or one larger than the pool.
    """
    rows: list[BenchRow] = []
    for batch in batches:
        _check_batch(batch, entries, len(images))
        with ExitStack() as stack:
            candidates = [open_checked(stack, entry, batch, threads) for entry in entries]
            watch = CpuWatch()
            for _ in range(rounds):
                for candidate in candidates:
                    candidate.rounds.append(_round(candidate, images, seconds / rounds))
                    on_progress(1)
            others = watch.others()
            rows += [_row(c, candidates[0], others) for c in candidates]
    return rows


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


def open_checked(stack: ExitStack, entry: Entry, batch: int, threads: int | None) -> Candidate:
    """Open an entry's session, and check the golden pair."""
    bundle, variant, device = entry.bundle, entry.variant, entry.device
    start = time.perf_counter_ns()
    session = stack.enter_context(open_session(bundle, variant, device=device, threads=threads))
    load_ms = (time.perf_counter_ns() - start) / 1e6
    record = check_golden(session, bundle, variant, device)
    reasons = [f"wrong output: {reason}" for reason in record.reasons] if record.verdict is Verdict.FAIL else []
    verdict = record.verdict if reasons else variant.verdict
    return Candidate(entry, session, batch, load_ms, verdict, reasons)


def _round(candidate: Candidate, images: Array, seconds: float) -> list[float]:
    time.sleep(SETTLE_SECONDS)
    for _ in range(WARMUP_CALLS):
        candidate.call(images)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        times.append(candidate.call(images))
    return times


def _row(candidate: Candidate, baseline: Candidate, others: float | None) -> BenchRow:
    times = [t for r in candidate.rounds for t in r]
    medians = candidate.medians()
    ratio, low, high = ratio_interval(baseline.medians(), medians)
    reasons = list(candidate.reasons)
    if others is not None and others > BUSY_LIMIT:
        reasons.append(f"busy machine: other processes used {others:.0%} of the cores at batch {candidate.batch}")
    if drift(medians) > DRIFT_LIMIT:
        reasons.append(f"unstable: the rounds' medians spread by {drift(medians):.0%}")
    p99 = percentile(times, 99)
    return BenchRow(
        variant=candidate.entry.name,
        backend=backend_for(candidate.entry.variant).name,
        device=str(candidate.entry.device),
        batch=candidate.batch,
        rounds=len(medians),
        calls=len(times),
        p50_ms=float(np.percentile(times, 50)),
        p90_ms=percentile(times, 90),
        p99_ms=p99,
        images_per_second=candidate.batch * len(times) / (sum(times) / 1e3),
        load_ms=candidate.load_ms,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        verdict=candidate.verdict,
        valid=not reasons,
        reasons=tuple(reasons),
        sha256=candidate.entry.sha256,
        round_medians_ms=tuple(medians),
        quantiles_ms=quantiles(times),
    )
