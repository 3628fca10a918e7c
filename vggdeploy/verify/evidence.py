"""What is wrong with a layer's numbers, in words: each text is the end of a sentence that begins with the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.parity.saturation import CODE, fitting_codes
from vggdeploy.types import Precision
from vggdeploy.verify.segments import Rounding

Array = NDArray[Any]
# Half a step of the last place, relative; below 2⁻²⁴ FP16 has steps of one size.
_HALF_STEP = {Precision.FP32: 0.0, Precision.FP16: 2**-11 * 1.01, Precision.BF16: 2**-9 * 1.01}
_SMALLEST = {Precision.FP32: 0.0, Precision.FP16: 2**-25 * 1.01, Precision.BF16: 0.0}
_FOLDED = 2e-6  # of a channel's largest: what another order of folding a batch norm may add in FP32
# Rows are told apart by so many projections; the distances of more rows would fill the memory.
_PROJECTIONS, _ORDERED = 16, 8192
_STEPS = 3.0  # of 8 bits over the reference's values: how much coarser an activation may be rounded
# What a calibration may cut off of an activation, of its length: min-max cuts little of images that it did not see, entropy
# trades what it cuts for finer steps.
_CUT, _CUT_BY = 0.05, {"min-max": 0.03, "percentile": 0.03, "entropy": 0.25}


def differ(got: Array, want: Array, limit: float, step: Array | float = 0.0) -> bool:
    """Whether any value is farther off than its ``step`` and ``limit`` times itself and the RMS of all; a NaN is."""
    return not bool((np.abs(got - want) <= step + limit * (np.abs(want) + rms(want)) + 1e-30).all())


def rms(values: Array) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0


def rounding_tolerance(want: Array, precision: Precision, scale: Array | None) -> Array:
    """How far each number ``[out, …]`` of the file may be from the checkpoint's: half of its own step.

    Args:
        scale: of INT8 and FP8 weights, one or one for each output channel. It may be twice that of eight bits: seven bits are
            what a kernel that must not saturate asks for.
    """
    size = np.abs(want)
    peak = _column(size.reshape(len(want), -1).max(1, initial=0), want.ndim)
    if scale is None:
        kind = Precision.FP32 if precision.quantised else precision  # a layer that was kept in FP32
        size *= _HALF_STEP[kind]
        size += peak * _FOLDED + _SMALLEST[kind]
        return size
    whole = peak if scale.size > 1 else peak.max()
    if (
        precision is Precision.FP8
    ):  # half a step of E4M3, of 4 significant bits; below its normal numbers steps are of one size
        return (
            size * (2**-4 * 1.01) + np.minimum(_column(scale, want.ndim), whole / 448 * 1.01) * (2**-10 * 1.01) + 1e-12
        )
    return np.broadcast_to(np.minimum(_column(scale, want.ndim), whole / 63) * 0.51 + 1e-12, want.shape)


def rounded_to_fit(got: Array, want: Array, scale: Array, limit: int) -> bool:
    """Whether INT8 weights ``[out, in, …]`` are the network's, rounded so that no two neighbours exceed ``limit`` steps: each
    is half a step from the network's, and those of a pair that would be wider are where the quantiser moves them to."""
    whole = np.abs(want).reshape(len(want), -1).max(1, initial=0)
    if got.shape != want.shape or (scale > (whole if scale.size > 1 else whole.max()) / 63).any():
        return False
    steps, made = (w.reshape(*w.shape[:2], -1) / _column(scale.reshape(-1), 3) for w in (want, got))
    codes = fitting_codes(steps, limit)
    moved = codes != np.clip(np.rint(steps), -CODE, CODE)
    return bool((np.abs(made - np.where(moved, codes, steps)) <= np.where(moved, 1.01, 0.51)).all())


def _distance(got: Array, want: Array) -> Array:
    off: Array = got - want
    return np.abs(off, out=off)


