"""What a model is, as data: `ModelSpec` for the network, `PreprocessSpec` for what happens to an image before it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from vggdeploy.errors import UsageError, unknown_name

# Convolutions × channels of each block: table 1 of Simonyan & Zisserman 2014, configurations A, B, D and E.
ARCHITECTURES: dict[str, tuple[tuple[int, int], ...]] = {
    "vgg11": ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    "vgg13": ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512)),
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
CUSTOM = "custom"
MAX_SIDE = 4096
MAX_CLASSES = 1_000_000
MAX_CHANNELS = 65_536
MAX_LAYERS = 256
MAX_HIDDEN = 16

# What makes a vector of the last feature map: nothing but flattening, or each channel's mean or maximum.
HeadPool = Literal["none", "avg", "max"]

Blocks = tuple[tuple[int, ...], ...]


def architecture_names() -> list[str]:
    return [name + suffix for name in ARCHITECTURES for suffix in ("", "_bn")]


def scaled_blocks(table: Sequence[tuple[int, int]], width: float) -> Blocks:
    """Channels of every convolution, block by block, at ``width`` times the table's channels; see `at_width`."""
    return at_width(tuple((channels,) * convs for convs, channels in table), width)


def at_width(blocks: Blocks, width: float) -> Blocks:
    """``blocks`` with ``width`` times their channels.

    Raises:
        UsageError: a convolution would have no channel left.
    """
    if not 0 < width <= MAX_CHANNELS:
        raise UsageError(f"the width ratio is {width}", "give a number above 0, such as 0.25")
    smallest = min((channels for block in blocks for channels in block), default=1)
    if round(smallest * width) < 1:
        raise UsageError(
            f"width ratio {width:g} leaves a convolution without channels", f"give at least {1 / smallest:g}"
        )
    return tuple(tuple(round(channels * width) for channels in block) for block in blocks)


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A VGG, completely described.

    ``blocks`` holds the output channels of every 3×3 convolution, grouped into blocks; each block ends in a 2×2
    max-pool. ``arch`` and ``width`` name where the blocks came from.

    The head: ``head_pool`` over each channel of the last map, or flattening; linear layers of the widths ``hidden``, each
    with a ReLU and dropout behind it (the paper's are fc6 and fc7; there may be any number); and one more to ``classes``
    scores. With 0 classes there is none: the network ends in features.

    ``ranks`` are those of the hidden layers' matrices where they are products of two; 0 where they are not. ``conv_ranks``
    are those of convolutions that are a 3×1 and a 1×3 one, arranged as ``blocks``; empty where none is.
    """

    arch: str
    blocks: Blocks
    batch_norm: bool = False
    width: float = 1.0
    in_channels: int = 3
    classes: int = 1000
    image_size: int = 224
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    ranks: tuple[int, ...] = ()
    conv_ranks: Blocks = ()
    head_pool: HeadPool = "none"

    def __post_init__(self) -> None:
        def check(holds: bool, cause: str, hint: str) -> None:
            if not holds:
                raise UsageError(cause, hint)

        if not any(self.ranks):  # the same whether left out, written out, or of another head
            msgspec.structs.force_setattr(self, "ranks", (0,) * len(self.hidden))
        check(
            bool(self.blocks) and all(self.blocks) and all(c >= 1 for block in self.blocks for c in block),
            "every block needs at least one convolution with at least one channel",
            "for example 1x64,1x128,2x256,2x512,2x512",
        )
        step = self.stride
        near = max(step, (self.image_size + step // 2) // step * step)
        check(
            self.image_size >= step and self.image_size % step == 0,
            f"image size {self.image_size} does not fit {len(self.blocks)} blocks, each of which halves it",
            f"give a multiple of {step}, at least {step} (for example {near})",
        )
        # Far above any network that can be trained, and low enough that a hostile file cannot ask for all memory.
        check(
            self.image_size <= MAX_SIDE
            and self.classes <= MAX_CLASSES
            and all(c <= MAX_CHANNELS for block in (*self.blocks, self.hidden) for c in block)
            and sum(len(block) for block in self.blocks) <= MAX_LAYERS
            and len(self.hidden) <= MAX_HIDDEN,
            "this network is larger than any VGG",
            f"at most {MAX_SIDE} pixels, {MAX_CLASSES:,} classes, {MAX_CHANNELS:,} channels, {MAX_LAYERS} convolutions, "
            f"{MAX_HIDDEN} hidden layers",
        )
        check(self.in_channels in (1, 3), f"{self.in_channels} input channels", "give 1 (grey) or 3 (RGB)")
        check(
            self.classes >= 2 or self.classes == 0,
            f"{self.classes} classes",
            "a classifier needs at least 2; features, 0",
        )
        check(
            self.head_pool == "none" or bool(self.hidden or self.classes),
            f"the head pool '{self.head_pool}' has no linear layer behind it",
            "leave it out: a feature map is pooled by vggdeploy embed BUNDLE IMAGE --pool avg -o vectors.npy",
        )
        check(len(self.ranks) == len(self.hidden), f"{len(self.ranks)} ranks", f"give one for each of {self.hidden}")
        check(all(h >= 1 for h in self.hidden), f"hidden width {self.hidden}", "give at least 1")
        check(0 <= self.dropout < 1, f"dropout {self.dropout}", "give a probability from 0 up to, not including, 1")
        check(0 < self.width <= MAX_CHANNELS, f"width ratio {self.width}", "give a number above 0, such as 0.25")
        for name, rank, full in zip(self.dense, self.ranks, self.full_ranks, strict=True):
            check(
                0 <= rank <= full, f"rank {rank} of {name}", f"its full rank is {full}: give 1 to {full}, or 0 for none"
            )
        fits = not self.conv_ranks or [*map(len, self.conv_ranks)] == [*map(len, self.blocks)]
        check(fits, "ranks of other convolutions than there are", "give one for each convolution, 0 for none")
        places = [(b, c) for b, block in enumerate(self.conv_ranks) for c in range(len(block))]
        for (b, c), full in zip(places, self.full_conv_ranks, strict=False):
            rank = self.conv_ranks[b][c]
            hint = f"its full rank is {full}: give 1 to {full}, or 0 for none"
            check(0 <= rank <= full, f"rank {rank} of conv{b + 1}_{c + 1}", hint)
        if self.arch != CUSTOM:
            base, bn = split_arch(self.arch)
            check(
                self.batch_norm == bn and self.blocks == scaled_blocks(ARCHITECTURES[base], self.width),
                f"the blocks are not those of {self.arch} at width {self.width:g}",
                f"use arch='{CUSTOM}' for other blocks",
            )

    @classmethod
    def named(
        cls,
        arch: str,
        *,
        width: float = 1.0,
        in_channels: int = 3,
        classes: int = 1000,
        image_size: int = 224,
        hidden: int | tuple[int, ...] = 4096,
        dropout: float = 0.5,
    ) -> ModelSpec:
        """One of the paper's networks, ``vgg11`` … ``vgg19_bn``, at ``width`` times its convolution channels.

        Raises:
            UsageError: an unknown name (with the closest match), or a value that makes no network.
        """
        base, batch_norm = split_arch(arch)
        return cls(
            arch=f"{base}_bn" if batch_norm else base,
            blocks=scaled_blocks(ARCHITECTURES[base], width),
            batch_norm=batch_norm,
            width=width,
            in_channels=in_channels,
            classes=classes,
            image_size=image_size,
            hidden=hidden if isinstance(hidden, tuple) else (hidden, hidden),
            dropout=dropout,
        )

    @property
    def stride(self) -> int:
        """How many input pixels one pixel of the last feature map covers: 2 a block."""
        return int(2 ** len(self.blocks))

    @property
    def flat_features(self) -> int:
        """Inputs of fc6: channels · (image size / stride)², or the channels alone where each is pooled."""
        return self.blocks[-1][-1] * (1 if self.head_pool != "none" else (self.image_size // self.stride) ** 2)

    @property
    def dense(self) -> tuple[str, ...]:
        """The hidden linear layers' names: fc6, fc7, … (the paper's are layers 6 and 7 of VGG-11, behind 5 blocks)."""
        return tuple(f"fc{number}" for number in range(6, 6 + len(self.hidden)))

    @property
    def last(self) -> str:
        """The name of the linear layer that gives class scores, the paper's fc8; "" where there is none."""
        return f"fc{6 + len(self.hidden)}" if self.classes else ""

    @property
    def full_ranks(self) -> tuple[int, ...]:
        """The largest rank that each hidden layer's matrix can have: of inputs and outputs the fewer."""
        return tuple(min(pair) for pair in pairwise((self.flat_features, *self.hidden)))

    @property
    def full_conv_ranks(self) -> tuple[int, ...]:
        """Of every convolution in order: three times its inputs or outputs, whichever are fewer."""
        channels = [self.in_channels, *(c for block in self.blocks for c in block)]
        return tuple(3 * min(a, b) for a, b in pairwise(channels))

    @property
    def title(self) -> str:
        width = "" if self.width == 1 else f" × {self.width:g}"
        ranks = "".join(f", {name} of rank {r}" for name, r in zip(self.dense, self.ranks, strict=True) if r)
        products = sum(rank > 0 for block in self.conv_ranks for rank in block)
        ranks += f", {products} convolutions of low rank" if products else ""
        image = f"{self.in_channels}×{self.image_size}×{self.image_size}"
        return f"{self.arch}{width}, {image} → {self.classes or 'features'}{ranks}"


