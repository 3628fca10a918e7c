"""What a fit is asked for: read from words, held or missed, and which of two results is better. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vggdeploy.errors import UsageError
from vggdeploy.parity import clopper_pearson
from vggdeploy.records import AccuracyDrop
from vggdeploy.records.evaluation import Rate
from vggdeploy.records.fit import FitGoal, FitVariant
from vggdeploy.types import Verdict

_TWO_SIDED = 0.975  # each of two one-sided bounds
_LATENCY = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s)")
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kb|mb|kib|mib)")
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}


def read_goal(
    max_accuracy_drop: float | None, min_accuracy: float | None, max_latency: str | None, max_size: str | None
) -> FitGoal:
    """The goal of a command line: points, percent, ``1ms`` or ``800us``, ``300kB`` or ``1.5MB``.

    Raises:
        UsageError: none of them, or one that is no such thing.
    """
    if max_accuracy_drop is None and min_accuracy is None and max_latency is None and max_size is None:
        raise UsageError(
            "nothing is asked for: a fit needs a goal",
            "give one or more of --min-accuracy 92, --max-accuracy-drop 0.5, --max-latency 1ms, --max-size 300kB",
        )
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop < 100:
        raise UsageError(f"--max-accuracy-drop is {max_accuracy_drop:g} points", "give 0 or more, and less than 100")
    if min_accuracy is not None and not 1 < min_accuracy <= 100:
        raise UsageError(f"--min-accuracy is {min_accuracy:g}", "give percent, above 1 and at most 100, such as 92")
    latency = None if max_latency is None else _quantity(max_latency, _LATENCY, _MILLISECONDS, "--max-latency", "1ms")
    size = None if max_size is None else _quantity(max_size, _SIZE, _BYTES, "--max-size", "300kB")
    return FitGoal(
        accuracy_drop=None if max_accuracy_drop is None else max_accuracy_drop / 100,
        accuracy=None if min_accuracy is None else min_accuracy / 100,
        latency_ms=latency,
        bytes=None if size is None else int(size),
    )


def _quantity(text: str, form: re.Pattern[str], units: Mapping[str, float], option: str, example: str) -> float:
    found = form.fullmatch(text.strip().lower())
    value = float(found[1]) * units[found[2]] if found else 0.0
    if not value > 0:
        raise UsageError(f"{option} is '{text}'", f"give a number and its unit: {option} {example}")
    return value


def rate_of(hits: int, samples: int) -> Rate:
    """``hits`` of ``samples`` with the two-sided 95% Clopper–Pearson interval."""
    lower, upper = clopper_pearson(hits, samples, confidence=_TWO_SIDED)
    return Rate(hits=hits, samples=samples, rate=hits / samples, lower=lower, upper=upper)


def misses(
    goal: FitGoal, hits: int, samples: int, drop: AccuracyDrop | None, *, latency_ms: float, size: int
) -> tuple[str, ...]:
    """What is missed of the goal, in words; nothing where all of it holds."""
    missed = []
    if goal.accuracy is not None:
        lower, _ = clopper_pearson(hits, samples)
        if lower < goal.accuracy:
            missed.append(
                f"accuracy {hits / samples:.2%} on {samples:,} validation images may be {lower:.2%}, "
                f"{goal.accuracy:.2%} is asked for"
            )
    if goal.accuracy_drop is not None and drop is not None and drop.upper > goal.accuracy_drop:
        missed.append(
            f"accuracy may have fallen by {100 * drop.upper:.2f} points, the limit is {100 * goal.accuracy_drop:g}"
        )
    if goal.latency_ms is not None and latency_ms > goal.latency_ms:
        missed.append(f"{latency_ms:.3g} ms, the limit is {goal.latency_ms:g}")
    if goal.bytes is not None and size > goal.bytes:
        missed.append(f"{size / 1e3:,.1f} kB, the limit is {goal.bytes / 1e3:g}")
    return tuple(missed)


def preference(goal: FitGoal, one: FitVariant) -> tuple[float, ...]:
    """Variants are sorted by it, the best first: what holds the goal, then what its proof has settled, then the
    fastest or the most accurate (see `FitGoal`).
    Of those that miss it, the one that misses the fewest limits, then the most accurate."""
    if one.misses:
        return (1, len(one.misses), -one.validation.rate, one.latency_ms)
    open_ = one.verdict is not Verdict.PASS
    if goal.asks_accuracy:
        return (0, open_, one.latency_ms, -one.validation.rate)
    return (0, open_, -one.validation.rate, one.latency_ms)


def goal_words(goal: FitGoal) -> str:
    """The goal as a sentence has it."""
    parts = []
    if goal.accuracy is not None:
        parts.append(f"at least {100 * goal.accuracy:g}% accuracy")
    if goal.accuracy_drop is not None:
        parts.append(f"at most {100 * goal.accuracy_drop:g} points of accuracy lost")
    if goal.latency_ms is not None:
        parts.append(f"at most {goal.latency_ms:g} ms")
    if goal.bytes is not None:
        parts.append(f"at most {goal.bytes / 1e3:g} kB")
    return ", ".join(parts)
