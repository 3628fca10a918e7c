"""``folder:PATH``: one's own images, a folder for each class (torchvision calls this an ImageFolder). Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vggdeploy.data.specs import DatasetSpec, RawImages, Split
from vggdeploy.errors import DataError, UsageError, counted, nearby
from vggdeploy.preprocess import SUFFIXES, UNREAD_SUFFIXES, describe, walk_images

# With the second, images that cannot be used are left out. It is a part of the name, so that whoever reads the data set again,
# to evaluate or to prove, leaves out the same ones.
PREFIX, SKIPPING = "folder:", "folder+skip-bad:"
# ImageNet's: what most weights to start from were trained with, and near to any photographs'.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",),
}  # fmt: skip
_HELD_OUT: dict[Split, float] = {"validation": 0.1, "test": 0.2}
_LAYOUT = "make one folder a class, with its images: PATH/CLASS/IMAGE, or PATH/train/CLASS/IMAGE"


def is_folder(name: str) -> bool:
    """Whether a data set's name means a folder of the user's.

    Raises:
        UsageError: it does, and names none.
    """
    if name.strip() in (PREFIX, SKIPPING):
        raise UsageError(f"{name.strip()} names no folder", f"give its path: {name.strip()}PATH")
    return name.startswith((PREFIX, SKIPPING))


def skips_bad(name: str) -> bool:
    """Whether images that cannot be used are left out."""
    return name.startswith(SKIPPING)


def skipping(name: str) -> str:
    """The same folder, with its bad images left out.

    Raises:
        UsageError: it is no folder.
    """
    if not is_folder(name):
        raise UsageError(f"{name} has no bad images to skip", f"leave --skip-bad out, or give --dataset {PREFIX}PATH")
    return SKIPPING + _path(name)


def same_pictures(one: str, other: str) -> bool:
    """Whether two data sets' names mean the same pictures: of a folder, however its path is written, with or without its bad
    ones."""
    if is_folder(one) and is_folder(other):
        return Path(_path(one)).resolve() == Path(_path(other)).resolve()
    return one == other


def _path(name: str) -> str:
    return name.removeprefix(PREFIX).removeprefix(SKIPPING)


def folder_spec(name: str) -> DatasetSpec:
    """The data set in a folder: its classes are the names of the folders with images, sorted.

    Raises:
        DataError: no such folder, fewer than two classes, or parts whose classes differ.
    """
    root = Path(_path(name))
    parts = _parts(root)
    classes = _classes(parts["train"])
    for part, directory in parts.items():
        _same_classes(part, directory, _classes(directory), parts["train"], classes)
    return DatasetSpec(
        name=name,
        title=f"images in {describe(root)}",
        classes=classes,
        channels=3,
        size=0,
        sizes={},
        mean=MEAN,
        std=STD,
        validation=0.0 if "validation" in parts else _HELD_OUT["validation"],
        test=0.0 if "test" in parts else _HELD_OUT["test"],
        source="vggdeploy.data.folder:read_folder",
        license="unknown",
    )


def read_folder(dataset: DatasetSpec, split: Split, data_dir: Path | None) -> RawImages:
    """The paths of the images of ``split``'s part, sorted by class and path. ``data_dir`` is not needed.

    An image is found by its suffix, at any depth below its class; hidden files are not looked at. AVIF and others that are
    images, and are not read here, are among them: who uses them is told.

    Raises:
        DataError: a class without images.
    """
    parts = _parts(Path(_path(dataset.name)))
    own = split in parts and (split != "train" or len(parts) > 1)
    directory = parts.get(split, parts["train"])
    images: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(dataset.classes):
        paths = list(walk_images([directory / name], hidden=False, suffixes=SUFFIXES | UNREAD_SUFFIXES))
        if not paths:
            raise DataError(f"the class folder {describe(directory / name)} holds no images", "add some, or remove it")
        images += paths
        labels += [label] * len(paths)
    # Of the path below the part: adding an image, or moving the folder, leaves every other image in its split.
    keys = [os.fspath(path.relative_to(directory)) for path in images]
    return RawImages(split if own else "train", images, np.array(labels, np.int64), keys)


def _parts(root: Path) -> dict[Split, Path]:
    """The folders of the splits that the user divided; of an undivided folder only ``train``, which is the root."""
    if not root.is_dir():
        missing = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{describe(root)} {missing}", f"{nearby(root)}give the folder of your images: {PREFIX}PATH")
    parts: dict[Split, Path] = {}
    for split, names in _PARTS.items():
        here = [root / name for name in names if (root / name).is_dir()]
        if len(here) > 1:
            raise DataError(f"{describe(here[0])} and {describe(here[1])} are both there", "keep one of them")
        if here:
            parts[split] = here[0]
    return parts if "train" in parts else {"train": root}


def _classes(directory: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(
            f"{describe(directory)} holds {counted(len(names), 'class folder')}; a classifier needs 2", _LAYOUT
        )
    return tuple(names)


def _same_classes(part: str, here: Path, found: tuple[str, ...], train: Path, classes: tuple[str, ...]) -> None:
    if found == classes:
        return
    missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    named = [f"{name} is missing" for name in missing[:2]] + [f"{name} is not in {train.name}" for name in extra[:2]]
    raise DataError(
        f"{describe(here)} has {len(found)} classes and {describe(train)} {len(classes)}: {', '.join(named)}",
        f"give {part} the same class folders",
    )
