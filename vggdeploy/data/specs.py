"""The data sets by name: classes, channels, split sizes, and what their readers give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.records import Record
from vggdeploy.system.cache import user_home

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
    without one. ``keys`` name the images where positions do not (see `vggdeploy.data.loaders.split_indices`).
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
            source="vggdeploy.data.torchvision_source:read_cifar10",
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
    return (Path(base) if base.startswith("/") else user_home() / ".cache") / "vggdeploy" / "data"


def match_classes(
    labels: NDArray[np.int64], theirs: tuple[str, ...], ours: tuple[str, ...], classes: int, *, data: str, option: str
) -> tuple[NDArray[np.int64], str]:
    """The true class of each image as the model counts classes, and a note where names do not say that.

    A directory lists its classes by name; the model may have them in another order, and by the same names. Then the
    names decide. Where the names differ, the order is all there is.

    Args:
        labels: the classes as the data set counts them, ``int64 [N]``.
        theirs: the data set's names.
        ours: the model's names; may be empty.
        classes: how many the model has.
        data, option: how the error names the data set, and the option that gives it.

    Raises:
        UsageError: the data set has another number of classes, or the model has none.
    """
    if not classes:
        raise UsageError("the model has no class scores, only features", "take a model with a classifier")
    if len(theirs) != classes:
        raise UsageError(
            f"{data} has {len(theirs)} classes, the model {classes}",
            f"name the data set that the model was trained on: {option}",
        )
    if not ours or ours == theirs:
        return labels, ""
    if same_names(theirs, ours):
        place = {label: index for index, label in enumerate(ours)}
        return np.array([place[label] for label in theirs], np.int64)[labels], ""
    odd = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return labels, (
        f"classes were matched by their order, because {data} names them otherwise than the model: "
        f"class {odd} is '{theirs[odd]}' there, and '{ours[odd]}' in the model"
    )


def same_names(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether both have the same names, each once, in whatever order."""
    return len(set(ours)) == len(ours) and set(ours) == set(theirs)
