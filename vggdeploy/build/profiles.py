"""Optimisation profiles: the ranges of batch sizes for which an engine has kernels of their own.

The builder takes the kernels that are fastest at a profile's optimum, among those that are valid in its whole range. So
profiles here do not overlap: each covers the sizes above the one before it, and is tuned for its largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from vggdeploy.errors import UsageError
from vggdeploy.types import BatchRange

Profiles = tuple[BatchRange, ...]

# One image that somebody waits for, the few that a queue gathers, and enough to fill a large GPU.
USUAL = (1, 8, 64)
MAX_PROFILES = 16  # each is tuned on its own: TensorRT's builds take as many times as long


def parse_profiles(text: str) -> Profiles:
    """``"1,8,32"`` → 1…1, 2…8 and 9…32; ``"1:8:32"`` → one profile; ``"8"`` → one, for batches of 8 alone.

    Raises:
        UsageError: anything else, or more than `MAX_PROFILES`.
    """
    ranges = [BatchRange.parse(part) for part in text.split(",")]
    if len(ranges) == 1:
        return (ranges[0],)
    if any(one.min != one.max for one in ranges):
        raise UsageError(
            f"'{text}' mixes ranges and a list", "give sizes, for example 1,8,32, or one range, for example 1:8:32"
        )
    return up_to(one.max for one in ranges)


def up_to(sizes: Iterable[int], least: int = 1) -> Profiles:
    """A profile for each size, which reaches from the size below it, the first one from ``least``.

    Raises:
        UsageError: more than `MAX_PROFILES`.
    """
    ordered = sorted(set(sizes))
    if len(ordered) > MAX_PROFILES:
        raise UsageError(
            f"{len(ordered)} profiles were asked for, and an engine has {MAX_PROFILES} at most",
            "give fewer sizes: --batch 1,8,64",
        )
    return tuple(BatchRange(low + 1, high, high) for low, high in pairwise([least - 1, *ordered]))


def default_profiles(onnx: BatchRange) -> Profiles:
    """Those of an engine for every batch that its ONNX takes: 1:8:256 gives 1…1, 2…8, 9…64 and 65…256."""
    between = {size for size in USUAL if onnx.min <= size < onnx.max}
    return up_to({*between, onnx.opt, onnx.max}, onnx.min)


def whole(profiles: Profiles, usual: int) -> BatchRange:
    """All of them as one range. Its optimum is ``usual`` where a profile is tuned for that, else the largest that one is."""
    tuned = [profile.opt for profile in profiles]
    return BatchRange(profiles[0].min, usual if usual in tuned else tuned[-1], profiles[-1].max)


def as_text(profiles: Sequence[BatchRange]) -> str:
    """As a manifest and a cache's key have them: ``1:8:32``, or ``1:1:1,2:8:8,9:32:32``."""
    return ",".join(map(str, profiles))


def short_name(profiles: Sequence[BatchRange]) -> str:
    """As a variant's name has them: ``b8``, ``b1to32``, or ``b1-8-32`` of several."""
    first = profiles[0]
    if len(profiles) > 1:
        return "b" + "-".join(str(profile.opt) for profile in profiles)
    return f"b{first.max}" if first.min == first.max else f"b{first.min}to{first.max}"
