"""Recipes as files: the built-in ones, one's own, and every slip in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vggdeploy.errors import UsageError
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.recipe_file import BUILT_IN, resolve_recipe, to_toml


def test_classic_is_the_textbooks() -> None:
    recipe = resolve_recipe("classic", {})
    spec = recipe.model_spec()
    assert (spec.arch, spec.width, spec.in_channels, spec.image_size) == ("vgg11", 0.25, 1, 224)
    assert (spec.hidden, spec.dropout, spec.batch_norm) == ((4096, 4096), 0.5, False)
    assert (recipe.dataset, recipe.batch_size, recipe.epochs, recipe.keep) == ("fashion-mnist", 128, 4, "last")
    plain = (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.schedule, recipe.warmup)
    assert plain == ("sgd", 0.05, 0.0, 0.0, "constant", 0.0)
    assert (recipe.label_smoothing, recipe.clip, recipe.augment) == (0.0, 0.0, ())


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_value_of_a_built_in_recipe_can_be_overridden(name: str) -> None:
    changes = {"dataset": "mnist", "lr": 0.01, "epochs": 2, "arch": "vgg16", "image_size": 64}
    recipe = resolve_recipe(name, changes)
    assert {field: getattr(recipe, field) for field in changes} == changes
    assert recipe.width == 0.25  # the recipe's own


def test_no_recipe_is_the_defaults() -> None:
    assert resolve_recipe(None, {}) == Recipe()


def test_ones_own_file_and_over_it_the_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('epochs = 3\nlr = 1\naugment = ["crop", "flip"]\nschedule = "step"\nstep_every = 1\n')
    recipe = resolve_recipe(str(file), {"epochs": 5})
    assert (recipe.epochs, recipe.lr, recipe.augment, recipe.step_every) == (5, 1.0, ("crop", "flip"), 1)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(lr_features=0.1, augment=("flip",), compile=True, dataset='folder:a "b"'),
        Recipe(schedule="step", step_every=3, arch="init", init="small", distill="large", temperature=2.0),
    ],
)
def test_a_recipe_survives_its_file(tmp_path: Path, recipe: Recipe) -> None:
    file = tmp_path / "all.toml"
    file.write_text(to_toml(recipe))
    assert resolve_recipe(str(file), {}) == recipe


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("epoch = 3", "key 'epoch' is unknown — did you mean 'epochs'"),
        ("learning_rate = 3", "key 'learning_rate' is unknown"),
        ('epochs = "three"', "epochs is 'three' — give a whole number"),
        ("epochs = 3.5", "epochs is 3.5 — give a whole number"),
        ("lr = true", "lr is True — give a number"),
        ("arch = 11", "arch is 11 — give a text in quotes"),
        ('compile = "yes"', "compile is 'yes' — give true or false"),
        ('optimizer = "adam"', "optimizer 'adam' is unknown — did you mean 'adamw'"),
        ('augment = ["flp"]', "augment 'flp' is unknown — did you mean 'flip'"),
        ('augment = "flip"', "augment is 'flip'"),
        ("epochs = 0", "0 epochs — give at least 1"),
        ("epochs = ", "is not TOML"),
        ("step_every = 3", "step_every mean nothing to the schedule cosine"),
        ('dataset = "imagenet"', "data set 'imagenet' is unknown"),
        ("temperature = 2", "temperature mean nothing without a teacher — add --distill"),
        ('distill = "t"\ntemperature = 0', "temperature 0.0 — give a number above 0"),
        ('distill = "t"\ndistill_weight = 1.5', "weight 1.5 of the teacher"),
        ('arch = "init"', "the architecture init names no network — add --init"),
        ('arch = "init"\ninit = "small"\nwidth = 0.5', "width would change the network of small"),
        ('arch = "init"\ninit = "small"\nimage_size = 32', "image_size would change the network of small"),
    ],
)
def test_a_slip_in_a_file_is_one_clear_line(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve_recipe(str(file), {})
    assert cause in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("clasic", "recipe 'clasic' is unknown — did you mean 'classic'"),
        ("none.toml", "recipe none.toml cannot be read: No such file"),
        (".", "recipe . cannot be read"),
    ],
)
def test_a_recipe_that_is_not_there(name: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        resolve_recipe(name, {})


@pytest.mark.parametrize(
    ("source", "changes", "arch"),
    [
        ("classic", {"blocks": "1x8,1x8"}, "custom"),
        (None, {"blocks": "1x8,1x8"}, "custom_bn"),
        ("modern", {"blocks": "1x8,1x8", "arch": "custom"}, "custom"),
    ],
)
def test_blocks_take_the_place_of_the_recipes_architecture(
    source: str | None, changes: dict[str, Any], arch: str
) -> None:
    recipe = resolve_recipe(source, changes)
    assert (recipe.arch, recipe.blocks) == (arch, "1x8,1x8")


def test_an_architecture_takes_the_place_of_a_files_blocks(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('blocks = "1x8,1x8"')
    assert resolve_recipe(str(file), {}).arch == "custom_bn"
    assert resolve_recipe(str(file), {"arch": "vgg11"}).blocks == ""


def test_blocks_and_another_architecture_together_are_refused() -> None:
    with pytest.raises(UsageError, match="leave --arch out"):
        resolve_recipe(None, {"blocks": "1x8", "arch": "vgg16"})