def _column(values: Array, dimensions: int) -> Array:
    return values.reshape(-1, *[1] * (dimensions - 1))


def wrong_weights(got: Array, want: Array, tolerance: Array, rows: str, *, also: Callable[[], bool] = bool) -> str:
    """Weights ``[out, in, …]``; "" where they are right. ``rows``: what an output is called, such as a channel; ``also``: asked
    only where they are farther off than ``tolerance``, whether they are right all the same."""
    if got.shape != want.shape:
        return f"has weights of {_shape(got)} where the network has {_shape(want)}"
    if (_distance(got, want) <= tolerance).all() or also():
        return ""
    return next(_changes(got, want, tolerance, rows))


def _changes(got: Array, want: Array, tolerance: Array, rows: str) -> Iterator[str]:
    """What explains the weights, the simplest first."""

    largest = tolerance.max()  # a number that stands elsewhere was rounded with the others there

    def fits(other: Array, limit: Any = largest) -> bool:
        return other.shape == got.shape and bool((np.abs(got - other) <= limit).all())

    if fits(want.swapaxes(0, 1)):
        yield "has its inputs and outputs exchanged"
    if got.ndim == 4 and fits(want.swapaxes(2, 3)):
        yield "has its kernels transposed"
    yield from _order(got, want, fits, rows)
    yield from _order(got.swapaxes(0, 1), want.swapaxes(0, 1), lambda w: fits(w.swapaxes(0, 1)), "input")
    flat, known = got.reshape(len(got), -1), want.reshape(len(want), -1)
    dead = np.flatnonzero(~flat.any(1) & known.any(1))
    if len(dead):
        yield f"has only zeros for {_named(rows, dead)}"
    factors = (flat * known).sum(1) / np.maximum(np.square(known).sum(1), 1e-30)
    if fits(want * _column(factors, want.ndim), 3 * tolerance):
        low, high = factors.min(), factors.max()
        yield f"has {low:.4g}{f' to {high:.4g}' if high - low > 1e-3 * high else ''} times the network's weights"
    wrong = np.abs(got - want) > tolerance
    levels = max(len(np.unique(row)) for row in flat)
    if 2 * levels <= flat.shape[1] and 4 * wrong.sum() > wrong.size:
        yield f"has weights of {levels} values for each {rows}: they were rounded to {np.log2(levels + 1):.2g} bits"
    if not (np.ascontiguousarray(got, np.float32).view(np.uint32) & 0xFFFF).any():
        yield "has weights that were cut to bfloat16"
    if not got[wrong].any():
        yield f"has zeros in place of {wrong.sum():,} of its {wrong.size:,} weights"
    worst = np.unravel_index(np.argmax(np.where(wrong, np.abs(got - want), -1)), got.shape)
    place = ", ".join(map(str, worst))
    numbers = f"the one at [{place}] is {got[worst]:.4g}, and the network's {want[worst]:.4g}"
    yield f"has {wrong.sum():,} of its {wrong.size:,} weights wrong: {numbers}"


def _order(got: Array, want: Array, fits: Callable[[Array], bool], rows: str) -> Iterator[str]:
    """Whether the rows are the same ones in another order."""
    flat, known = got.reshape(len(got), -1), want.reshape(len(want), -1)
    if flat.shape != known.shape or not 2 <= len(flat) <= _ORDERED or not np.isfinite(flat).all():
        return
    seen = np.random.default_rng(0).normal(size=(flat.shape[1], _PROJECTIONS)).astype(np.float32)
    projected = known @ seen
    order = (np.square(projected).sum(1)[None] - 2 * (flat @ seen) @ projected.T).argmin(1)
    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(moved) and fits(want[order]):
        yield f"has {_named(rows, moved)} {'exchanged' if len(moved) == 2 else 'in another order'}"


