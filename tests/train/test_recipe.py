"""A recipe decides everything, and refuses what cannot work."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.errors import DataError, UsageError
from vggdeploy.train.feed import AUGMENT, DROPOUT, batches_per_epoch, epoch_batches, step_seed
from vggdeploy.train.recipe import Recipe


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(arch="vgg16", width=0.5, dataset="fashion-mnist", image_size=64, schedule="constant", seed=7)
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


def test_channels_and_classes_are_the_data_sets() -> None:
    spec = Recipe(dataset="digits", arch="vgg13_bn", width=0.25, image_size=64, hidden=128).model_spec()
    assert (spec.in_channels, spec.classes, spec.image_size, spec.hidden) == (1, 10, 64, (128, 128))
    assert Recipe(dataset="digits").preprocess().mode == "L"


def test_blocks_are_any_stack_and_width_scales_them_too() -> None:
    recipe = Recipe(arch="custom_bn", blocks="1x64, 2x128,3x8", width=0.25, image_size=24)
    spec = recipe.model_spec()
    assert (spec.arch, spec.batch_norm, spec.width) == ("custom", True, 0.25)
    assert spec.blocks == ((16,), (32, 32), (2, 2, 2))
    assert not msgspec.structs.replace(recipe, arch="custom").model_spec().batch_norm


@pytest.mark.parametrize(
    ("dataset", "channels", "mode"), [("digits", 3, "RGB"), ("cifar10", 1, "L"), ("cifar10", 0, "RGB")]
)
def test_grey_and_rgb_are_made_of_each_other(dataset: str, channels: int, mode: str) -> None:
    recipe = Recipe(dataset=dataset, channels=channels)
    preprocess = recipe.preprocess()
    assert preprocess.mode == mode
    assert recipe.model_spec().in_channels == preprocess.channels == len(preprocess.mean)


def test_a_recipe_can_be_read_where_its_folder_is_not() -> None:
    recipe = Recipe(dataset="folder:/nowhere")
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe
    with pytest.raises(DataError, match="/nowhere does not exist"):
        recipe.model_spec()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"dataset": "digts"}, "did you mean 'digits'"),
        ({"arch": "vgg166_bn"}, "did you mean 'vgg16_bn'"),
        ({"image_size": 33}, "image size 33"),
        ({"epochs": 0}, "0 epochs"),
        ({"batch_size": 1}, "a batch of 1"),
        ({"lr": 0.0}, "learning rate 0"),
        ({"lr": float("inf")}, "learning rate inf"),
        ({"lr": float("nan")}, "learning rate nan"),
        ({"momentum": 1.0}, "momentum 1"),
        ({"weight_decay": -1.0}, "weight decay -1"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warmup": 1.0}, "warm-up 1"),
        ({"label_smoothing": 1.0}, "label smoothing 1"),
        ({"precision": "int8"}, "training precision 'int8' is unknown"),
        ({"seed": -1}, "seed -1"),
        ({"dropout": 1.5}, "dropout 1.5"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"augment": ("flips",)}, "did you mean 'flip'"),
        ({"augment": ("flip", "flip")}, "only once"),
        ({"keep": "bst"}, "did you mean 'best'"),
        ({"lr_features": 0.0}, "--freeze features"),
        ({"step_factor": 1.0}, "step factor 1"),
        ({"step_every": 0}, "a step every 0 epochs"),
        ({"clip": -1.0}, "clip -1"),
        ({"patience": -1}, "patience -1"),
        ({"per_class": -5}, "-5 images a class"),
        ({"channels": 4}, "4 input channels"),
        ({"image_size": 16}, "at least 32"),
        ({"blocks": "1x64"}, "contradict the architecture vgg11_bn"),
        ({"arch": "custom"}, "add --blocks"),
        ({"arch": "custom", "blocks": "64x"}, "is not a list of blocks"),
        ({"arch": "custom", "blocks": "1x8,1x8", "image_size": 30}, "image size 30 does not fit 2 blocks"),
        ({"freeze": "features"}, "--init"),
        ({"freeze": "all", "init": "x"}, "freeze 'all'"),
        ({"freeze": "9", "init": "x"}, "vgg11_bn has 8 convolutions, not 9"),
        ({"fresh": "head"}, "--init"),
        ({"unfreeze_every": 1, "init": "x"}, "nothing is frozen"),
        ({"dataset": "folder:"}, "names no folder"),
        ({"max_steps": -1}, "at most -1 steps"),
        ({"max_images": -1}, "at most -1 images"),
        ({"lr_rest": 0.0}, "learning rate 0"),
        ({"optimizer": "muon", "keep_zeros": True}, "zeros would not stay"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, object], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Recipe(**change)  # type: ignore[arg-type]


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="epoch"):
        msgspec.json.decode(b'{"epoch": 3}', type=Recipe)


@given(images=st.integers(1, 500), batch_size=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_sees_every_image_once_in_even_batches(images: int, batch_size: int, seed: int) -> None:
    batches = epoch_batches(images, batch_size, seed=seed, epoch=3)
    sizes = [len(b) for b in batches]
    assert sorted(np.concatenate(batches)) == list(range(images))
    assert len(batches) == batches_per_epoch(images, batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_order_and_what_is_random_in_a_step_come_again_with_the_seed_and_differ_otherwise() -> None:
    orders = [tuple(np.concatenate(epoch_batches(50, 8, seed=s, epoch=e))) for s, e in ((1, 0), (1, 1), (2, 0))]
    assert len(set(orders)) == 3
    assert orders[0] == tuple(np.concatenate(epoch_batches(50, 8, seed=1, epoch=0)))
    places = [
        (1, 0, DROPOUT, 0), (2, 0, DROPOUT, 0), (1, 1, DROPOUT, 0), (1, 0, AUGMENT, 0), (1, 0, DROPOUT, 1),
    ]  # fmt: skip
    seeds = [step_seed(seed, step, stream=stream, rank=rank) for seed, step, stream, rank in places]
    assert len(set(seeds)) == len(places)
    assert step_seed(1, 0, stream=DROPOUT) == seeds[0] < 2**63
