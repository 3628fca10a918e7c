"""The labelled pictures of a fit: which train, which judge, which are left out. No test image gets past this file."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, read_checkpoint
from vggdeploy.data.folder import PREFIX, is_folder
from vggdeploy.data.loaders import Images, ImageSet, ImageStream, load_split, open_split
from vggdeploy.data.sources import default_preprocess, get_dataset
from vggdeploy.data.specs import DatasetSpec
from vggdeploy.errors import CheckpointError, DataError, counted
from vggdeploy.optimize.optimize import checkpoint_in
from vggdeploy.train.run import Data
from vggdeploy.types import OnProgress

Positions = NDArray[np.int64]
_COMPARED_SIZE = 32  # pixels: at this size two files of one picture are the same numbers
FEW, VERY_FEW = 2000, 500  # images that train and validate, below which a cross-validation judges
_FOLDS, _MANY_FOLDS = 3, 5
_SIZES = 3  # at which the images are kept in memory
LEAST = 4  # images of a class, to train, validate and test


@dataclass(frozen=True)
class Source:
    """What the user gave: the data set's name, and the checkpoint that is to teach, if any."""

    dataset: str
    teacher: Path | None = None

    @classmethod
    def parse(cls, data: str, teacher: Path | None = None) -> Source:
        """``DATA``: a data set's name, a folder with a folder for each class (``folder:`` may be left out), or a checkpoint or
        bundle, which then teaches on the data that it was trained on.

        Raises:
            CheckpointError: a checkpoint that knows no data set.
            UsageError, DataError: as `vggdeploy.data.sources.get_dataset`.
        """
        path = Path(data)
        if not is_folder(data) and path.is_dir():
            given = checkpoint_in(path)
            if (given / CHECKPOINT_NAME).is_file():
                name = read_checkpoint(given).dataset
                if not name:
                    raise CheckpointError(
                        f"{data} does not say what it was trained on", f"vggdeploy fit DATA --teacher {data} -o BUNDLE"
                    )
                return cls(name, given)
            data = f"{PREFIX}{data}"
        name = get_dataset(data).name  # refuses
        root = checkpoint_in(teacher) if teacher else None
        if root is not None:
            read_checkpoint(root)  # refuses
        return cls(name, root)


