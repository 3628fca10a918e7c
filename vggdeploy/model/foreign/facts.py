"""What the shapes of a VGG's weights tell, of a state dict or of a spec, and in what two of them differ. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from vggdeploy.spec import CUSTOM, Blocks, HeadPool, ModelSpec, flat, named, pools

POOLED = 7  # pixels: the side of the map that torchvision's adaptive pool makes before fc6


@dataclass(frozen=True)
class Head:
    """What weights do not tell: the pool before the first linear layer, and for each whether a ReLU follows it.

    A last one without is the class scores; with it, the network ends in features.
    """

    pool: HeadPool = "none"
    relus: tuple[bool, ...] = ()

    def __str__(self) -> str:
        words = ["relu" if relu else "none" for relu in self.relus]
        return ",".join(words if self.pool == "none" else [self.pool, *words])


@dataclass(frozen=True)
class Facts:
    """What shapes and positions tell.

    ``linears`` holds inputs and outputs of each linear layer that is there. ``pools`` says for every convolution whether
    a pool follows; None where nothing tells. ``odd``: other layers seem to stand between the convolutions. ``adaptive``
    says for which image sizes the original averages the last map to 7×7: ``any``, ``smaller`` than 224 px, or "" for none;
    ``given``: it averages to whatever fc6 takes. ``ranks`` are a spec's: of a state dict every matrix counts as a linear layer.
    """

    channels: tuple[int, ...]
    in_channels: int
    batch_norm: bool
    linears: tuple[tuple[int, int], ...]
    pools: tuple[bool, ...] | None
    odd: bool = False
    adaptive: str = ""
    ranks: tuple[int, ...] = ()
    conv_ranks: Blocks = ()

    @property
    def side(self) -> int | None:
        """The side of the map that fc6 takes, in pixels; None if its inputs are no square of the last channels."""
        if not self.linears:
            return None
        side = math.isqrt(self.linears[0][0] // self.channels[-1])
        return side if side and side**2 * self.channels[-1] == self.linears[0][0] else None

    def fits_map(self, side: int) -> bool:
        """Whether fc6 takes a map of this side: as it is, or as the original's adaptive pool would let it."""
        pooled = self.side == POOLED and (self.adaptive == "any" or (self.adaptive == "smaller" and side < POOLED))
        return side >= 1 and (side == self.side or pooled or self.adaptive == "given")


def facts_of(spec: ModelSpec) -> Facts:
    widths = (spec.flat_features, *spec.hidden, *([spec.classes] if spec.classes else []))
    return Facts(
        channels=flat(spec.blocks),
        in_channels=spec.in_channels,
        batch_norm=spec.batch_norm,
        linears=tuple(pairwise(widths)),
        pools=pools(spec.blocks),
        ranks=spec.ranks,
        conv_ranks=spec.conv_ranks,
    )


class Difference(NamedTuple):
    """What is otherwise, and what to do about it."""

    cause: str
    hint: str


def network_differences(found: Facts, spec: ModelSpec) -> list[Difference]:
    """In what the convolutions of ``found`` are not those of ``spec``."""
    wanted = facts_of(spec)
    if found.channels != wanted.channels:
        return [
            Difference(
                f"its convolutions are {_channels_text(found.channels)}, the model's {_channels_text(wanted.channels)}",
                "use the architecture and width that the weights are of: --arch, --width",
            )
        ]
    differences: list[Difference] = []
    if found.pools not in (None, wanted.pools):
        differences.append(Difference("its pools stand elsewhere", "use the blocks that the weights are of"))
    if found.conv_ranks != spec.conv_ranks:
        differences.append(
            Difference("its convolutions have other ranks than the model's", "--arch init takes its network")
        )
    if found.batch_norm != spec.batch_norm:
        has = ("batch norm", "none") if found.batch_norm else ("no batch norm", "one")
        name = f"{spec.arch.removesuffix('_bn')}{'_bn' * found.batch_norm}"
        hint = "" if spec.arch == CUSTOM else f": --arch {name}"
        differences.append(
            Difference(f"it has {has[0]}, the model has {has[1]}", f"use the matching architecture{hint}")
        )
    if found.in_channels != spec.in_channels:
        differences.append(
            Difference(
                f"it takes {_colour(found.in_channels)}, the model {_colour(spec.in_channels)}",
                f"use weights of {_colour(spec.in_channels)}, or {_colour(found.in_channels)} with these",
            )
        )
    return differences


def classifier_differences(found: Facts, spec: ModelSpec, *, head: bool) -> list[Difference]:
    """In what the linear layers are not those of ``spec``; the last one counts only with ``head``."""
    wanted = facts_of(spec).linears
    differences: list[Difference] = []
    hidden, count = len(spec.hidden), len(found.linears)
    if not hidden <= count <= len(wanted) or (head and count < len(wanted)):
        names = f"{spec.dense[0]} to {spec.last}" if hidden else spec.last or "none"
        return [Difference(f"it has {count} linear layer{'s' * (count != 1)}, not {names}", _FEATURES)]
    if count and found.linears[0][0] != wanted[0][0] and not found.fits_map(spec.image_size // spec.stride):
        made_for = f" (images of {found.side * spec.stride} px)" if found.side else ""
        differences.append(
            Difference(
                f"its fc6 takes {found.linears[0][0]} inputs{made_for}, the model's {wanted[0][0]} ({spec.image_size} px)",
                f"use --image-size {found.side * spec.stride}, or {_FEATURES}" if found.side else _FEATURES,
            )
        )
    widths = tuple(outputs for _, outputs in found.linears[:hidden])
    if widths != spec.hidden:
        differences.append(
            Difference(f"its hidden linear layers have {widths} outputs, the model's {spec.hidden}", _FEATURES)
        )
    elif any(found.ranks) != any(spec.ranks) or (any(spec.ranks) and found.ranks != spec.ranks):
        has, wants = (f"ranks {', '.join(map(str, r))}" if any(r) else "no ranks" for r in (found.ranks, spec.ranks))
        differences.append(
            Difference(
                f"its hidden linear layers have {has}, the model's {wants}",
                f"--arch init takes its network; or {_FEATURES}",
            )
        )
    elif head and spec.classes and found.linears[-1] != wanted[-1]:
        differences.append(
            Difference(f"it has {found.linears[-1][1]} classes, the model {spec.classes}", "allow a fresh last layer")
        )
    return differences


_FEATURES = "keep its convolutions only, with a fresh classifier"


def _colour(channels: int) -> str:
    return {1: "grey images (1 channel)", 3: "RGB images (3 channels)"}.get(channels, f"images of {channels} channels")


def _channels_text(channels: Sequence[int]) -> str:
    """``13 of 64 … 512 channels (vgg16)``."""
    arch, width = named(channels)
    ratio = "" if width == 1 else f" × {width:g}"
    name = f" ({arch}{ratio})" if arch != CUSTOM else ""
    return f"{len(channels)} of {channels[0]} … {channels[-1]} channels{name}"
