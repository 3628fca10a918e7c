"""The data sets by name: classes, channels, split sizes, and what their readers give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import unknown_name
from vggdeploy.records import Record

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DatasetSpec(Record, frozen=True, kw_only=True):
    """One data set. ``mean`` and ``std`` are per channel, in units of 0–1, measured on its training split.

    ``source`` is ``"module:function"``, imported when the data set is read; ``requires`` is the package it needs.
    ``validation`` is the share of the training images that is held out; ``test`` likewise, or 0 where the authors of
    the data set fixed a test set. ``sizes`` are empty, and ``size`` is 0, where they are not known beforehand.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    channels: int
    size: int
    sizes: dict[Split, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: float
    test: float = 0.0
    source: str
    requires: str = ""
    license: str


@dataclass(frozen=True)
class RawImages:
    """Images as the source has them: ``uint8 [N, H, W]`` or ``[N, H, W, C]``, or paths, and one label each.

    ``part`` says which of the source's own divisions this is: ``"train"``, ``"validation"``, ``"test"``, or ``"all"``
    without one. ``keys`` name the images where positions do not (see `vggdeploy.data.splits.split_indices`).
    """

    part: str
    images: NDArray[np.uint8] | Sequence[Path]
    labels: NDArray[np.int64]
    keys: Sequence[str] | None = None


_DIGITS = tuple("0123456789")

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            title="Optical Recognition of Handwritten Digits (UCI), 1,797 grey images of 8×8",
            classes=_DIGITS,
            channels=1,
            size=8,
            sizes={"train": 1295, "validation": 143, "test": 359},
            mean=(0.305,),
            std=(0.376,),
            validation=0.1,
            test=0.2,
            source="vggdeploy.data.sources:read_digits",
            license="CC BY 4.0",
        ),
        DatasetSpec(
            name="mnist",
            title="MNIST, 70,000 grey images of 28×28",
            classes=_DIGITS,
            channels=1,
            size=28,
            sizes={"train": 55_000, "validation": 5_000, "test": 10_000},
            mean=(0.1307,),
            std=(0.3081,),
            validation=1 / 12,
            source="vggdeploy.data.torchvision_source:read_mnist",
            requires="torchvision",
            license="CC BY-SA 3.0",
        ),
        DatasetSpec(
            name="fashion-mnist",
            title="Fashion-MNIST, 70,000 grey images of 28×28",
            classes=(
                "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
            ),
            channels=1,
            size=28,
            sizes={"train": 55_000, "validation": 5_000, "test": 10_000},
            mean=(0.2860,),
            std=(0.3530,),
            validation=1 / 12,
            source="vggdeploy.data.torchvision_source:read_mnist",
            requires="torchvision",
            license="MIT",
        ),
        DatasetSpec(
            name="cifar10",
            title="CIFAR-10, 60,000 RGB images of 32×32",
            classes=(
                "airplane", "automobile", "bird", "cat", "deer",
                "dog", "frog", "horse", "ship", "truck",
            ),
            channels=3,
            size=32,
            sizes={"train": 45_000, "validation": 5_000, "test": 10_000},
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            validation=0.1,
            source="vggdeploy.data.cifar_source:read_cifar10",
            requires="torchvision",
            license="unknown",
        ),
    )
}  # fmt: skip


def check_split(split: str) -> Split:
    """``split`` itself, if it is one.

    Raises:
        UsageError: it is not train, validation or test.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise unknown_name("split", split, SPLITS)


def user_cache() -> Path:
    """Where data sets are kept when no ``--data-dir`` is given."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vggdeploy" / "data"