@dataclass
class Material:
    """The images of training and validation, at any size that is asked for.

    ``parts`` are pairs of positions, (training, validation), within all of both: one pair as the data set is divided, or the
    folds of a cross-validation where images are few. ``duplicates``: how many were left out, as an equal image is a test
    image; ``test``: how many those are, ``repeated`` of them copies of others. Images that are equal are in one fold, and judge
    as one. ``held_out``: the validation images of the data set's own division that equal no training image of it, which a
    network that was trained on it has not seen. ``sha256`` is of the images, as they are compared, their labels and ``parts``.
    """

    name: str
    data_dir: Path | None
    dataset: DatasetSpec
    parts: list[tuple[Positions, Positions]]
    labels: NDArray[np.int64]
    duplicates: int
    test: int
    repeated: int
    contradictions: int
    held_out: Positions
    sha256: str
    sizes: dict[str, int]
    _ready: dict[int, Images] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, name: str, data_dir: Path | None, *, seed: int, on_progress: OnProgress) -> Material:
        """
        Raises:
            DataError: no data, or a class with fewer than `LEAST` images.
            InputError: an image of a folder cannot be read; it is named.
        """
        dataset = get_dataset(name)
        on_progress(None, f"reading {dataset.title}")
        small = default_preprocess(name, _COMPARED_SIZE)
        splits = {split: load_split(name, split, small, data_dir=data_dir) for split in ("train", "validation", "test")}
        on_progress(None, "looking for equal images")
        test = _digests(splits["test"].images)
        tested = set(test)
        digests = [d for split in ("train", "validation") for d in _digests(splits[split].images)]
        labels = np.concatenate([splits["train"].labels, splits["validation"].labels])
        kept = np.array([d not in tested for d in digests])
        count = len(splits["train"])
        training, validation = np.flatnonzero(kept[:count]), count + np.flatnonzero(kept[count:])
        seen = {digests[at] for at in training}
        # What was trained on judges nothing.
        both = np.array([digests[at] in seen for at in validation], bool)
        labelled = list(zip(digests, labels.tolist(), strict=True))
        validation = _different(validation[~both], labelled)
        known = {labelled[at] for at in np.flatnonzero(kept)}
        asked = set(zip(test, splits["test"].labels.tolist(), strict=True))
        _check_classes(dataset, known, asked)
        everything = np.concatenate([training, validation])
        parts = [(training, validation)]
        if len(everything) < FEW:
            folds = _MANY_FOLDS if len(everything) < VERY_FEW else _FOLDS
            parts = _folds(np.flatnonzero(kept), labels, digests, folds, seed)
            parts = [(training, _different(held, labelled)) for training, held in parts]
        return cls(
            name=name, data_dir=data_dir, dataset=dataset, parts=parts, labels=labels,
            duplicates=len(labels) - int(kept.sum()), test=len(splits["test"]), repeated=len(test) - len(asked),
            contradictions=_contradictions([*digests, *test], np.concatenate([labels, splits["test"].labels])),
            held_out=validation, sha256=_identity([*digests, *test], labels, parts),
            sizes={split: len(found) for split, found in splits.items()},
        )  # fmt: skip

    @property
    def judged(self) -> Positions:
        """The validation images of all parts, in their order: the labels of `answers` are theirs."""
        return np.concatenate([validation for _, validation in self.parts])

    @property
    def training(self) -> int:
        """Images that a network is trained on, of the first part."""
        return len(self.parts[0][0])

    def data(self, image_size: int, part: int, *, share: float = 1.0) -> Data:
        """The images of one part for training: no test split is opened. ``share``: of each class's training images."""
        images = self._images(image_size)
        training, validation = self.parts[part]
        if share < 1:
            training = _share(training, self.labels, share)
        return Data(images.take(training), images.take(validation), None)

    def _images(self, image_size: int) -> Images:
        if image_size not in self._ready:
            preprocess = default_preprocess(self.name, image_size)
            both = [open_split(self.name, s, preprocess, data_dir=self.data_dir) for s in ("train", "validation")]
            if len(self._ready) >= _SIZES:
                self._ready.pop(next(iter(self._ready)))  # of a large data set that is gigabytes
            self._ready[image_size] = _joined(both)
        return self._ready[image_size]


@dataclass(frozen=True)
class Joined:
    """Several splits as one, an image's position counted through all of them; of those, ``chosen`` where it is given."""

    splits: list[ImageSet | ImageStream]
    chosen: Positions | None = None

    @property
    def name(self) -> str:
        return self.splits[0].name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.splits[0].classes

    @property
    def left_out(self) -> str:
        return "; ".join(dict.fromkeys(split.left_out for split in self.splits if split.left_out))

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        everything = np.concatenate([split.labels for split in self.splits])
        return everything if self.chosen is None else everything[self.chosen]

    def __len__(self) -> int:
        return sum(map(len, self.splits)) if self.chosen is None else len(self.chosen)

    def batch(self, positions: Positions) -> NDArray[np.uint8]:
        wanted = positions if self.chosen is None else self.chosen[positions]
        parts, begin = [], 0
        order = np.empty(len(wanted), np.int64)
        filled = 0
        for split in self.splits:
            here = np.flatnonzero((wanted >= begin) & (wanted < begin + len(split)))
            if len(here):
                parts.append(split.batch(wanted[here] - begin))
                order[here] = np.arange(filled, filled + len(here))
                filled += len(here)
            begin += len(split)
        return np.concatenate(parts)[order]

    def take(self, positions: Positions) -> Joined:
        return Joined(self.splits, positions if self.chosen is None else self.chosen[positions])


