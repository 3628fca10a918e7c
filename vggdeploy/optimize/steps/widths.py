"""Which layers of a VGG can become narrower, what a network of other widths costs, and which widths to choose. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import msgspec

from vggdeploy.errors import TargetError, UsageError, unknown_name
from vggdeploy.model.layers import layers_of
from vggdeploy.spec import CUSTOM, ModelSpec

RATIOS = (0.75, 0.5, 0.25, 0.125)  # shares of a layer's channels at which its sensitivity is measured
FLOOR = 0.1  # of a layer's channels, that stay whatever the target is
_PARTS = 16  # steps in which a layer becomes narrower
# Channels: the sums of INT8 products in an AVX-512 register, and the depth of a tile of tensor cores. A convolution of 13
# channels takes ONNX Runtime nearly twice as long as one of 16.
_VECTOR = 16

Widths = dict[str, int]
Sensitivity = Mapping[str, Mapping[int, float]]


def widths_of(spec: ModelSpec) -> Widths:
    """Channels of every convolution, and widths of fc6, fc7, …, by the layer's name: all that can become narrower."""
    return {x.name: x.outputs for x in layers_of(spec) if x.kind in ("conv", "linear") and x.name != spec.last}


def with_widths(spec: ModelSpec, widths: Mapping[str, int]) -> ModelSpec:
    """``spec`` with other widths of the layers that are named; the rest stays.

    Raises:
        UsageError: an unknown layer, a width below 1 or above the layer's own, or one below a factorised layer's rank.
    """
    own = widths_of(spec)
    for name, width in widths.items():
        if name not in own:
            raise unknown_name("layer", name, own)
        if not 1 <= width <= own[name]:
            raise UsageError(f"{width} channels of {name}", f"it has {own[name]}: give 1 to {own[name]}")
    chosen = iter((own | dict(widths)).values())
    blocks = tuple(tuple(next(chosen) for _ in block) for block in spec.blocks)
    arch, ratio = (spec.arch, spec.width) if blocks == spec.blocks else (CUSTOM, 1.0)
    return msgspec.structs.replace(spec, arch=arch, width=ratio, blocks=blocks, hidden=tuple(chosen))


def macs_of(spec: ModelSpec) -> int:
    """Multiply-accumulates for one image."""
    return sum(layer.macs for layer in layers_of(spec))


def step_of(width: int) -> int:
    """Of how many channels at a time a layer loses them."""
    return max(width // _PARTS, _VECTOR) if _fills_vectors(width) else max(1, width // _PARTS)


def share_of(width: int, share: float) -> int:
    """``share`` of a layer's channels, at least one; of a wide layer whole vectors, rounded up."""
    channels = max(1, round(share * width))
    return min(width, -(-channels // _VECTOR) * _VECTOR) if _fills_vectors(width) else channels


def _fills_vectors(width: int) -> bool:
    """Whether a layer is so wide that whole vectors are fine enough a measure."""
    return width >= 4 * _VECTOR


def allocate(spec: ModelSpec, sensitivity: Sensitivity, keep: float, *, floor: float = FLOOR) -> Widths:
    """Widths with which the network keeps at most the share ``keep`` of its multiply-accumulates.

    Step by step, the layer becomes narrower that costs the least loss for the multiply-accumulates it saves, as its own
    curve of sensitivity says; between measured widths the curve is a straight line. Layers are taken as independent:
    what they cost together is only known by measuring.

    Args:
        sensitivity: layer → width → how much the loss rises; the layer's own width rises by 0.
        floor: the share of its channels that every layer keeps.

    Raises:
        UsageError: ``keep`` or ``floor`` is no share.
        TargetError: at the floor there is still more than ``keep``.
    """
    check_share(keep, "to keep")
    check_share(floor, "as the floor")
    full, target = macs_of(spec), keep * macs_of(spec)
    own = widths_of(spec)
    least = {name: share_of(width, floor) for name, width in own.items()}
    curves = {name: _curve(own[name], sensitivity[name]) for name in own}
    widths, now = dict(own), full
    while now > target:
        options = []
        for name, width in widths.items():
            step = step_of(own[name])
            narrower = max(least[name], (width - 1) // step * step)
            if narrower == width or not _ranks_fit(spec, {**widths, name: narrower}):
                continue
            macs = macs_of(with_widths(spec, {**widths, name: narrower}))
            loss = _at(curves[name], narrower) - _at(curves[name], width)
            options.append((loss / (now - macs), name, narrower, macs))
        if not options:
            raise TargetError(
                f"with {floor:.0%} of every layer's channels the network still has {now / full:.1%} of its "
                f"multiply-accumulates, not {keep:.1%}",
                f"keep more: --keep {now / full + 0.005:.2f}",
            )
        _, name, widths[name], now = min(options)
    return widths


def check_share(value: float, what: str) -> None:
    """Refuse what is no share: 0 or less, more than 1, or no number."""
    if not 0 < value <= 1:
        raise UsageError(f"a share of {value:g} {what}", "give a number above 0, at most 1, such as 0.5")


def _ranks_fit(spec: ModelSpec, widths: Mapping[str, int]) -> bool:
    """Whether the matrices of factorised layers would still be as large as their ranks."""
    bare = with_widths(msgspec.structs.replace(spec, ranks=(), conv_ranks=()), widths)
    convs = [rank for block in spec.conv_ranks for rank in block]
    whole = all(rank <= full for rank, full in zip(spec.ranks, bare.full_ranks, strict=True))
    return whole and all(rank <= full for rank, full in zip(convs, bare.full_conv_ranks, strict=False))


def _curve(width: int, rises: Mapping[int, float]) -> list[tuple[int, float]]:
    """Points (width, rise of the loss) from the full width down. A rise below a wider one's is noise: it is lifted."""
    points = [(width, 0.0)]
    for narrower in sorted(rises, reverse=True):
        if narrower < width:
            points.append((narrower, max(points[-1][1], rises[narrower])))
    return points


def _at(curve: list[tuple[int, float]], width: int) -> float:
    for (wide, low), (narrow, high) in pairwise(curve):
        if width >= narrow:
            return low + (high - low) * (wide - width) / (wide - narrow)
    # Narrower than was measured: it goes on rising as between the last two points, or more steeply.
    wide, high = curve[-1]
    return high + (high + 1e-12) * (wide - width) / wide