def split_arch(arch: str) -> tuple[str, bool]:
    """``"vgg16_bn"`` → ``("vgg16", True)``; case and the usual separators do not matter."""
    name = arch.strip().lower().replace("-", "").replace("_", "").replace(" ", "")
    base, batch_norm = (name[:-2], True) if name.endswith("bn") else (name, False)
    if base not in ARCHITECTURES:
        raise unknown_name("architecture", arch, architecture_names())
    return base, batch_norm


class PreprocessSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From an image to the graph's input.

    On the host: decode, convert to ``mode``, resize the shorter side to ``resize`` pixels, crop the centre
    ``crop`` × ``crop``. In the graph: ``(pixel / 255 − mean) / std`` per channel, ``mean`` and ``std`` in units of 0–1:
    a mean from 0 to 1, a std from 1/255 (which leaves pixels of 0–255) to 1.
    """

    mode: str = "RGB"
    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.mode not in ("L", "RGB"):
            raise UsageError(f"the image mode is '{self.mode}'", "give L (grey) or RGB")
        if self.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise unknown_name("interpolation", self.interpolation, ("nearest", "bilinear", "bicubic", "lanczos"))
        if not 1 <= self.crop <= self.resize <= MAX_SIDE:
            raise UsageError(f"crop {self.crop} does not fit resize {self.resize}", f"1 ≤ crop ≤ resize ≤ {MAX_SIDE}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(
                f"mean/std of {len(self.mean)}/{len(self.std)} channels for mode {self.mode}", "give one each"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise UsageError(f"mean {self.mean} or std {self.std} cannot normalise", "finite numbers, std above 0")
        if not _of_unit_pixels(self.mean, self.std):
            raise _other_units(self.mean, self.std)

    @property
    def channels(self) -> int:
        return 1 if self.mode == "L" else 3

    @property
    def scale(self) -> tuple[float, ...]:
        """The factor of the graph's ``pixel · scale + shift``."""
        return tuple(1 / (255 * s) for s in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))


