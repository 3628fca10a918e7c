"""One's own images: classes from folders, splits from names, and what is wrong with a folder said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.data.loaders import ImageStream, load_split, open_split, per_class
from vggdeploy.data.sources import default_preprocess, get_dataset
from vggdeploy.data.specs import SPLITS
from vggdeploy.errors import DataError, InputError
from vggdeploy.preprocess import prepare

# Every mode and format that people have, of different sizes.
MODES = (("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "bmp"), ("I;16", "png"))


def picture(path: Path, number: int, mode: str = "RGB", size: tuple[int, int] = (40, 36)) -> None:
    random = np.random.default_rng(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(random.integers(0, 65536, size[::-1], np.uint16)).save(path)
    else:
        Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)).convert(mode).save(path)


def fill(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    for name, count in classes.items():
        for number in range(count):
            mode, suffix = MODES[number % len(MODES)]
            picture(root / name / f"{number:03d}.{suffix}", start + number, mode, (34 + number, 50 - number))
    return root


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return fill(tmp_path / "animals", {"dog": 10, "cat": 20, "Bird": 10})


def test_classes_are_the_sorted_folders_and_images_go_through_prepare(animals: Path) -> None:
    (animals / ".hidden").mkdir()
    (animals / "README.txt").write_text("not an image")
    (animals / "cat" / "notes.txt").write_text("not an image either")
    (animals / "cat" / ".thumbnail.png").write_bytes(b"hidden, and damaged")
    picture(animals / "cat" / "deeper" / "x.PNG", 99)
    name = f"folder:{animals}"
    spec, preprocess = get_dataset(name), default_preprocess(name, 32)
    assert (spec.classes, spec.channels, preprocess.mode) == (("Bird", "cat", "dog"), 3, "RGB")
    parts = [load_split(name, split, preprocess) for split in SPLITS]
    assert sum(map(len, parts)) == 41
    files = sorted((p for p in animals.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".gif", ".bmp")), key=str)
    files = [p for kind in spec.classes for p in sorted((animals / kind).rglob("*")) if p in files and p.name[0] != "."]
    for part in parts:
        for image, label, index in zip(part.images, part.labels, part.indices, strict=True):
            assert (image == prepare(files[index], preprocess)).all()
            assert spec.classes[label] == files[index].relative_to(animals).parts[0]


def members(root: Path) -> dict[str, set[str]]:
    """Which file is in which split."""
    name = f"folder:{root}"
    found = {}
    for split in SPLITS:
        part = open_split(name, split, default_preprocess(name, 32), memory=0)
        assert isinstance(part, ImageStream)
        found[split] = {str(Path(str(part.raw.images[i])).relative_to(root)) for i in part.indices}
    return found


def test_splits_are_disjoint_stratified_and_stay_when_the_folder_moves_or_grows(animals: Path, tmp_path: Path) -> None:
    before = members(animals)
    assert {split: len(files) for split, files in before.items()} == {"train": 28, "validation": 4, "test": 8}
    assert len(set.union(*before.values())) == 40
    assert sum(f.startswith("cat") for f in before["test"]) == 4
    moved = tmp_path / "elsewhere"
    shutil.move(animals, moved)
    assert members(moved) == before
    picture(moved / "dog" / "new.png", 1)
    after = members(moved)
    changed = {f for split in SPLITS for f in after[split] ^ before[split]}
    assert "dog/new.png" in changed
    assert len(changed) <= 3  # one that crosses a border, at most, beside the new one


def test_parts_that_the_user_divided_are_kept_and_the_rest_held_out(tmp_path: Path) -> None:
    root = tmp_path / "divided"
    fill(root / "train", {"a": 10, "b": 10})
    assert {s: len(f) for s, f in members(root).items()} == {"train": 14, "validation": 2, "test": 4}
    fill(root / "val", {"a": 3, "b": 2})
    assert {s: len(f) for s, f in members(root).items()} == {"train": 16, "validation": 5, "test": 4}
    fill(root / "test", {"a": 1, "b": 1})
    assert {s: len(f) for s, f in members(root).items()} == {"train": 20, "validation": 5, "test": 2}


def refused(root: Path, *, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        load_split(f"folder:{root}", split, default_preprocess("cifar10", 32))
    return str(caught.value)


def test_an_empty_class_is_named(animals: Path) -> None:
    (animals / "fish").mkdir()
    assert f"the class folder {animals / 'fish'} holds no images" in refused(animals)
    (animals / "fish" / "fish.txt").write_text("no image")
    assert "holds no images" in refused(animals)


def test_classes_that_differ_between_parts_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "val", {"a": 2, "c": 2, "d": 1})
    message = refused(tmp_path)
    assert "has 3 classes and" in message
    assert "b is missing, c is not in train, d is not in train" in message


def test_what_is_no_folder_of_classes_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none")
    assert "holds 0 class folders" in refused(tmp_path)
    fill(tmp_path, {"only": 3})
    assert "holds 1 class folder; a classifier needs 2" in refused(tmp_path)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file")
    for name in ("train", "val", "valid"):
        fill(tmp_path / name, {"a": 1, "b": 1})
    assert "are both there" in refused(tmp_path)


def test_too_few_images_to_hold_any_out(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2, "b": 2})
    assert "too few to hold out a validation split" in refused(tmp_path, split="validation")


def test_an_image_that_cannot_be_read_is_named(animals: Path) -> None:
    broken = animals / "cat" / "003.gif"
    broken.write_bytes(broken.read_bytes()[:50])
    name = f"folder:{animals}"
    with pytest.raises(InputError, match=r"cat/003\.gif is "):
        for split in SPLITS:
            load_split(name, split, default_preprocess(name, 32))


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_what_does_not_fit_into_the_memory_is_prepared_whenever_it_is_asked_for(animals: Path, name: str) -> None:
    name = f"folder:{animals}" if name == "folder" else name
    preprocess = default_preprocess(name, 32)
    memory, stream = load_split(name, "train", preprocess), open_split(name, "train", preprocess, memory=1000)
    assert isinstance(stream, ImageStream)
    assert (stream.labels == memory.labels).all()
    assert stream.classes == memory.classes
    some = np.array([5, 0, 17])
    assert (stream.batch(some) == memory.images[some]).all()
    assert (stream.take(some).batch(np.array([2, 0])) == memory.take(some).images[[2, 0]]).all()
    assert (stream.take(some).labels == memory.labels[some]).all()


def test_so_many_of_each_class_are_drawn_by_the_seed() -> None:
    labels = np.array([0, 1] * 20)
    found = [per_class(labels, 5, ("a", "b"), seed=seed) for seed in (1, 1, 2)]
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
    assert len(set(found[0])) == 10
    assert np.bincount(labels[found[0]]).tolist() == [5, 5]
    with pytest.raises(DataError, match="the class b has 20 training images, not 21"):
        per_class(np.append(labels, 0), 21, ("a", "b"), seed=0)