def _joined(splits: list[ImageSet | ImageStream]) -> Images:
    """In memory where all of them are."""
    here = [split for split in splits if isinstance(split, ImageSet)]
    if len(here) < len(splits):
        return Joined(splits)
    return ImageSet(
        name=here[0].name,
        split="train",
        images=np.concatenate([split.images for split in here]),
        labels=np.concatenate([split.labels for split in here]),
        classes=here[0].classes,
        indices=np.concatenate([split.indices for split in here]),
    )


def _digests(images: NDArray[np.uint8]) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images]


def _identity(digests: list[bytes], labels: NDArray[np.int64], parts: list[tuple[Positions, Positions]]) -> str:
    found = hashlib.sha256(b"".join(digests))
    for numbers in (labels, *(side for part in parts for side in part)):
        found.update(len(numbers).to_bytes(8, "little") + numbers.astype("<i8").tobytes())
    return found.hexdigest()


def _check_classes(dataset: DatasetSpec, known: set[tuple[bytes, int]], tested: set[tuple[bytes, int]]) -> None:
    """``known`` and ``tested``: the different images, each with its class."""
    classes = len(dataset.classes)
    counts, tests = (np.bincount([label for _, label in found], minlength=classes) for found in (known, tested))
    for name, count, held in zip(dataset.classes, counts, tests, strict=True):
        if count + held < LEAST or count < 2 or held < 1:
            raise DataError(
                f"the class {name} has {counted(count, 'image')} to train and validate with, and {held} to test with, "
                "equal ones left out",
                f"add some: {LEAST} or more different ones of each class",
            )


def _different(positions: Positions, labelled: list[tuple[bytes, int]]) -> Positions:
    """The first of each image in a class: copies would narrow the bounds, and say nothing of other pictures."""
    first = {labelled[at]: at for at in reversed(positions.tolist())}
    return np.array(sorted(first.values()), np.int64)


def _folds(
    positions: Positions, labels: NDArray[np.int64], digests: list[bytes], folds: int, seed: int
) -> list[tuple[Positions, Positions]]:
    """Stratified folds; equal images are in one of them."""
    random = np.random.default_rng([seed, folds])
    place: dict[bytes, int] = {}
    turn = 0
    for label in np.unique(labels):
        here = [at for at in positions if labels[at] == label]
        for digest in dict.fromkeys(digests[at] for at in random.permutation(here)):
            if digest not in place:
                place[digest] = turn % folds
                turn += 1
    held = np.array([place[digests[at]] for at in positions])
    return [(positions[held != fold], positions[held == fold]) for fold in range(folds)]


def _contradictions(digests: list[bytes], labels: NDArray[np.int64]) -> int:
    """Pictures that lie in more than one class."""
    classes: dict[bytes, set[int]] = {}
    for digest, label in zip(digests, labels.tolist(), strict=True):
        classes.setdefault(digest, set()).add(label)
    return sum(len(found) > 1 for found in classes.values())


def _share(positions: Positions, labels: NDArray[np.int64], share: float) -> Positions:
    """The first ``share`` of each class, at least one image; the order of the positions is random already."""
    chosen = []
    for label in np.unique(labels[positions]):
        here = positions[labels[positions] == label]
        chosen.append(here[: max(1, round(share * len(here)))])
    return np.sort(np.concatenate(chosen))


def pack(answers: Iterable[int] | NDArray[np.int64]) -> str:
    """Classes ``[N]`` as text: Base64 of little-endian 32-bit numbers."""
    return base64.b64encode(np.asarray(answers, "<i4").tobytes()).decode()


def unpack(text: str) -> NDArray[np.int64]:
    """The reverse of `pack`; of a text that is none, nothing."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<i4").astype(np.int64)
    except ValueError:
        return np.empty(0, np.int64)
