"""Ready splits: every image prepared by `vggdeploy.preprocess.prepare`, the function that the runtime uses too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.data.bad_images import bad_images, listed, refusal
from vggdeploy.data.folder import skips_bad
from vggdeploy.data.sources import get_dataset, read_source
from vggdeploy.data.specs import DatasetSpec, RawImages, Split, check_split
from vggdeploy.errors import DataError, InputError, UsageError, counted
from vggdeploy.preprocess import ImageLike, prepare_batch
from vggdeploy.spec import PreprocessSpec

Positions = NDArray[np.int64]
MEMORY = 2 * 2**30  # bytes of prepared pixels that a split may keep in memory


class Images(Protocol):
    """A split, wherever its pixels are: labels ``int64 [N]``, and prepared images by position."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def left_out(self) -> str: ...
    def __len__(self) -> int: ...

    def batch(self, positions: Positions) -> NDArray[np.uint8]:
        """The images at these positions of the split: ``uint8 [n, H, W, C]``."""

    def take(self, positions: Positions) -> Self:
        """The split of these images only."""


@dataclass(frozen=True)
class ImageSet:
    """A split in memory: ``images`` ``uint8 [N, H, W, C]``, ``labels`` ``int64 [N]``, the names of the classes.

    ``indices`` are the images' positions in the source's own order. ``left_out`` names the images that could not be used,
    where such images are skipped.
    """

    name: str
    split: Split
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    indices: NDArray[np.int64]
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Positions) -> NDArray[np.uint8]:
        return self.images[positions]

    def take(self, positions: Positions) -> ImageSet:
        return replace(
            self,
            images=self.images[positions],
            labels=self.labels[positions],
            indices=self.indices[positions],
        )


@dataclass(frozen=True)
class ImageStream:
    """A split that is too large for the memory: its images are prepared whenever they are asked for, as `ImageSet`'s."""

    name: str
    split: Split
    raw: RawImages
    preprocess: PreprocessSpec
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    indices: NDArray[np.int64]
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Positions) -> NDArray[np.uint8]:
        """As `Images.batch`.

        Raises:
            InputError: an image of a folder cannot be used. It names all of the folder's that cannot.
        """
        try:
            return prepare_batch(_pick(self.raw, self.indices[positions]), self.preprocess)
        except InputError as error:
            if isinstance(self.raw.images, np.ndarray):
                raise
            raise refusal(self.raw.images, self.preprocess, error) from error

    def take(self, positions: Positions) -> ImageStream:
        return replace(self, labels=self.labels[positions], indices=self.indices[positions])


def load_split(
    name: str,
    split: str,
    preprocess: PreprocessSpec,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    hold_out: bool = True,
) -> ImageSet:
    """Load a split of a data set, prepared.

    Args:
        name: a data set of `vggdeploy.data.specs`, or ``folder:PATH``.
        split: ``"train"``, ``"validation"`` or ``"test"``; they never share an image, and are the same everywhere.
        preprocess: decides size and mode.
        data_dir: where the data set lies or is downloaded to; default the user's cache. ``digits`` and folders need
            neither.
        limit: only the first ``limit`` images, which are a random sample.
        hold_out: whether the ``train`` split leaves the validation images out, where they are drawn from it.

    Raises:
        UsageError: an unknown data set or split, or a limit below 1.
        DataError: the data set cannot be found, downloaded or read.
        InputError: images of a folder cannot be used; all are named.
        MissingDependencyError: ``mnist``, ``fashion-mnist`` and ``cifar10`` need torchvision.
    """
    stream = _open(name, split, preprocess, data_dir, limit, hold_out)
    return ImageSet(
        name=stream.name,
        split=stream.split,
        images=stream.batch(np.arange(len(stream))),
        labels=stream.labels,
        classes=stream.classes,
        indices=stream.indices,
        left_out=stream.left_out,
    )


def open_split(
    name: str,
    split: str,
    preprocess: PreprocessSpec,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    hold_out: bool = True,
) -> ImageSet | ImageStream:
    """A split, in memory where its prepared pixels take at most ``memory`` bytes. Otherwise as `load_split`."""
    stream = _open(name, split, preprocess, data_dir, None, hold_out)
    if len(stream) * preprocess.crop**2 * preprocess.channels > memory:
        return stream
    return load_split(name, split, preprocess, data_dir=data_dir, hold_out=hold_out)


