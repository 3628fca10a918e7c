"""Where the images come from, before any preprocessing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.data.specs import DatasetSpec, Split
from vggdeploy.errors import DataError
from vggdeploy.optional import first_line, require


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


Reader = Callable[[DatasetSpec, Split, Path | None], RawImages]


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
            f"{dataset.name} ({raw.part}) holds {len(raw.images)} images and {len(raw.labels)} labels, "
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


def user_cache() -> Path:
    """Where data sets are kept when no ``--data-dir`` is given."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vggdeploy" / "data"