def wrong_bias(got: Array | None, want: Array, tolerance: Array, rows: str) -> str:
    """A bias ``[out]``, None where the file has none; "" where it is right."""
    values = np.zeros_like(want) if got is None else got
    if values.shape != want.shape:
        return f"has a bias of {_shape(values)} where the network has {_shape(want)}"
    wrong = ~(np.abs(values - want) <= tolerance)
    if not wrong.any():
        return ""
    if got is None:
        return "has no bias where the network has one"
    worst = int(np.argmax(np.abs(values - want)))
    numbers = f"that of {rows} {worst} is {values[worst]:.4g}, and the network's {want[worst]:.4g}"
    return f"has {wrong.sum():,} of its {len(wrong):,} biases wrong: {numbers}"


def wrong_rounding(want: Array, rounding: Rounding, method: str) -> str:
    """Whether a quantiser is coarser than 8 bits over ``want`` ask for, or cuts more of it off than ``method`` of calibration
    does; "" if not."""
    low, high = min(float(want.min()), 0.0), max(float(want.max()), 0.0)
    cut = np.clip(want, rounding.low, rounding.high) - want
    if np.linalg.norm(cut.ravel()) > _CUT_BY.get(method, _CUT) * np.linalg.norm(want.ravel()):
        return (
            f"is rounded to {rounding.low:.3g} to {rounding.high:.3g} where the network makes {low:.3g} to {high:.3g}"
        )
    fine = max(high - low, 2 * max(high, -low) if rounding.low < 0 else 0) / 255
    if rounding.step > _STEPS * fine > 0:
        return f"is rounded to steps of {rounding.step:.3g} where 8 bits give {fine:.2g}"
    return ""


def wrong_pixels(got: Array, want: Array) -> str:
    """What is wrong with what the preprocessing makes, ``[N, C, H, W]``: exchanged channels, another mean or std."""
    files, networks = (a.astype(np.float64).swapaxes(0, 1).reshape(a.shape[1], -1) for a in (got, want))
    order = [int(np.argmin([_fit(one, other)[2] for other in networks])) for one in files]
    if order != sorted(order) and len({*order}) == len(order):
        return f"has its colour channels in the order {', '.join(map(str, order))}"
    slope, offset, left = _fit(files[0], networks[0])
    if left < 1e-3:
        return f"makes {slope:.4g} times the network's values {offset:+.4g}: another mean or std"
    return "makes other values of an image's pixels"


def _fit(got: Array, want: Array) -> tuple[float, float, float]:
    """Slope and offset of ``got`` over ``want``, and the share that they do not explain."""
    a, b = got - got.mean(), want - want.mean()
    slope = float((a * b).sum() / max((b * b).sum(), 1e-30))
    left = float(np.square(a - slope * b).sum() / max(np.square(a).sum(), 1e-30))
    return slope, float(got.mean() - slope * want.mean()), left


def wrong_values(got: Array, want: Array) -> str:
    """What a layer makes beside what it should make of the same input."""
    if not np.isfinite(got).all():
        return f"overflows: it makes NaN or infinity where the network makes at most {np.abs(want).max(initial=0):.3g}"
    if want.min() >= 0 > got.min():
        return f"lets negative values through, down to {got.min():.3g}"
    if 0 < got.max() < 0.999 * want.max():
        return f"makes at most {got.max():.3g} where the network makes {want.max():.3g}"
    error = rms(got - want) / max(rms(want), 1e-30)
    return f"makes other values than the network of the same input: relative L2 {error:.2g}"


def _named(rows: str, places: Array) -> str:
    plural = f"{rows}es" if rows.endswith("s") else f"{rows}s"
    if len(places) == 1:
        return f"{rows} {places[0]}"
    if len(places) > 4:
        return f"{len(places)} of its {plural}"
    *others, last = map(str, places)
    return f"{plural} {', '.join(others)} and {last}"


def _shape(array: Array) -> str:
    return " × ".join(map(str, array.shape))
