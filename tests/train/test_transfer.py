"""Starting from other weights: what is copied, what starts anew, what stays as it was."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.errors import CheckpointError, DataError
from vggdeploy.model.weights import load_model
from vggdeploy.train.loop import train
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.record import TrainingRecord


@pytest.fixture
def recipe(checkpoint: Path) -> Recipe:
    """A recipe whose network is the shared checkpoint's, which learned the digits."""
    return Recipe(width=0.125, hidden=128, dropout=0.0, init=str(checkpoint), epochs=1, per_class=4, batch_size=20)


@pytest.fixture(scope="session")
def three_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey 28×28 images of three classes."""
    root = tmp_path_factory.mktemp("shapes")
    random = np.random.default_rng(0)
    for name, where in (("left", np.s_[:, :14]), ("right", np.s_[:, 14:]), ("top", np.s_[:14])):
        (root / name).mkdir()
        for number in range(15):
            pixels = random.integers(0, 60, (28, 28), np.uint8)
            pixels[where] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_the_same_classes_keep_every_weight(tmp_path: Path, recipe: Recipe) -> None:
    start = msgspec.structs.replace(recipe, lr=1e-9, freeze="features")
    done = train(start, output=tmp_path / "ckpt").training
    assert done.test_accuracy > 0.9  # it knew the digits already
    assert done.init is not None
    assert done.init.fresh == ()


def test_other_classes_get_a_new_head_and_the_sources_normalisation(
    tmp_path: Path, recipe: Recipe, checkpoint: Path, three_shapes: Path
) -> None:
    shapes = msgspec.structs.replace(
        recipe, dataset=f"folder:{three_shapes}", channels=1, per_class=0, freeze="features", epochs=4
    )
    notes: list[str] = []
    done = train(shapes, output=tmp_path / "ckpt", on_note=notes.append).training
    written = read_checkpoint(tmp_path / "ckpt")
    assert (written.spec.classes, written.labels) == (3, ("left", "right", "top"))
    assert done.init is not None
    assert set(done.init.fresh) == {"classifier.6.weight", "classifier.6.bias"}
    assert any("classifier.6.weight" in note for note in notes)
    source = read_checkpoint(checkpoint).preprocess
    assert (written.preprocess.mean, written.preprocess.std) == (source.mean, source.std)
    ours, theirs = load_model(tmp_path / "ckpt").features.state_dict(), load_model(checkpoint).features.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)  # statistics of batch norms too
    assert done.test_accuracy > 0.6  # three classes, learned by a head on frozen features of digits


def test_as_many_but_other_classes_get_a_new_head_too(tmp_path: Path, recipe: Recipe, three_shapes: Path) -> None:
    shapes = msgspec.structs.replace(recipe, dataset=f"folder:{three_shapes}", channels=1, per_class=0)
    train(shapes, output=tmp_path / "shapes")
    renamed = tmp_path / "renamed"
    for name in ("left", "right", "top"):
        (renamed / f"{name}most").parent.mkdir(exist_ok=True)
        (renamed / f"{name}most").symlink_to(three_shapes / name)
    again = msgspec.structs.replace(shapes, dataset=f"folder:{renamed}", init=str(tmp_path / "shapes"))
    done = train(again, output=tmp_path / "again").training
    assert done.init is not None
    assert "classifier.6.weight" in done.init.fresh
    kept = train(msgspec.structs.replace(again, fresh="nothing"), output=tmp_path / "kept").training
    assert kept.init is not None
    assert kept.init.fresh == ()


def test_a_whole_fresh_classifier_lets_the_image_size_be_another(tmp_path: Path, recipe: Recipe) -> None:
    larger = msgspec.structs.replace(recipe, image_size=64, fresh="classifier")
    done = train(larger, output=tmp_path / "ckpt").training
    assert done.init is not None
    assert {key.split(".")[0] for key in done.init.fresh} == {"classifier"}
    with pytest.raises(CheckpointError, match="64 px"):
        train(msgspec.structs.replace(larger, fresh="auto"), output=tmp_path / "other")


def test_separate_learning_rates(tmp_path: Path, recipe: Recipe, checkpoint: Path) -> None:
    slow = msgspec.structs.replace(recipe, lr=0.01, lr_features=1e-12)
    train(slow, output=tmp_path / "ckpt")
    ours, theirs = load_model(tmp_path / "ckpt").state_dict(), load_model(checkpoint).state_dict()
    weights = [key for key in theirs if key.endswith("weight")]
    for key in weights:
        same = torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-7)
        assert same == key.startswith("features"), key


def test_weights_that_do_not_fit_are_refused_before_any_work(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        train(msgspec.structs.replace(recipe, width=0.25), output=tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="does not exist"):
        train(msgspec.structs.replace(recipe, init=str(tmp_path / "none")), output=tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_of_a_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training images, not 1000"):
        train(Recipe(width=0.05, hidden=16, per_class=1000), output=tmp_path / "ckpt")


def test_per_class_images_are_all_that_is_trained_on(tmp_path: Path, recipe: Recipe) -> None:
    train(recipe, output=tmp_path / "ckpt")
    record = msgspec.convert(read_checkpoint(tmp_path / "ckpt").training, TrainingRecord)
    assert record.samples == {"train": 40, "validation": 143, "test": 359}
