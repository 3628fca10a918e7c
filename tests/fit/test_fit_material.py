"""The pictures of a fit: test images train nothing, equal ones judge nothing, and what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.cli.app import run
from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess, get_dataset
from vggdeploy.errors import CheckpointError, DataError, InputError, UsageError
from vggdeploy.fit.material import Material, Source, _check_classes, pack, unpack
from vggdeploy.types import silent


def folder(root: Path, classes: int = 3, images: int = 30, seed: int = 0) -> Path:
    """A folder of noise, a folder a class."""
    random = np.random.default_rng(seed)
    for label in range(classes):
        place = root / f"class{label}"
        place.mkdir(parents=True)
        for at in range(images):
            Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(place / f"{at}.png")
    return root


def material(root: Path) -> Material:
    return Material.of(f"folder:{root}", None, seed=0, on_progress=silent)


def shown(found: Material) -> set[bytes]:
    """Every image that trains or validates."""
    data = [found.data(32, part) for part in range(len(found.parts))]
    return {
        image.tobytes()
        for one in data
        for split in (one.train, one.validation)
        for image in split.batch(np.arange(len(split)))
    }


def images_of_test(found: Material) -> set[bytes]:
    return {image.tobytes() for image in load_split(found.name, "test", default_preprocess(found.name, 32)).images}


def test_no_test_image_trains_or_validates_not_even_a_copy_of_one(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    first = material(root)
    assert not shown(first) & images_of_test(first)
    assert first.duplicates == 0
    # Every image once more under another name: some copies of test images fall into training.
    for image in sorted(root.rglob("*.png")):
        (image.parent / f"copy-{image.name}").write_bytes(image.read_bytes())
    again = material(root)
    assert again.duplicates > 0
    assert not shown(again) & images_of_test(again)
    assert all(one.test is None for one in (again.data(32, 0), first.data(32, 0)))


def test_equal_images_are_in_one_fold(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", images=20)
    for image in sorted(root.rglob("*.png")):
        (image.parent / f"copy-{image.name}").write_bytes(image.read_bytes())
    found = material(root)
    assert len(found.parts) > 1
    for part in range(len(found.parts)):
        data = found.data(32, part)
        train, held = (
            {image.tobytes() for image in split.batch(np.arange(len(split)))} for split in (data.train, data.validation)
        )
        assert not train & held
    judged = np.concatenate([held for _, held in found.parts])
    assert len(set(judged.tolist())) == len(judged)


@pytest.mark.parametrize("few", [0, 2000])
def test_copies_of_an_image_judge_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Bounds on accuracy are of independent pictures: ten copies of each would be taken for ten times as many."""
    monkeypatch.setattr("vggdeploy.fit.material.FEW", few)
    for seed, part in enumerate(("train", "validation", "test")):
        for image in sorted(folder(tmp_path / part, images=8, seed=seed).rglob("*.png")):
            for copy in range(9):
                (image.parent / f"copy{copy}-{image.name}").write_bytes(image.read_bytes())
    found = material(tmp_path)
    for part in range(len(found.parts)):
        held = found.data(32, part).validation
        images = {image.tobytes() for image in held.batch(np.arange(len(held)))}
        assert 0 < len(held) == len(images)
    assert (found.test, found.repeated) == (240, 216)


def test_few_images_are_judged_by_a_cross_validation_and_many_as_they_are_divided(tmp_path: Path) -> None:
    assert len(material(folder(tmp_path / "few", images=10)).parts) == 5
    digits = Material.of("digits", None, seed=0, on_progress=silent)
    assert len(digits.parts) == 3
    assert len(digits.judged) == len(digits.labels) - digits.duplicates
    train, held = digits.parts[0]
    counts = np.bincount(digits.labels[held], minlength=10)
    assert counts.max() - counts.min() <= 15  # stratified
    assert not set(train.tolist()) & set(held.tolist())


