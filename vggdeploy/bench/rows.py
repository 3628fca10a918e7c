"""From the turns of the candidates to the rows of a report: percentiles, ratios, and whether a row counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.interference import BUSY_LIMIT, FREQUENCY_LIMIT
from vggdeploy.bench.messages import CheckReply, OpenReply, TurnReply
from vggdeploy.bench.stats import calls_needed, compared, percentile, quantiles, ratio_interval, spread
from vggdeploy.records import BenchRow, HostTimes
from vggdeploy.runtime import backend_for
from vggdeploy.types import SpeedOutcome, Verdict

SPREAD_LIMIT = 0.15  # of twelve round medians: then the standard error of their median is 5.4%
_ROUNDS = 12


@dataclass
class Measured:
    """What workers said of one entry at one batch size, in ``processes`` one after another. ``wrong``: what is wrong with
    its outputs after the turns."""

    entry: Entry
    batch: int
    opened: OpenReply
    checked: CheckReply
    processes: int = 1
    turns: list[TurnReply] = field(default_factory=list)
    wrong: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    host: HostTimes | None = None

    def medians(self) -> list[float]:
        """Milliseconds, a round each."""
        return [float(np.median(turn.nanoseconds)) / 1e6 for turn in self.turns]

    def times(self) -> list[float]:
        return [ns / 1e6 for turn in self.turns for ns in turn.nanoseconds]

    @property
    def images(self) -> int:
        return self.batch * sum(len(turn.nanoseconds) for turn in self.turns)


def row_of(measured: Measured, baseline: Measured, asked: int) -> BenchRow:
    """One row. ``asked`` is the percentile that there have to be enough calls for."""
    times, medians = measured.times(), measured.medians()
    ratio, low, high = ratio_interval(baseline.medians(), medians, measured.processes)
    doubts, unchecked = _doubts(measured, asked)
    reasons = (*measured.checked.reasons, *measured.wrong, *measured.reasons, *doubts)
    joules = [turn.joules for turn in measured.turns]
    clocks = [turn.megahertz for turn in measured.turns if turn.megahertz is not None]
    counted = [j for j in joules if j is not None]
    return BenchRow(
        variant=measured.entry.name,
        backend=backend_for(measured.entry.variant).name,
        device=str(measured.entry.device),
        on_cpu=measured.entry.on_cpu,
        batch=measured.batch,
        rounds=len(medians),
        processes=measured.processes,
        calls=len(times),
        p50_ms=float(np.percentile(times, 50)),
        p90_ms=percentile(times, 90),
        p99_ms=percentile(times, 99),
        images_per_second=measured.images / (sum(times) / 1e3),
        load_ms=measured.opened.load_ms,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        comparison=SpeedOutcome.BASELINE if measured is baseline else compared(low, high),
        verdict=Verdict.FAIL if measured.wrong else measured.checked.verdict,
        valid=not reasons,
        reasons=reasons,
        not_checked=unchecked,
        sha256=measured.opened.sha256,
        round_medians_ms=tuple(medians),
        quantiles_ms=quantiles(times),
        cpu_seconds_per_image=sum(turn.cpu_seconds for turn in measured.turns) / measured.images,
        joules_per_image=sum(counted) / measured.images if counted and len(counted) == len(joules) else None,
        joules_from="" if len(counted) != len(joules) else "RAPL" if measured.entry.device.kind == "cpu" else "NVML",
        others_share=_mean([turn.others for turn in measured.turns]),
        mhz_low=min(clocks, default=None),
        mhz_high=max(clocks, default=None),
        host=measured.host,
    )


def unstable(medians: Sequence[float]) -> bool:
    """Whether the median of these rounds is known no better than that of twelve that spread by `SPREAD_LIMIT`: its standard
    error is 1.2533 · spread ∕ √rounds (of a normal distribution). Fewer rounds may not spread further."""
    return spread(medians) > SPREAD_LIMIT * math.sqrt(max(len(medians), _ROUNDS) / _ROUNDS)


def _doubts(measured: Measured, asked: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reasons why something else than the variant may have been measured, and what could not be checked."""
    reasons: list[str] = []
    unchecked = [*measured.not_checked]
    turns, calls, medians = measured.turns, len(measured.times()), measured.medians()
    others = _mean([turn.others for turn in turns])
    if others is None:
        unchecked.append("other processes: no /proc/stat")
    elif others > BUSY_LIMIT:
        reasons.append(f"busy machine: other processes used {others:.0%} of the cores")
    if unstable(medians):
        reasons.append(f"unstable: the medians of {len(medians)} rounds spread by {spread(medians):.0%}")
    if calls < calls_needed(asked):
        reasons.append(f"too few calls for p{asked}: {calls} of {calls_needed(asked)}; give it more --duration")
    clocks = [turn.megahertz for turn in turns if turn.megahertz is not None]
    if not clocks:
        unchecked.append("frequency: no /sys/devices/system/cpu/cpu*/cpufreq")
    elif (max(clocks) - min(clocks)) / max(clocks) > FREQUENCY_LIMIT:
        reasons.append(f"frequency: the clock went from {max(clocks):.0f} to {min(clocks):.0f} MHz between rounds")
    if slowed := sorted({reason for turn in turns for reason in turn.slowed}):
        reasons.append(f"throttled: the GPU was slowed down: {', '.join(slowed)}")
    on_gpu = _mean([turn.gpu_others for turn in turns])
    if on_gpu is not None and on_gpu > BUSY_LIMIT:
        reasons.append(f"busy GPU: other processes used {on_gpu:.0%} of its time")
    unchecked += dict.fromkeys(text for turn in turns for text in turn.not_checked)
    return tuple(reasons), tuple(unchecked)


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return max(0.0, sum(known) / len(known)) if known else None


def sentences(rows: Sequence[BenchRow]) -> tuple[str, ...]:
    """A sentence a batch size."""
    batches = dict.fromkeys(row.batch for row in rows)
    return tuple(_sentence([row for row in rows if row.batch == batch]) for batch in batches)


def _sentence(rows: Sequence[BenchRow]) -> str:
    """Of the rows at one batch size; the first is the baseline."""
    baseline, others = rows[0], rows[1:]
    where = f"batch {baseline.batch}"
    if not baseline.valid:
        return f"{where}: not decided, the baseline {baseline.variant} is invalid: {baseline.reasons[0]}"
    if not others:
        return f"{where}: valid, {baseline.variant} takes {baseline.p50_ms:.3f} ms (median)"
    counted = [row for row in others if row.valid]
    left_out = [row.variant for row in others if not row.valid]
    rest = f"; not decided, since invalid: {', '.join(left_out)}" if left_out else ""
    if not counted:
        return f"{where}: not decided, every row but the baseline {baseline.variant} is invalid"
    best = max(counted, key=lambda row: row.ratio)
    number = f"{best.ratio:.2f} × {baseline.variant} ({best.ratio_low:.2f}–{best.ratio_high:.2f})"
    if best.comparison is SpeedOutcome.FASTER:
        return f"{where}: {best.variant} is faster, {number}{rest}"
    if best.comparison is SpeedOutcome.NO_DIFFERENCE:
        return f"{where}: no difference shown between {baseline.variant} and {best.variant}, {number}{rest}"
    return f"{where}: the baseline {baseline.variant} is the fastest, {best.variant} is {number}{rest}"
