"""The networks among which a fit chooses: stacks of 3×3 convolutions with a pool behind each block, at any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from vggdeploy.data.specs import DatasetSpec
from vggdeploy.model.layers import layers_of
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.records.fit import FitTrial, Shape, Start
from vggdeploy.spec import CUSTOM, HeadPool, ModelSpec

BANDS = 5  # of speed, each about three times as slow as the one before
_APART = 3
_VECTOR = 8  # channels: what kernels compute at a time
_WIDEST = 512
_SIDES = (8, 16, 24, 32, 48, 64, 96)
_LARGEST = 64  # pixels of a side; a larger image is scaled down
_PHOTOGRAPH = 48  # pixels that pictures of unknown size begin with
_HEADS: dict[str, HeadPool] = {"avg": "avg", "max": "max", "flat": "none"}
_TUNED_LRS, _TUNED_LR = (0.002, 0.05), 0.01  # of weights that are there already
_MIRRORED = {"digits", "mnist"}  # of which a mirror makes other things


@dataclass(frozen=True)
class Family:
    """What all networks of one fit share: classes, channels, the image sizes that make sense, and whether one teaches.

    ``image_sizes`` begin with the one that is tried first. ``starts``: what networks may begin from; of the first in them a
    band begins.
    """

    classes: int
    channels: int
    image_sizes: tuple[int, ...]
    augments: tuple[str, ...]
    teacher: bool = False
    starts: tuple[Start, ...] = (Start.FRESH,)

    @classmethod
    def of(cls, dataset: DatasetSpec, *, teacher_size: int | None = None, cut: bool = False) -> Family:
        """The family for a data set. A teacher sees images of its own size only, so they all have it. ``cut``: whether it may
        be made narrower itself.

        Raises:
            ValueError: the teacher's size is one that no block fits.
        """
        own = (
            min((side for side in _SIDES if side >= dataset.size), default=_SIDES[-1]) if dataset.size else _PHOTOGRAPH
        )
        near = [side for side in _SIDES if own / 2 <= side <= 2 * own and side <= _LARGEST]
        sizes = tuple(dict.fromkeys((own, *near)))
        if dataset.size and own < 16:  # 8 pixels leave nothing to pool: enlarged, they are as many as blocks need
            sizes = tuple(dict.fromkeys((16, *near)))
        plain, mirrored = "shift", "flip,shift"
        augments = (plain, "shift,rotate") if dataset.name in _MIRRORED else (mirrored, plain, "flip,shift,colour")
        if teacher_size is not None:
            sizes = (teacher_size,)
        starts = (Start.FRESH, Start.PRUNED) if cut else (Start.FRESH,)
        return cls(len(dataset.classes), dataset.channels, sizes, augments, teacher_size is not None, starts)

    def on(self, side: int, *starts: Start) -> Family:
        """The same choices for networks that begin from weights that are there, on images of one size."""
        return replace(self, image_sizes=(side,), starts=starts, teacher=self.teacher and self.image_sizes == (side,))

    def depths(self, image_size: int) -> tuple[int, ...]:
        """Numbers of blocks that fit the image size, and leave at most 8 × 8 for the head, where that can be."""
        fits = tuple(n for n in (1, 2, 3, 4, 5) if image_size % 2**n == 0)
        return tuple(n for n in fits if image_size / 2**n <= 8) or fits[-1:]

    def reference(self, band: int) -> Shape:
        """The shape that a band begins with: shallow to be fast, and on small images to be fastest."""
        size = self.image_sizes[0] if band else min(self.image_sizes)
        depths = self.depths(size)
        return Shape(
            image_size=size, blocks=3 if 3 in depths else depths[0], first=1, convs=1 if band < 2 else 2, growth=2.0,
            head="avg", augment=self.augments[0], lr=0.05, teacher=self.teacher,
        )  # fmt: skip

    def first(self, band: int) -> list[Shape]:
        """The shapes that a band is asked for before anything is chosen: of each start one."""
        fresh = self.reference(band)
        return [
            fresh if start is Start.FRESH else self._begun(start, fresh.augment, _TUNED_LR, self.teacher)
            for start in self.starts
        ]

    def _begun(self, start: Start, augment: str, lr: float, teacher: bool) -> Shape:
        """Of a network that is there only the training is chosen."""
        shape = self.reference(BANDS - 1)
        return msgspec.structs.replace(shape, start=start, augment=augment, lr=lr, teacher=teacher)

    def macs(self, band: int) -> int:
        """Multiply-accumulates of a band's first network. Every other one is as wide as makes it take the same time."""
        least = macs_of(self.spec(self.reference(0), _VECTOR))
        if not band:
            return least
        return int(max(macs_of(self.spec(self.reference(1), _VECTOR)), 2 * least) * _APART ** (band - 1))

    def suggest(self, trial: Any) -> Shape:
        """The shape that an Optuna trial asks for."""
        start = Start(trial.suggest_categorical("start", tuple(map(str, self.starts))))
        augment = trial.suggest_categorical("augment", self.augments)
        teacher = trial.suggest_categorical("teacher", (False, True) if self.teacher else (False,))
        if start is not Start.FRESH:
            return self._begun(start, augment, trial.suggest_float("tuned_lr", *_TUNED_LRS, log=True), teacher)
        size = trial.suggest_categorical("image_size", self.image_sizes)
        depths = self.depths(size)
        return Shape(
            image_size=size,
            # Of each image size other numbers fit, and a distribution has to be the same for all trials: a place in the list.
            blocks=depths[trial.suggest_int("depth", 0, 4) * len(depths) // 5],
            first=trial.suggest_int("first", 1, 2),
            convs=trial.suggest_int("convs", 1, 3),
            growth=trial.suggest_categorical("growth", (1.5, 2.0, 2.5)),
            head=trial.suggest_categorical("head", tuple(_HEADS)),
            augment=augment,
            lr=trial.suggest_float("lr", 0.02, 0.2, log=True),
            teacher=teacher,
        )

    def parameters(self, shape: Shape) -> dict[str, Any]:
        """The reverse of `suggest`, for Optuna."""
        common = {"start": str(shape.start), "augment": shape.augment, "teacher": shape.teacher}
        if shape.start is not Start.FRESH:
            return common | {"tuned_lr": shape.lr}
        depths = self.depths(shape.image_size)
        at = depths.index(shape.blocks)
        depth = next(i for i in range(5) if i * len(depths) // 5 == at)
        values = {"image_size": shape.image_size, "depth": depth, "first": shape.first, "convs": shape.convs}
        return common | values | {"growth": shape.growth, "head": shape.head, "lr": shape.lr}

    def spec(self, shape: Shape, width: int) -> ModelSpec:
        """The network of a shape whose first block has ``width`` channels."""
        channels = [whole_vectors(width * shape.growth**at) for at in range(shape.blocks)]
        counts = [shape.first, *[shape.convs] * (shape.blocks - 1)]
        return ModelSpec(
            arch=CUSTOM,
            blocks=tuple((c,) * count for c, count in zip(channels, counts, strict=True)),
            batch_norm=True,
            in_channels=self.channels,
            classes=self.classes,
            image_size=shape.image_size,
            hidden=(),
            dropout=0.0,
            head_pool=_HEADS[shape.head],
        )

    def sized(self, shape: Shape, target: float, cost: Callable[[ModelSpec], float]) -> ModelSpec:
        """The network of a shape whose ``cost`` is nearest to ``target``, as a ratio."""
        every = [self.spec(shape, width) for width in range(_VECTOR, _WIDEST + 1, _VECTOR // 4)]

        def off(spec: ModelSpec) -> float:
            ratio = cost(spec) / target
            return max(ratio, 1 / ratio)

        return min(every, key=off)


def whole_vectors(channels: float) -> int:
    """The nearest number of channels that fills vectors, at least one vector."""
    return max(_VECTOR, round(channels / _VECTOR) * _VECTOR)


def activations_of(spec: ModelSpec) -> int:
    """Numbers that the convolutions of a network write for one image."""
    return sum(math.prod(layer.shape) for layer in layers_of(spec) if layer.kind == "conv")


def frontier(trials: Sequence[FitTrial]) -> list[FitTrial]:
    """The trained trials that no other beats: none is at least as accurate and as fast, and better in one. Fastest first."""
    trained = sorted((t for t in trials if t.rungs), key=lambda t: (t.latency.ms, -t.accuracy))
    kept: list[FitTrial] = []
    for trial in trained:
        if not kept or trial.accuracy > kept[-1].accuracy:
            kept.append(trial)
    return kept