def per_class(labels: NDArray[np.int64], count: int, classes: Sequence[str], *, seed: int) -> Positions:
    """Positions of ``count`` images of every class, drawn by ``seed``, in the order of the split.

    Raises:
        DataError: a class has fewer.
    """
    random = np.random.default_rng([seed, count])
    chosen = []
    for label, name in enumerate(classes):
        places = np.flatnonzero(labels == label)
        if len(places) < count:
            raise DataError(
                f"the class {name} has {len(places)} training images, not {count}", "take fewer: --per-class"
            )
        chosen.append(random.choice(places, count, replace=False))
    return np.sort(np.concatenate(chosen))


def _open(
    name: str,
    split: str,
    preprocess: PreprocessSpec,
    data_dir: str | os.PathLike[str] | None,
    limit: int | None,
    hold_out: bool,
) -> ImageStream:
    part = check_split(split)
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of images is {limit}", "give at least 1")
    dataset = get_dataset(name)
    raw = read_source(dataset, part, None if data_dir is None else Path(data_dir))
    if not hold_out:
        dataset = msgspec.structs.replace(dataset, validation=0.0)
    indices = split_indices(dataset, raw.part, raw.labels, part, raw.keys)
    left_out = ""
    if skips_bad(name):
        indices, left_out = _usable(raw, indices, preprocess)
        for label in set(range(len(dataset.classes))) - set(raw.labels[indices].tolist()) if part == "train" else ():
            raise DataError(
                f"of the class {dataset.classes[label]} no training image can be used: {left_out}", "replace them"
            )
    indices = indices[:limit]
    if not len(indices):
        raise DataError(
            f"{dataset.name} holds {counted(len(raw.labels), 'image')}: too few to hold out a {part} split",
            f"add images, or put some into a folder of their own: PATH/{part}/CLASS",
        )
    return ImageStream(dataset.name, part, raw, preprocess, raw.labels[indices], dataset.classes, indices, left_out)


def _usable(raw: RawImages, indices: Positions, preprocess: PreprocessSpec) -> tuple[Positions, str]:
    """Those of the images that can be used, and the sentence that names the others.

    They are left out after the split was made: all other images stay in theirs.
    """
    assert not isinstance(raw.images, np.ndarray)  # noqa: S101  # for mypy: they are a folder's
    paths = {index: raw.images[index] for index in indices.tolist()}
    bad = bad_images(paths.values(), preprocess)
    kept = np.array([index for index, path in paths.items() if path not in bad], np.int64)
    if not bad:
        return kept, ""
    return kept, f"{len(bad):,} of {len(paths):,} images are left out: {listed(list(bad.values()))}"


def _pick(raw: RawImages, indices: Positions) -> list[ImageLike]:
    if isinstance(raw.images, np.ndarray):
        return list(raw.images[indices])
    return [raw.images[index] for index in indices]


Indices = NDArray[np.int64]


def split_indices(
    dataset: DatasetSpec, part: str, labels: NDArray[np.int64], split: Split, keys: Sequence[str] | None = None
) -> Indices:
    """Positions, within the images that the source calls ``part``, of those in ``split``.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``, as the authors of the data set divided it; ``"all"`` where
            they did not.
        labels: the labels of every image of that part.
        keys: what the order is made from instead of positions: names that stay where images are added or removed.

    The positions are shuffled, so that any first n are a random sample.
    """
    salt = f"{dataset.name}/{part}"
    order = shuffled([f"{salt}/{index}" for index in range(len(labels))] if keys is None else keys)
    if part in ("validation", "test"):
        return order
    test, rest = _hold_out(order, labels, dataset.test)
    validation, train = _hold_out(rest, labels, dataset.validation)
    return {"train": train, "validation": validation, "test": test}[split]


def shuffled(keys: Sequence[str]) -> Indices:
    """Positions ordered by the SHA-256 of their keys: the same order with every version of NumPy, on every machine."""
    digests = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__), np.int64)


def _hold_out(order: Indices, labels: NDArray[np.int64], share: float) -> tuple[Indices, Indices]:
    """The first ``share`` of every class, and the rest; both in the order given."""
    held = np.zeros(len(order), bool)
    here = labels[order]
    for label in np.unique(here):
        places = np.flatnonzero(here == label)
        held[places[: round(share * len(places))]] = True
    return order[held], order[~held]