def test_a_share_of_the_images_is_one_of_each_class(tmp_path: Path) -> None:
    found = material(folder(tmp_path / "a", images=40))
    whole, half = found.data(32, 0).train, found.data(32, 0, share=0.5).train
    assert len(half) == pytest.approx(len(whole) / 2, abs=3)
    assert set(half.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_class_with_too_few_images_is_named(tmp_path: Path, images: int) -> None:
    root = folder(tmp_path / "a")
    rare = root / "rare"
    rare.mkdir()
    for at in range(images):
        Image.fromarray(np.full((9, 9, 3), at, np.uint8)).save(rare / f"{at}.png")
    with pytest.raises(DataError, match="rare"):
        material(root)


def test_a_class_of_one_picture_many_times_is_too_few(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    same = root / "same"
    same.mkdir()
    for at in range(30):
        Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(same / f"{at}.png")
    with pytest.raises(DataError, match="the class same has 0 images to train and validate with"):
        material(root)


def test_one_class_or_none_is_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for root in (folder(tmp_path / "one", classes=1), tmp_path / "empty"):
        assert run(["fit", str(root), "-o", str(tmp_path / "out"), "--min-accuracy", "50"]) == 1
        assert "a classifier needs 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.fit").exists()


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    (root / "class1" / "broken.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        material(root)


def test_a_picture_in_two_classes_is_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    for name in ("0.png", "1.png", "2.png", "3.png", "4.png"):
        (root / "class1" / f"other-{name}").write_bytes((root / "class0" / name).read_bytes())
    found = material(root)
    assert found.contradictions == 5


def test_a_source_is_a_name_a_folder_or_a_checkpoint(tmp_path: Path, checkpoint: Path, bundle_dir: Path) -> None:
    root = folder(tmp_path / "a")
    assert Source.parse("digits") == Source.parse("Digits") == Source("digits")  # by which a checkpoint knows it, too
    assert Source.parse(str(root)) == Source.parse(f"folder:{root}") == Source(f"folder:{root}")
    assert Source.parse(str(checkpoint)) == Source("digits", checkpoint)
    taught = Source.parse(str(bundle_dir))
    assert taught.dataset == "digits"
    assert taught.teacher is not None
    with pytest.raises(UsageError, match="digitz"):
        Source.parse("digitz")
    with pytest.raises(CheckpointError):
        Source.parse("digits", root)  # no checkpoint


def test_answers_are_packed_and_unpacked() -> None:
    answers = np.array([0, 3, 70_000])
    assert unpack(pack(answers)).tolist() == answers.tolist()


def test_a_page_or_a_directory_that_no_fit_made_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "a")
    page, mine = tmp_path / "out.html", tmp_path / "out.fit" / "mine.txt"
    page.write_text("mine")
    mine.parent.mkdir()
    mine.write_text("mine")
    line = ["fit", str(root), "-o", str(tmp_path / "out"), "--min-accuracy", "50"]
    assert run(line) == 2
    assert "out.html already exists" in capsys.readouterr().err
    for more in ([], ["--force"]):
        if not more:
            page.rename(tmp_path / "kept.html")
        assert run([*line, *more]) == 2
        assert "holds other files (no fit.json)" in capsys.readouterr().err
    page.mkdir()
    assert run([*line, "--force"]) == 2
    assert "is not a regular file" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert (tmp_path / "kept.html").read_text() == "mine"


def test_other_pictures_of_the_same_classes_and_numbers_are_another_material(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    before = material(root)
    assert material(root).sha256 == before.sha256
    Image.fromarray(np.full((12, 12, 3), 9, np.uint8)).save(root / "class0" / "0.png")
    after = material(root)
    assert (after.labels == before.labels).all()
    assert after.sha256 != before.sha256
    # Of a cross-validation most images trained what was trained on this folder.
    held = set(before.held_out.tolist())
    assert held < set(before.judged.tolist())
    assert len(held) < len(before.judged) / 4


@pytest.mark.parametrize(("different", "allowed"), [(1, False), (2, True)])
def test_copies_of_an_image_are_one_to_train_with(different: int, allowed: bool) -> None:
    classes = get_dataset("digits").classes
    known = {(bytes([label, at]), label) for label in range(10) for at in range(9 if label else different)}
    tested = {(bytes([100 + label, at]), label) for label in range(10) for at in range(3)}
    if allowed:
        _check_classes(get_dataset("digits"), known, tested)
        return
    with pytest.raises(DataError, match=f"the class {classes[0]} has 1 image to train"):
        _check_classes(get_dataset("digits"), known, tested)


def test_a_class_of_four_equal_files_to_train_with_is_too_few(tmp_path: Path) -> None:
    root = tmp_path / "a"
    for split, classes in (("train", 2), ("test", 2)):
        folder(root / split, classes=classes, images=10, seed=len(split))
    for image in list((root / "train" / "class1").iterdir())[1:]:
        image.unlink()
    (only,) = (root / "train" / "class1").iterdir()
    for at in range(3):
        (only.parent / f"copy{at}.png").write_bytes(only.read_bytes())
    with pytest.raises(DataError, match="the class class1 has 1 image to train"):
        material(root)
