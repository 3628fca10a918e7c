"""Batches arrive in order, from a thread that ends; augmentation is seeded and leaves the kind of image alone."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vggdeploy.data.loaders import ImageSet, load_split
from vggdeploy.train.augment import augment
from vggdeploy.train.feed import Feed, ahead, epoch_batches
from vggdeploy.train.recipe import AUGMENTATIONS, Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_split("digits", "test", Recipe().preprocess(), limit=50)


def test_batches_are_those_of_the_recipe_in_order(digits: ImageSet) -> None:
    recipe = Recipe(batch_size=16, seed=3)
    found = list(Feed(digits, recipe, CPU).epoch(2, skip=1))
    expected = epoch_batches(50, 16, seed=3, epoch=2)[1:]
    assert [b.step for b in found] == [9, 10, 11]
    for batch, positions in zip(found, expected, strict=True):
        assert (batch.images.numpy() == digits.images[positions]).all()
        assert (batch.labels.numpy() == digits.labels[positions]).all()
        assert batch.size == len(positions)


def test_processes_share_every_batch(digits: ImageSet) -> None:
    recipe = Recipe(batch_size=16, augment=("crop",))
    (alone, *_), *shares = (list(Feed(digits, recipe, CPU, r, n).epoch(0)) for r, n in ((0, 1), (0, 3), (1, 3), (2, 3)))
    firsts = [share[0] for share in shares]
    assert torch.equal(torch.cat([b.labels for b in firsts]), alone.labels)
    assert {b.size for b in firsts} == {alone.size}


def feeding() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "vggdeploy-feed"]


def test_the_thread_ends_when_the_loop_is_left() -> None:
    items = ahead(itertools.count())
    assert next(items) == 0
    assert feeding()
    items.close()  # type: ignore[attr-defined]
    assert not feeding()


def test_items_are_made_before_they_are_asked_for_and_not_without_end() -> None:
    made: list[int] = []
    items = ahead((made.append(i) or i for i in range(100)), depth=3)
    next(items)
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 5  # the one that was taken, three that wait, one that waits to wait
    assert list(items) == list(range(1, 100))


def test_an_error_in_the_thread_is_raised_where_it_matters() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk has gone")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk has gone"):
        next(items)
    assert not feeding()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (64, 32, 32, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_is_seeded_and_different_for_every_image(pictures: Tensor, kind: str) -> None:
    one, again, other = (augment(pictures, [kind], seed) for seed in (1, 1, 2))
    assert one.dtype == torch.uint8
    assert one.shape == pictures.shape
    assert one.is_contiguous()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    same = augment(pictures[:1].expand(8, -1, -1, -1), [kind], 3)
    assert len({image.numpy().tobytes() for image in same}) > 1


def test_a_flip_mirrors_about_half_of_the_images_left_to_right(pictures: Tensor) -> None:
    flipped = augment(pictures, ["flip"], 0)
    mirrored = [torch.equal(f, p.flip(1)) for f, p in zip(flipped, pictures, strict=True)]
    kept = [torch.equal(f, p) for f, p in zip(flipped, pictures, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize(("kind", "least"), [("crop", 28), ("shift", 30)])
def test_a_crop_moves_by_an_eighth_at_most_a_shift_by_half_of_it_and_black_fills(
    pictures: Tensor, kind: str, least: int
) -> None:
    moves = set()
    for before, after in zip(pictures, augment(pictures, [kind], 0), strict=True):
        inside = (after != 0).any(dim=2)
        height, width = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
        assert min(height, width) >= least
        rows, columns = inside.any(dim=1).nonzero()[0].item(), inside.any(dim=0).nonzero()[0].item()
        y, x = (0 if rows else 32 - height), (0 if columns else 32 - width)
        part = after[int(rows) : int(rows) + height, int(columns) : int(columns) + width]
        assert torch.equal(part, before[y : y + height, x : x + width])
        moves.add((height, width, rows, columns))
    assert len(moves) > 12


def test_the_global_random_state_is_left_alone(pictures: Tensor) -> None:
    before = torch.get_rng_state()
    augment(pictures[:4], AUGMENTATIONS, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_order_of_kinds_is_the_recipes(pictures: Tensor) -> None:
    both = augment(pictures, ["crop", "flip"], 0)
    assert not np.array_equal(both, augment(pictures, ["flip", "crop"], 0))
