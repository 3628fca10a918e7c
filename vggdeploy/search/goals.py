"""What a search is asked for, what holds it, what beats what. No clock is read and no model is opened here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vggdeploy.errors import TargetError, UsageError
from vggdeploy.optimize.steps.widths import FLOOR, Sensitivity, Widths, allocate, check_share, share_of, with_widths
from vggdeploy.records import Candidate, Goal
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Precision

# Multiply-accumulates that a device makes in the time that it takes to read a byte of weights, by order of magnitude: two
# cores with VNNI make 10¹² a second and read 2·10¹⁰ bytes; a GPU makes 10¹⁴ and reads 10¹².
MACS_A_BYTE = 50
# Of a multiply-accumulate beside FP16's, and the bytes of a weight: tensor cores make twice as many in INT8.
_COSTS = {Precision.FP32: (2.0, 4), Precision.FP16: (1.0, 2), Precision.INT8: (0.5, 1)}
MEGABYTE = 10**6
_NEVER = 1e9  # nats: what a layer that is fixed pretends to cost
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """How long to search: seconds, or a number of trials. The same number of trials and seed repeat the same choices."""

    seconds: float | None = None
    trials: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"30m"``, ``"2h"``, ``"90s"``; a number alone is one of trials.

        Raises:
            UsageError: neither.
        """
        wanted = text.strip().lower()
        if wanted.isdecimal() and int(wanted[:6]) >= 1 and len(wanted) <= 5:
            return cls(trials=int(wanted))
        found = _TIME.fullmatch(wanted)
        if not found or not float(found[1]) > 0:
            raise UsageError(f"a budget of '{text}'", "give a time such as 30m or 2h, or a number of trials such as 20")
        return cls(seconds=float(found[1]) * _SECONDS[found[2]])


def check_goal(goal: Goal) -> None:
    """
    Raises:
        UsageError: a limit that nothing can hold.
    """
    if not 0 <= goal.accuracy_drop <= 1:
        raise UsageError(f"an accuracy drop of {100 * goal.accuracy_drop:g} points", "give 0 to 100 percentage points")
    for value, what in ((goal.latency_ms, "milliseconds"), (goal.size_mb, "megabytes")):
        if value is not None and not value > 0:
            raise UsageError(f"{value:g} {what}", "give a limit above 0")


def cost(macs: int, parameters: int, precision: Precision | None = None) -> float:
    """What one image costs, in multiply-accumulates: those of the network, and those that could have been made in the
    time its weights take to be read. It ranks networks where no clock may decide: the same seed has to repeat the same
    choices, and a GPU that is not here cannot be asked.

    Args:
        precision: of a variant for a GPU; None for a network, of which a weight counts as a byte.
    """
    work, size = _COSTS[precision] if precision else (1.0, 1)
    return float(work * macs + MACS_A_BYTE * size * parameters)


def choose_widths(spec: ModelSpec, sensitivity: Sensitivity, keep: float, hidden: float) -> Widths:
    """Widths of every layer: fc6 and fc7 at the share ``hidden``; the convolutions so that the network keeps the share
    ``keep`` of what it then computes (`vggdeploy.optimize.steps.widths.allocate`).

    Raises:
        UsageError: a share that is none.
        TargetError: the floor of the convolutions does not allow it.
    """
    check_share(hidden, "of fc6 and fc7")
    dense = {name: share_of(width, hidden) for name, width in zip(spec.dense, spec.hidden, strict=True)}
    # With every layer at √keep of its channels the share is kept. A third of that, at least: curves that were measured layer
    # by layer do not know what is left when all of them are narrow, and would leave some with a channel or two.
    floor = min(FLOOR, math.sqrt(keep) / 3)
    narrow = with_widths(spec, dense)
    fixed = {name: {1: _NEVER} if name in dense else rises for name, rises in sensitivity.items()}
    widths = allocate(narrow, fixed, keep, floor=floor) if keep < 1 else dense
    if any(widths[name] < width for name, width in dense.items()):
        raise TargetError(
            f"with fc6 and fc7 at {hidden:.1%} the convolutions cannot become so narrow that {keep:.1%} is kept",
            "keep more, or make fc6 and fc7 narrower",
        )
    return widths


def misses(goal: Goal, candidate: Candidate) -> tuple[str, ...]:
    """What a candidate misses of the goal, in words; nothing where it holds it."""
    found = []
    if candidate.drop.upper > goal.accuracy_drop:
        found.append(
            f"accuracy may have fallen by {100 * candidate.drop.upper:.2f} points, the limit is {100 * goal.accuracy_drop:g}"
        )
    if goal.latency_ms is not None and candidate.latency_ms is not None and candidate.latency_ms > goal.latency_ms:
        found.append(f"{candidate.latency_ms:.2f} ms, the limit is {goal.latency_ms:g}")
    if goal.size_mb is not None and candidate.bytes > goal.size_mb * MEGABYTE:
        found.append(f"{candidate.bytes / MEGABYTE:.2f} MB, the limit is {goal.size_mb:g}")
    return tuple(found)


def speed_of(candidate: Candidate) -> float:
    """What candidates are ranked by, the lower the better: how their time compares with the original's, which stands
    beside them in every measurement; where nothing can be measured, the cost."""
    return 1 / candidate.ratio if candidate.ratio else candidate.cost


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other one beats: at least as good in speed, size and accuracy, and better in one. Fastest first."""
    everything = sorted(candidates, key=lambda c: (speed_of(c), c.bytes, c.drop.drop))
    kept: list[Candidate] = []
    for one in everything:
        mine = (speed_of(one), one.bytes, one.drop.drop)
        if not any(_beats((speed_of(o), o.bytes, o.drop.drop), mine) for o in everything):
            kept.append(one)
    return kept


def winner(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest of those that miss nothing; of equals the smaller one."""
    holding = [candidate for candidate in candidates if not candidate.misses]
    return min(holding, key=lambda c: (speed_of(c), c.bytes), default=None)


def closest(candidates: Sequence[Candidate], count: int = 3) -> list[Candidate]:
    """Those that miss the least: fewest limits first, then the smallest drop."""
    return sorted(candidates, key=lambda c: (len(c.misses), c.drop.upper))[:count]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
