"""Blocks as people write them, ``1x64,1x128,2x256``, and the named networks that they may be. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vggdeploy.errors import UsageError
from vggdeploy.spec import ARCHITECTURES, CUSTOM, Blocks, scaled_blocks

_BLOCK = re.compile(r"([1-9]\d{0,2})[x×]([1-9]\d{0,5})")


def parse_blocks(text: str) -> Blocks:
    """``"1x64,2x128"`` (convolutions × channels of each block) → ``((64,), (128, 128))``.

    Raises:
        UsageError: something else.
    """
    found = [_BLOCK.fullmatch(part.strip().lower()) for part in text.split(",")]
    if not all(found):
        raise UsageError(
            f"'{text}' is not a list of blocks", "give convolutions x channels of each, for example 1x64,1x128,2x256"
        )
    return tuple((int(match[2]),) * int(match[1]) for match in found if match)


def format_blocks(blocks: Blocks) -> str:
    """The reverse; "" for a block whose convolutions differ in width, which has no such notation."""
    if any(len(set(block)) > 1 for block in blocks):
        return ""
    return ",".join(f"{len(block)}x{block[0]}" for block in blocks)


def named_width(arch: str, channels: Sequence[int]) -> float | None:
    """The width ratio at which ``arch`` (without ``_bn``) has these channels; None when there is none."""
    table = [c for convs, c in ARCHITECTURES[arch] for _ in range(convs)]
    if len(table) != len(channels):
        return None
    # A ratio is only known to half a channel: the widest layers know it best.
    for width in dict.fromkeys(found / full for found, full in zip(reversed(channels), reversed(table), strict=True)):
        if width * min(table) >= 1 and flat(scaled_blocks(ARCHITECTURES[arch], width)) == tuple(channels):
            return width
    return None


def named(channels: Sequence[int]) -> tuple[str, float]:
    """The architecture and width ratio that these convolutions are, block borders aside; ``"custom"`` and 1 if none."""
    for arch in ARCHITECTURES:
        width = named_width(arch, channels)
        if width is not None:
            return arch, width
    return CUSTOM, 1.0


def flat(blocks: Blocks) -> tuple[int, ...]:
    """The channels of every convolution, in order."""
    return tuple(channels for block in blocks for channels in block)


def pools(blocks: Blocks) -> tuple[bool, ...]:
    """For every convolution, whether a pool follows it."""
    return tuple(last for block in blocks for last in (False,) * (len(block) - 1) + (True,))


def grouped(channels: Sequence[int], after: Sequence[bool]) -> Blocks:
    """Convolutions and where pools follow → blocks. The last block ends at the last convolution."""
    found: list[tuple[int, ...]] = []
    block: list[int] = []
    for index, width in enumerate(channels):
        block.append(width)
        if index == len(channels) - 1 or after[index]:
            found.append(tuple(block))
            block = []
    return tuple(found)
