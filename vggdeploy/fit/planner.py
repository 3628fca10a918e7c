"""Which speed to try next, and which networks to export first. Pure decisions on what was seen on validation images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from vggdeploy.fit.goal import misses
from vggdeploy.optimize.tuning import Hits
from vggdeploy.records import AccuracyDrop
from vggdeploy.records.fit import FitGoal, FitTrial

_EXPLORE = 5  # every so many trials the band that was tried least
_OVERHEAD_BYTES = 6000  # of a file, beside a byte for each weight in INT8


def next_band(
    trials: Sequence[FitTrial], goal: FitGoal, holding: Collection[int], allowed: Sequence[int]
) -> int | None:
    """The band of the next trial; None where none is allowed.

    Args:
        holding: numbers of the trials that hold the goal, as far as their FP32 network can tell.
        allowed: bands, the fastest first, that the time suffices for and that can keep the limits.
    """
    if not allowed:
        return None
    tried = Counter(trial.band for trial in trials)
    if not trials:
        # What a drop counts from has to be good: the slowest first. Otherwise the middle, from which it is known where to go.
        slowest = goal.accuracy_drop is not None or not goal.asks_accuracy
        return allowed[-1] if slowest else allowed[len(allowed) // 2]
    if len(trials) % _EXPLORE == 0:
        return min(allowed, key=lambda band: (tried[band], -band))
    held = sorted({trial.band for trial in trials if trial.number in holding})
    if goal.asks_accuracy and held:
        near = [band for band in allowed if band in (held[0] - 1, held[0])]
    elif goal.asks_accuracy:
        slowest_tried = max(tried)
        near = [band for band in allowed if band > slowest_tried][:1] or list(allowed[-2:])
    else:
        near = list(allowed[-2:])
    return min(near or allowed, key=lambda band: (tried[band], band))


def holds(goal: FitGoal, trial: FitTrial, hits: Hits, drop: AccuracyDrop | None) -> bool:
    """Whether the FP32 network of a trial holds the goal on the validation images, if INT8 loses nothing."""
    size = trial.parameters + _OVERHEAD_BYTES
    return not misses(goal, int(hits.sum()), len(hits), drop, latency_ms=trial.latency.ms, size=size)


def export_order(goal: FitGoal, trials: Sequence[FitTrial], held: Callable[[FitTrial], bool]) -> list[FitTrial]:
    """The trained networks in the order in which they are worth an export: those that hold the goal before the others."""

    def worth(trial: FitTrial) -> tuple[float, ...]:
        if not held(trial):
            limited = goal.latency_ms is not None and trial.latency.ms > goal.latency_ms
            return (1, limited, -trial.accuracy, trial.latency.ms)
        if goal.asks_accuracy:
            return (0, trial.latency.ms, -trial.accuracy)
        return (0, -trial.accuracy, trial.latency.ms)

    return sorted((trial for trial in trials if trial.rungs), key=worth)
