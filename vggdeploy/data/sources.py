"""Data sets by name: which there is, how its images are read, and the preprocessing that fits them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.data.folder import folder_spec, is_folder
from vggdeploy.data.specs import DATASETS, DatasetSpec, RawImages, Split
from vggdeploy.errors import DataError, UsageError, counted, first_line, unknown_name
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.optional import require

_ALIASES = {"fashionmnist": "fashion-mnist", "fashion": "fashion-mnist", "cifar": "cifar10"}
# Of red, green and blue in grey (ITU-R BT.601), as `vggdeploy.preprocess` mixes them.
_LUMA = (0.299, 0.587, 0.114)

Reader = Callable[[DatasetSpec, Split, Path | None], RawImages]


def get_dataset(name: str) -> DatasetSpec:
    """The data set of that name; case and the usual separators do not matter. ``folder:PATH`` is one's own images.

    Raises:
        UsageError: there is none; the closest name is offered.
        DataError: there is no such folder, or it holds no classes.
    """
    if is_folder(name):
        return folder_spec(name)
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    wanted = _ALIASES.get(wanted.replace("-", ""), wanted.replace("cifar-10", "cifar10"))
    if wanted not in DATASETS:
        raise unknown_name("data set", name, (*DATASETS, "folder:PATH"))
    return DATASETS[wanted]


def read_source(dataset: DatasetSpec, split: Split, data_dir: Path | None) -> RawImages:
    """Read the part of a data set that holds ``split``.

    Raises:
        DataError: it cannot be found, downloaded or read, or it is not the whole data set.
        MissingDependencyError: its reader needs a package that is not installed.
    """
    if dataset.requires:
        require(dataset.requires, to=f"read {dataset.name}", extra="train")
    module, _, function = dataset.source.partition(":")
    reader: Reader = getattr(importlib.import_module(module), function)
    raw = reader(dataset, split, data_dir)
    sizes = dataset.sizes
    if not sizes:  # the reader has looked
        return raw
    expected = {"all": sum(sizes.values()), "train": sizes["train"] + sizes["validation"], "test": sizes["test"]}
    if len(raw.images) != len(raw.labels) or len(raw.images) != expected[raw.part]:
        raise DataError(
            f"{dataset.name} ({raw.part}) holds {counted(len(raw.images), 'image')} and {counted(len(raw.labels), 'label')}, "
            f"not {expected[raw.part]} of each",
            "remove it and let it be fetched again",
        )
    if raw.labels.min() < 0 or raw.labels.max() >= len(dataset.classes):
        raise DataError(
            f"{dataset.name} has labels {raw.labels.min()} … {raw.labels.max()} for {len(dataset.classes)} classes",
            "remove it and let it be fetched again",
        )
    return raw


def read_digits(dataset: DatasetSpec, split: Split, data_dir: Path | None) -> RawImages:
    """The UCI digits from the package itself; values 0 … 16 become 0 … 255. ``data_dir`` is not needed."""
    try:
        with files("vggdeploy.data").joinpath("digits.npz").open("rb") as file:
            arrays: Any = np.load(file, allow_pickle=False)
            images, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # a damaged zip raises whatever its damage meets: OSError, zlib.error, KeyError, …
        raise DataError(
            f"the digits of the package cannot be read: {first_line(error)}", "reinstall vggdeploy"
        ) from error
    scaled = (images.astype(np.uint16) * 255 + 8) // 16
    return RawImages("all", scaled.astype(np.uint8), labels.astype(np.int64))


def default_preprocess(name: str, image_size: int, *, channels: int = 0) -> PreprocessSpec:
    """The preprocessing for training on a data set at ``image_size`` pixels: resized whole, its own mean and std.

    ``channels`` 1 or 3 makes grey or RGB of whatever the data set has; 0 leaves it.

    Raises:
        UsageError: an unknown data set, or a size below 1.
        DataError: as `get_dataset`.
    """
    dataset = get_dataset(name)
    if image_size < 1:
        raise UsageError(f"the image size is {image_size}", "give the height and width in pixels, for example 32")
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
