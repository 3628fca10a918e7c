"""A checkpoint's own data, and which of its images a network has right: what steps that change a structure work with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggdeploy.bundle.checkpoint import WEIGHTS_NAME, Checkpoint
from vggdeploy.data.loaders import Images, load_split, open_split
from vggdeploy.data.sources import get_dataset
from vggdeploy.errors import CheckpointError, DataError, TargetError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.layers import summarise
from vggdeploy.model.vgg import VGG
from vggdeploy.optimize.tuning import Hits, pack, unpack
from vggdeploy.parity.bounds import accuracy_drop
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.preprocess import normalise
from vggdeploy.records import AccuracyDrop, OriginalNetwork, Size
from vggdeploy.spec import ModelSpec

DECIDES, REPORTED = "validation", "test"
SPLITS = (DECIDES, REPORTED)
_ACTIVATIONS = 64 * 2**20  # bytes of the first convolution's output that a batch may take


_MOST = 10**9  # images


@dataclass(frozen=True)
class HeldOut:
    """The splits of a checkpoint's data set. Decisions are made on ``validation``; ``test`` is only looked at."""

    checkpoint: Checkpoint
    name: str
    data_dir: Path | None
    splits: dict[str, Images]

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, dataset: str = "", data_dir: Path | None = None) -> HeldOut:
        """Open the data set that the checkpoint was trained on, or the one that is named instead.

        Raises:
            DataError: no data set is known, it cannot be read, or its classes are not the model's.
        """
        name = dataset or checkpoint.dataset
        if not name:
            raise DataError("no data set is known for this model", "name one: --data fashion-mnist, or folder:PATH")
        classes = get_dataset(name).classes
        same = classes == checkpoint.labels if checkpoint.labels else len(classes) == checkpoint.spec.classes
        if not same:
            raise DataError(
                f"the classes of {name} are not the model's: {_few(classes)} and "
                f"{_few(checkpoint.labels or [f'{checkpoint.spec.classes} without names'])}",
                "name the data set that the model was trained on: --data",
            )
        splits: dict[str, Images] = {
            split: open_split(name, split, checkpoint.preprocess, data_dir=data_dir) for split in SPLITS
        }
        return cls(checkpoint, name, data_dir, splits)

    def check_shows(self, limit: float) -> None:
        """Refuse a limit that no network can be shown to hold on so few images, before the work.

        Raises:
            TargetError: they are too few; how many would do is said.
        """
        images = len(self.splits[DECIDES])
        needed = images_to_show(limit, images)
        if needed is not None:
            best = math.ceil(1000 * accuracy_drop(0, 0, images).upper) / 10
            more = f"give at least {needed:,} {DECIDES} images, or" if needed < _MOST else "give"
            raise TargetError(
                f"a drop of at most {100 * limit:g} points cannot be shown on the {images:,} {DECIDES} images of {self.name}: "
                "they are too few, even for a network that gives the same answers",
                f"{more} a limit that they can show: --max-accuracy-drop {best:g}",
            )

    def batches(self, split: str, limit: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """The first ``limit`` images of a split (a random sample), normalised, with their classes."""
        if split in self.splits:
            images: Images = self.splits[split].take(np.arange(len(self.splits[split]))[:limit])
        else:
            images = load_split(self.name, split, self.checkpoint.preprocess, data_dir=self.data_dir, limit=limit)
        for positions in _positions(len(images), self.checkpoint.spec):
            yield normalise(images.batch(positions), self.checkpoint.preprocess), images.labels[positions]

    def hits(self, model: VGG) -> dict[str, Hits]:
        """Of each split, which images the network has right: its largest logit is the label's."""
        network = Deployable(model, self.checkpoint.preprocess).eval()
        hits = {}
        with torch.inference_mode():
            for split, images in self.splits.items():
                parts = [
                    network(torch.from_numpy(images.batch(p)))[0].argmax(dim=1).numpy() == images.labels[p]
                    for p in _positions(len(images), model.spec)
                ]
                hits[split] = np.concatenate(parts)
        return hits

    def drops(self, origin: OriginalNetwork, hits: dict[str, Hits]) -> dict[str, AccuracyDrop]:
        """Each split's paired drop of accuracy against the origin.

        Raises:
            CheckpointError: the origin was measured on other images.
        """
        drops = {}
        for split, now in hits.items():
            before = unpack(origin.hits.get(split, ""), len(now))
            if before is None or origin.dataset != self.name:
                raise CheckpointError(
                    f"the accuracy of the original is known on {origin.dataset}, and not on this {split} split of {self.name}",
                    "start again from the checkpoint that was trained",
                )
            drops[split] = paired_drop(before, now)
        return drops


def images_to_show(limit: float, images: int) -> int | None:
    """How many images could show that at most ``limit`` (a fraction) of the accuracy is lost, where ``images`` are too few even
    for a network that gives the original's every answer; None where they are enough."""
    if accuracy_drop(0, 0, images).upper <= limit:
        return None
    few, many = images, 2 * images
    while accuracy_drop(0, 0, many).upper > limit and many < _MOST:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if accuracy_drop(0, 0, middle).upper <= limit else (middle, many)
    return many


def origin_of(checkpoint: Checkpoint, weights: Path, data: HeldOut, model: VGG) -> OriginalNetwork:
    """The record of a network as it was trained: of this one, where no step has changed it yet."""
    if checkpoint.origin is not None:
        return checkpoint.origin
    hits = data.hits(model)
    return OriginalNetwork(
        sha256=checkpoint.weights_sha256,
        title=checkpoint.spec.title,
        size=size_of(checkpoint.spec, weights),
        dataset=data.name,
        accuracy={split: float(right.mean()) for split, right in hits.items()},
        hits={split: pack(right) for split, right in hits.items()},
    )


def size_of(spec: ModelSpec, root: Path) -> Size:
    """Of the checkpoint at ``root``."""
    summary = summarise(spec)
    return Size(parameters=summary.parameters, macs=summary.macs, bytes=(root / WEIGHTS_NAME).stat().st_size)


def _positions(count: int, spec: ModelSpec) -> Iterator[NDArray[np.int64]]:
    size = max(1, min(256, _ACTIVATIONS // (4 * spec.blocks[0][0] * spec.image_size**2)))
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))


def _few(names: Any) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (" …" if len(names) > len(shown) else "")