_LEAST_STD = 0.0039  # 1/255, as people round it


def _of_unit_pixels(mean: Sequence[float], std: Sequence[float]) -> bool:
    return all(0 <= m <= 1 for m in mean) and all(_LEAST_STD <= s <= 1 for s in std)


def _other_units(mean: Sequence[float], std: Sequence[float]) -> UsageError:
    """What is wrong with these, and what they are in units of 0–1 where that can be told."""

    def text(values: Sequence[float], digits: int) -> str:
        return ",".join(f"{value:.{digits}g}" for value in (values if len(set(values)) > 1 else values[:1]))

    high = max(*mean, *std) > 1  # of pixels from 0 to 255; else divided by 255 once too often
    scaled_mean, scaled_std = ([value / 255 if high else value * 255 for value in values] for values in (mean, std))
    mean_1 = scaled_mean if _of_unit_pixels(scaled_mean, ()) and not (high and max(mean) <= 1) else mean
    std_1 = scaled_std if _of_unit_pixels((), scaled_std) else std
    cause = f"mean {text(mean, 6)} and std {text(std, 6)} are not those of pixels from 0 to 1"
    hint = "--mean 0 --std 1 for weights that were trained with ToTensor alone"
    if not _of_unit_pixels(mean_1, std_1):
        return UsageError(cause, f"give a mean from 0 to 1 and a std from 1/255 to 1: {hint}")
    cause += f": they would be {text(mean_1, 3)} and {text(std_1, 3)}"
    return UsageError(cause, f"give --mean {text(mean_1, 5)} --std {text(std_1, 5)}; or {hint}")


_BLOCK = re.compile(r"([1-9]\d{0,2})[x×]([1-9]\d{0,5})")


def parse_blocks(text: str) -> Blocks:
    """``"1x64,2x128"`` (convolutions × channels of each block) → ``((64,), (128, 128))``.

    Raises:
        UsageError: something else.
    """
    matches = [_BLOCK.fullmatch(part.strip().lower()) for part in text.split(",")]
    if not all(matches):
        raise UsageError(
            f"'{text}' is not a list of blocks", "give convolutions x channels of each, for example 1x64,1x128,2x256"
        )
    return tuple((int(match[2]),) * int(match[1]) for match in matches if match)


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
    blocks: list[tuple[int, ...]] = []
    block: list[int] = []
    for index, width in enumerate(channels):
        block.append(width)
        if index == len(channels) - 1 or after[index]:
            blocks.append(tuple(block))
            block = []
    return tuple(blocks)
