"""From measurements to a verdict, and how many images would decide what could not be decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from vggdeploy.parity.bounds import drop_samples_to_decide, samples_to_decide
from vggdeploy.parity.criteria import RECORD_FACTOR
from vggdeploy.records import AccuracyDrop, FlipCount, OutputParity, Thresholds
from vggdeploy.types import Verdict


def judge(
    outputs: tuple[OutputParity, ...],
    flips: FlipCount | None,
    thresholds: Thresholds,
    *,
    drop: AccuracyDrop | None = None,
    golden: bool = False,
    allowed: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a line for each criterion that was missed or could not be decided.

    Distances decide on the samples that were seen. Flips are judged by their bounds: fail when even the lower one is
    above the limit, inconclusive when the limit lies between them; the accuracy drop likewise, where a limit is set. Those
    bounds hold at any number of looks, so an inconclusive verdict may be asked again with more images.
    A golden pair is too small for that; there a flip fails only together with a distance, and nothing is promised.

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
    if flips and not golden and flips.lower > thresholds.flip_rate:
        wrong.append(f"{flips.flips} of {flips.samples} top-1 classes changed; the limit is {thresholds.flip_rate:.2%}")
    limit = thresholds.accuracy_drop
    if limit is not None and drop and not golden and drop.lower > limit:
        wrong.append(f"accuracy fell by {drop.drop:.2%} (at least {drop.lower:.2%}); the limit is {limit:.2%}")
    if wrong:
        return Verdict.FAIL, tuple(wrong)
    unsure: list[str] = []
    if flips and not golden and flips.upper > thresholds.flip_rate:
        unsure.append(_undecided_flips(flips, thresholds.flip_rate))
    if limit is not None and not golden and (drop is None or drop.upper > limit):
        unsure.append(
            _undecided_drop(drop, limit)
            if drop
            else "an accuracy drop needs labelled images: name a data set with --data"
        )
    return (Verdict.INCONCLUSIVE, tuple(unsure)) if unsure else (Verdict.PASS, ())


def _undecided_flips(flips: FlipCount, limit: float) -> str:
    needed = samples_to_decide(flips.flips, flips.samples, limit)
    return (
        f"{flips.flips} of {flips.samples} top-1 classes changed: up to {flips.upper:.2%} at one-sided 95% confidence, the "
        f"limit is {limit:.2%}; {_look_at(needed, fails=flips.flips > limit * flips.samples)}, or accept that bound: "
        f"--max-flips {_rounded_up(flips.upper):g}"
    )


def _undecided_drop(drop: AccuracyDrop, limit: float) -> str:
    needed = drop_samples_to_decide(drop.lost, drop.won, drop.samples, limit)
    return (
        f"accuracy may have fallen by {drop.upper:.2%} at one-sided 95% confidence, the limit is {limit:.2%}; "
        f"{_look_at(needed, fails=drop.drop > limit)}, or accept that bound: "
        f"--max-accuracy-drop {_rounded_up(drop.upper):g}"
    )


def _look_at(needed: int | None, *, fails: bool) -> str:
    if needed is None:
        return "what was seen is the limit itself, which no number of images decides"
    return f"look at {needed:,} images" + (", of which as many would fail it" if fails else "")


def _rounded_up(rate: float) -> float:
    """A fraction in percent, to the next tenth."""
    return math.ceil(rate * 1000) / 10
