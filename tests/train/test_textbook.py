"""The textbook's recipe to the letter: pixels as they are, every training image, test images that decide nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from vggdeploy.cli.app import run
from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess
from vggdeploy.errors import UsageError
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.recipe_file import resolve_recipe


def test_pixels_are_0_to_1_and_nothing_is_taken_off() -> None:
    spec = resolve_recipe("textbook", {}).preprocess()
    assert (spec.mean, spec.std) == ((0.0,), (1.0,))
    assert spec.scale == (np.float32(1 / 255),)
    assert resolve_recipe("textbook", {"channels": 3}).preprocess().mean == (0.0,) * 3
    assert resolve_recipe("classic", {}).preprocess().mean != (0.0,)


def test_nothing_but_what_is_written_down_parts_it_from_classic() -> None:
    textbook, classic = resolve_recipe("textbook", {}), resolve_recipe("classic", {})
    differ = {f for f in Recipe.__struct_fields__ if getattr(textbook, f) != getattr(classic, f)}
    assert differ == {"normalise", "hold_out", "epochs", "precision"}


def test_training_images_are_those_that_are_held_out_otherwise_too() -> None:
    spec = default_preprocess("digits", 8)
    whole = load_split("digits", "train", spec, hold_out=False)
    parts = [load_split("digits", split, spec).indices.tolist() for split in ("train", "validation", "test")]
    assert sorted(whole.indices.tolist()) == sorted(parts[0] + parts[1])
    assert not set(whole.indices.tolist()) & set(parts[2])


@pytest.mark.parametrize("change", [{"keep": "best"}, {"patience": 2}])
def test_test_images_may_not_choose_the_epoch(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="the test images would choose the epoch"):
        resolve_recipe("textbook", change)


@pytest.mark.late
def test_it_trains_and_classic_says_where_it_departs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--dataset", "digits", "--image-size", "32", "--width", "0.05", "--hidden", "16", "--epochs", "1"]
    assert run(["train", "--recipe", "textbook", *small, "-o", str(tmp_path / "a"), "--json"]) == 0
    captured = capsys.readouterr()
    record = msgspec.json.decode(captured.out)["training"]
    assert record["samples"] == {"train": 1438, "validation": 359, "test": 359}
    assert record["validation_accuracy"] == record["test_accuracy"]
    assert "departs" not in captured.err
    assert run(["train", "--recipe", "classic", *small, "-o", str(tmp_path / "b")]) == 0
    assert "classic departs from Dive into Deep Learning, section 8.2" in capsys.readouterr().err
