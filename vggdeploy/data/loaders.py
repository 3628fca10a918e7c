"""Ready splits: every image prepared by `vggdeploy.preprocess.prepare`, the function that the runtime uses too."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggdeploy.data.sources import read_source
from vggdeploy.data.specs import Split, check_split, get_dataset
from vggdeploy.data.splits import split_indices
from vggdeploy.errors import UsageError
from vggdeploy.preprocess import prepare_batch
from vggdeploy.spec import PreprocessSpec


@dataclass(frozen=True)
class ImageSet:
    """A split in memory: ``images`` ``uint8 [N, H, W, C]``, ``labels`` ``int64 [N]``, the names of the classes.

    ``indices`` are the images' positions in the source's own order.
    """

    name: str
    split: Split
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load_split(
    name: str,
    split: str,
    preprocess: PreprocessSpec,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Load a split of a data set, prepared.

    Args:
        name: a data set of `vggdeploy.data.specs`.
        split: ``"train"``, ``"validation"`` or ``"test"``; they never share an image, and are the same everywhere.
        preprocess: decides size and mode.
        data_dir: where the data set lies or is downloaded to; default the user's cache. ``digits`` needs neither.
        limit: only the first ``limit`` images, which are a random sample.

    Raises:
        UsageError: an unknown data set or split, or a limit below 1.
        DataError: the data set cannot be found, downloaded or read.
        MissingDependencyError: ``mnist`` and ``fashion-mnist`` need torchvision.
    """
    dataset, part = get_dataset(name), check_split(split)
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} images", "give at least 1")
    raw = read_source(dataset, part, None if data_dir is None else Path(data_dir))
    indices = split_indices(dataset, raw.part, raw.labels, part)[:limit]
    images = prepare_batch(list(raw.images[indices]), preprocess)
    return ImageSet(dataset.name, part, images, raw.labels[indices], dataset.classes, indices)
