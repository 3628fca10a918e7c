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

_ALIASES = {"fashionmnist": "fashion-mnist", "fashion": "fashion-mnist", "cifar": "cifar10"}
# Of red, green and blue in grey (ITU-R BT.601), as `vggdeploy.preprocess` mixes them.
_LUMA = (0.299, 0.587, 0.114)


def get_dataset(name: str) -> DatasetSpec:
    """The data set of that name; case and the usual separators do not matter. ``folder:PATH`` is one's own images.

    Raises:
        UsageError: there is none; the closest name is offered.
        DataError: there is no such folder, or it holds no classes.
    """
    from vggdeploy.data.folder import folder_spec, is_folder  # it is made of this module's records

    if is_folder(name):
        return folder_spec(name)
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    wanted = _ALIASES.get(wanted.replace("-", ""), wanted.replace("cifar-10", "cifar10"))
    if wanted not in DATASETS:
        raise unknown_name("data set", name, (*DATASETS, "folder:PATH"))
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


def default_preprocess(name: str, image_size: int, *, channels: int = 0) -> PreprocessSpec:
    """The preprocessing for training on a data set at ``image_size`` pixels: resized whole, its own mean and std.

    ``channels`` 1 or 3 makes grey or RGB of whatever the data set has; 0 leaves it.

    Raises:
        UsageError: an unknown data set, or a size below 1.
        DataError: as `get_dataset`.
    """
    dataset = get_dataset(name)
    if image_size < 1:
        raise UsageError(f"image size {image_size}", "give the height and width in pixels, for example 32")
    mean, std = dataset.mean, dataset.std
    if channels == 3 and dataset.channels == 1:
        mean, std = mean * 3, std * 3
    elif channels == 1 and dataset.channels == 3:
        # Colours of a photograph rise and fall together: the mixture varies about as much as they do.
        mean, std = (_mix(mean),), (_mix(std),)
    return PreprocessSpec(
        mode="L" if (channels or dataset.channels) == 1 else "RGB",
        resize=image_size,
        crop=image_size,
        mean=mean,
        std=std,
    )


def _mix(values: tuple[float, ...]) -> float:
    return round(sum(share * value for share, value in zip(_LUMA, values, strict=True)), 4)
