"""From measured times to what is reported. No clock is read here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vggdeploy.types import SpeedOutcome

Interval = tuple[float, float, float]  # the estimate, the lower end, the upper end
Run = Sequence[float]
MIN_RUNS = 3  # a side, from which on they show themselves how much runs differ
# Standard deviation of the time of one and the same build from one run to the next, as a share, where no more is known:
# other addresses, other pages, another neighbour on the machine. benchmarks/harness_power.py measures it.
RUN_SPREAD = 0.02
_LEVEL = 0.95
_NORMAL = 1.959964
_STUDENT = (
    (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (6, 2.44691), (7, 2.36462), (8, 2.30600),
    (9, 2.26216), (10, 2.22814), (12, 2.17881), (15, 2.13145), (20, 2.08596), (30, 2.04227), (60, 2.00030),
    (math.inf, _NORMAL),
)  # fmt: skip


def calls_needed(q: float) -> int:
    """Samples from which on a distribution-free one-sided 95% upper bound of the ``q``-th percentile exists: the smallest n
    with 1 − (q/100)ⁿ ≥ 0.95 (Wilks 1941). 29 for p90, 299 for p99."""
    return math.ceil(math.log(0.05) / math.log(q / 100))


def percentile(times: Sequence[float], q: float) -> float | None:
    """The ``q``-th percentile (0–100), or None with fewer than `calls_needed` samples: a p99 of 20 samples is the
    maximum under another name."""
    return float(np.percentile(np.asarray(times), q)) if len(times) >= calls_needed(q) else None


def quantiles(times: Sequence[float]) -> tuple[float, ...]:
    """The 0th, 1st, … 100th percentile: the whole distribution in 101 numbers, however many calls there were."""
    return tuple(round(float(t), 6) for t in np.percentile(np.asarray(times), np.arange(101)))


def shares(rounds: int, processes: int) -> tuple[int, ...]:
    """How many of the rounds each process gets, the first ones more where they do not divide."""
    each, more = divmod(rounds, processes)
    return tuple(each + (number < more) for number in range(processes))


def by_process(medians: Sequence[float], processes: int) -> list[list[float]]:
    """The medians of the rounds, which stand process after process, as they were measured."""
    found, start = [], 0
    for count in shares(len(medians), processes):
        found.append(list(medians[start : start + count]))
        start += count
    return found


def ratio_interval(baseline: Sequence[float], candidate: Sequence[float], processes: int = 1) -> Interval:
    """How many times faster than the baseline, with a two-sided 95% interval.

    The two sequences are the medians of interleaved rounds, paired by round: drift of the machine hits both. A process
    keeps the addresses, threads and pages that it got, for all of its rounds, so its rounds are no independent samples:
    of several processes each gives one ratio, the median of its rounds', and the interval is Student's over the
    logarithms of those (Kalibera & Jones 2013, with processes as the highest level). Of one process it is the exact
    interval of the median over its rounds, and says nothing of another process.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise ValueError("rounds come in pairs")
    logs = np.log(np.asarray(baseline, np.float64) / np.asarray(candidate, np.float64)).tolist()
    if processes == 1:
        low, high = median_interval(logs)
        return _powers(float(np.median(logs)), low, high)
    units = [float(np.median(rounds)) for rounds in by_process(logs, processes)]
    center, half = _student(units)
    return _powers(center, center - half, center + half)


def unpaired_ratio_interval(old: Sequence[Run], new: Sequence[Run]) -> Interval:
    """How many times faster ``new`` is, with a two-sided 95% interval, where the two were not measured together.

    Each side has one or more runs, each run the medians of its processes. Of three runs a side and more, a run counts as
    one, and the interval is Welch's over them. Of fewer it is Welch's over the processes, widened by `RUN_SPREAD`, since
    one run does not show how much the next would differ.
    """
    if min(len(old), len(new)) >= MIN_RUNS:
        center, half = _welch(*([float(np.mean(np.log(run))) for run in side] for side in (old, new)))
        return _powers(center, center - half, center + half)
    center, half = _welch(*([log for run in side for log in np.log(run).tolist()] for side in (old, new)))
    half = math.hypot(half, _NORMAL * RUN_SPREAD * math.sqrt(1 / len(old) + 1 / len(new)))
    return _powers(center, center - half, center + half)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest order statistics between which the median lies with 95% or more (exact, whatever the distribution:
    David & Nagaraja 2003, 7.1). Fewer than six values have none: then all of them, which cover it with 1 − 2¹⁻ⁿ."""
    ordered, count = sorted(values), len(values)
    outside, rank = 2 * 0.5**count, 0
    while rank + 1 <= (count - 1) // 2:
        wider = outside + 2 * math.comb(count, rank + 1) * 0.5**count
        if wider > 1 - _LEVEL:
            break
        outside, rank = wider, rank + 1
    return ordered[rank], ordered[count - 1 - rank]


def _student(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval."""
    half = student_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), half


def _welch(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Difference of the means, old − new, and half its 95% interval, with the degrees of freedom of Welch 1947."""
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (old, new)]
    total = sum(parts)
    center = float(np.mean(old) - np.mean(new))
    if total == 0:
        return center, 0.0
    degrees = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (old, new), strict=True))
    return center, student_quantile(degrees) * math.sqrt(total)


def student_quantile(degrees: float) -> float:
    """The 97.5th percentile of Student's t. Its logarithm is interpolated in the inverse of the degrees of the table: less
    than 0.5% off from three degrees on, and below at most 3% too wide. Less than one degree there is not."""
    places, values = zip(*reversed(_STUDENT), strict=True)
    return math.exp(float(np.interp(1 / max(degrees, 1), [1 / place for place in places], np.log(values))))


def _powers(center: float, low: float, high: float) -> Interval:
    return math.exp(center), math.exp(low), math.exp(high)


def spread(values: Sequence[float]) -> float:
    """How far the medians of rounds lie apart: 1.4826 × the median distance from their median, over that median. Of a
    normal distribution it is σ over the mean. One odd round in nine moves it little, and more rounds do not."""
    middle = float(np.median(values))
    return 1.4826 * float(np.median(np.abs(np.asarray(values) - middle))) / middle


def compared(low: float, high: float) -> SpeedOutcome:
    """What the interval of a ratio shows: faster, slower, or nothing where it covers 1."""
    return SpeedOutcome.FASTER if low > 1 else SpeedOutcome.SLOWER if high < 1 else SpeedOutcome.NO_DIFFERENCE
