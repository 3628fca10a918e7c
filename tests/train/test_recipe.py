"""A recipe decides everything, and refuses what cannot work."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.errors import UsageError
from vggdeploy.train.batches import batches_per_epoch, epoch_batches, epoch_seed
from vggdeploy.train.recipe import Recipe, learning_rate


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(arch="vgg16", width=0.5, dataset="fashion-mnist", image_size=64, schedule="constant", seed=7)
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


def test_channels_and_classes_are_the_data_sets() -> None:
    spec = Recipe(dataset="digits", arch="vgg13_bn", width=0.25, image_size=64, hidden=128).model_spec()
    assert (spec.in_channels, spec.classes, spec.image_size, spec.hidden) == (1, 10, 64, (128, 128))
    assert Recipe(dataset="digits").preprocess().mode == "L"


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
        ({"precision": "int8"}, "unknown training precision 'int8'"),
        ({"seed": -1}, "seed -1"),
        ({"dropout": 1.5}, "dropout 1.5"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, object], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Recipe(**change)  # type: ignore[arg-type]


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="epoch"):
        msgspec.json.decode(b'{"epoch": 3}', type=Recipe)


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe, steps = Recipe(lr=0.4, warmup=0.25), 100
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(0.4 / 25)
    assert rates[24] == rates[25] == 0.4
    assert rates[:25] == sorted(rates[:25])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[62] == pytest.approx(0.2, rel=0.03)  # half-way down the half cosine
    assert 0 < rates[-1] < 0.001


def test_a_constant_rate_stays_after_warm_up() -> None:
    recipe = Recipe(lr=0.1, warmup=0.0, schedule="constant")
    assert {learning_rate(recipe, step, 50) for step in range(50)} == {0.1}


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1, exclude_max=True), cosine=st.booleans())
def test_the_rate_is_never_above_its_peak_nor_below_nought(steps: int, warmup: float, cosine: bool) -> None:
    recipe = Recipe(lr=0.1, warmup=warmup, schedule="cosine" if cosine else "constant")
    assert all(0 <= learning_rate(recipe, step, steps) <= 0.1 for step in range(steps))


@given(images=st.integers(1, 500), batch_size=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_sees_every_image_once_in_even_batches(images: int, batch_size: int, seed: int) -> None:
    batches = epoch_batches(images, batch_size, seed=seed, epoch=3)
    sizes = [len(b) for b in batches]
    assert sorted(np.concatenate(batches)) == list(range(images))
    assert len(batches) == batches_per_epoch(images, batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_order_and_dropout_differ_from_epoch_to_epoch_and_come_again_with_the_seed() -> None:
    orders = [tuple(np.concatenate(epoch_batches(50, 8, seed=s, epoch=e))) for s, e in ((1, 0), (1, 1), (2, 0))]
    assert len(set(orders)) == 3
    assert len({epoch_seed(1, 0), epoch_seed(1, 1), epoch_seed(2, 0)}) == 3
    assert orders[0] == tuple(np.concatenate(epoch_batches(50, 8, seed=1, epoch=0)))
