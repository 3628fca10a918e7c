"""The data sets by name: classes, channels, split sizes, and the preprocessing that fits them. Data, not code."""

from __future__ import annotations

from typing import Literal, get_args

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.records import Record
from vggdeploy.spec import PreprocessSpec

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DatasetSpec(Record, frozen=True, kw_only=True):
    """One data set. ``mean`` and ``std`` are per channel, in units of 0–1, measured on its training split.

    ``source`` is ``"module:function"``, imported when the data set is read; ``requires`` is the package it needs.
    ``validation`` is the share of the training images that is held out; ``test`` likewise, or 0 where the authors of
    the data set fixed a test set.
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
    )
}  # fmt: skip

_ALIASES = {"fashionmnist": "fashion-mnist", "fashion": "fashion-mnist"}


def get_dataset(name: str) -> DatasetSpec:
    """The data set of that name; case and the usual separators do not matter.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    wanted = _ALIASES.get(wanted.replace("-", ""), wanted)
    if wanted not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[wanted]


def check_split(split: str) -> Split:
    """``split`` itself, if it is one.

    Raises:
        UsageError: it is not train, validation or test.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise unknown_name("split", split, SPLITS)


def default_preprocess(name: str, image_size: int) -> PreprocessSpec:
    """The preprocessing for training on a data set at ``image_size`` pixels: resized whole, its own mean and std.

    Raises:
        UsageError: an unknown data set, or a size below 1.
    """
    dataset = get_dataset(name)
    if image_size < 1:
        raise UsageError(f"image size {image_size}", "give the height and width in pixels, for example 32")
    return PreprocessSpec(
        mode="L" if dataset.channels == 1 else "RGB",
        resize=image_size,
        crop=image_size,
        mean=dataset.mean,
        std=dataset.std,
    )
