"""From measurements to a verdict, and how many images would decide what could not be decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from vggdeploy.errors import counted
from vggdeploy.parity.bounds import drop_samples_to_decide, samples_to_decide
from vggdeploy.parity.criteria import RECORD_FACTOR
from vggdeploy.records import AccuracyDrop, FlipCount, OutputParity, Thresholds
from vggdeploy.records.parity import worse
from vggdeploy.types import Verdict


class Judgement(NamedTuple):
    """The two verdicts of a comparison, as `ParityRecord` has them, and a line for each criterion that was missed or, where
    none was, that could not be decided."""

    numerical: Verdict
    bounds: Verdict | None
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return worse(self.numerical, self.bounds)


def judge(
    outputs: tuple[OutputParity, ...],
    flips: FlipCount | None,
    thresholds: Thresholds,
    *,
    drop: AccuracyDrop | None = None,
    golden: bool = False,
    allowed: Mapping[str, float] = MappingProxyType({}),
) -> Judgement:
    """Both verdicts, and why.

    Numerical parity: distances decide on the samples that were seen. Bounds: flips fail when even the lower one is
    above the limit, and are inconclusive when the limit lies between them; the accuracy drop likewise, where a limit is set.
    They hold at any number of looks, so an inconclusive verdict may be asked again with more images.
    A golden pair is too small for bounds; there a flip fails only together with a distance, and nothing is promised.

    ``allowed``: output → the largest distance that the variant's own record allows.
    """
    wrong: list[str] = []
    for o in outputs:
        # "not ≤" rather than ">": a NaN is wrong too.
        if not o.relative_l2 <= thresholds.relative_l2:
            needed = (
                "" if o.tolerance is None else f" (allclose would have passed with rtol = atol = {o.tolerance:.2g})"
            )
            wrong.append(f"{o.output}: relative L2 {o.relative_l2:.3g} is above {thresholds.relative_l2:g}{needed}")
        elif not o.relative_l2 <= allowed.get(o.output, math.inf):
            wrong.append(
                f"{o.output}: relative L2 {o.relative_l2:.3g} is above {allowed[o.output]:.3g}, "
                f"{RECORD_FACTOR:g} times what was measured when the variant was made"
            )
        if not o.cosine_min >= thresholds.cosine:
            wrong.append(f"{o.output}: smallest cosine {o.cosine_min:.6f} is below {thresholds.cosine:g}")
    numerical = Verdict.FAIL if wrong else Verdict.PASS
    limit = thresholds.accuracy_drop
    if golden or (flips is None and limit is None):
        return Judgement(numerical, None, tuple(wrong))
    above, unsure = _judge_bounds(flips, drop, thresholds)
    bounds = Verdict.FAIL if above else Verdict.INCONCLUSIVE if unsure else Verdict.PASS
    wrong += above
    return Judgement(numerical, bounds, tuple(wrong or unsure))


def _judge_bounds(
    flips: FlipCount | None, drop: AccuracyDrop | None, thresholds: Thresholds
) -> tuple[list[str], list[str]]:
    """What lies above its limit for certain, and what may."""
    above: list[str] = []
    unsure: list[str] = []
    if flips and flips.lower > thresholds.flip_rate:
        above.append(f"{flips.flips} of {flips.samples} top-1 classes changed; the limit is {thresholds.flip_rate:.2%}")
    elif flips and flips.upper > thresholds.flip_rate:
        unsure.append(_undecided_flips(flips, thresholds.flip_rate))
    limit = thresholds.accuracy_drop
    if limit is None:
        return above, unsure
    if drop is None:
        unsure.append("an accuracy drop needs labelled images: name a data set with --data")
    elif drop.lower > limit:
        above.append(f"accuracy fell by {drop.drop:.2%} (at least {drop.lower:.2%}); the limit is {limit:.2%}")
    elif drop.upper > limit:
        unsure.append(_undecided_drop(drop, limit))
    return above, unsure


def _undecided_flips(flips: FlipCount, limit: float) -> str:
    needed = samples_to_decide(flips.flips, flips.samples, limit)
    return (
        f"{flips.flips} of {flips.samples} top-1 classes changed: up to {flips.upper:.2%} at one-sided 95% confidence, the "
        f"limit is {limit:.2%}; "
        f"{_look_at(needed, fails=flips.flips > limit * flips.samples)}, or accept that bound: "
        f"vggdeploy verify BUNDLE --max-flips {_rounded_up(flips.upper):g} --record"
    )


def _undecided_drop(drop: AccuracyDrop, limit: float) -> str:
    needed = drop_samples_to_decide(drop.lost, drop.won, drop.samples, limit)
    return (
        f"accuracy may have fallen by {drop.upper:.2%} at one-sided 95% confidence, the limit is {limit:.2%}; "
        f"{_look_at(needed, fails=drop.drop > limit)}, or accept that bound: "
        f"vggdeploy verify BUNDLE --max-accuracy-drop {_rounded_up(drop.upper):g} --record"
    )


def _look_at(needed: int | None, *, fails: bool) -> str:
    if needed is None:
        return "what was seen is the limit itself, which no number of images decides"
    return f"look at {counted(needed, 'image')}" + (", of which as many would fail it" if fails else "")


def _rounded_up(rate: float) -> float:
    """A fraction in percent, to the next tenth."""
    return math.ceil(rate * 1000) / 10
