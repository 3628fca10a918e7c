"""Statistics with known answers, and a test of change that may be looked at after every observation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vggdeploy.parity.changes import EVERY, ChangeTest
from vggdeploy.parity.population import (
    BINS,
    answer_statistics,
    bins_of,
    image_statistics,
    population_of,
    size_statistic,
)  # fmt: skip


def test_brightness_and_contrast_of_images_that_anybody_can_compute() -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1] = 200
    images[2, :, 4:] = 255
    found = image_statistics(images)
    assert found["brightness"].tolist() == [0, 200, 127.5]
    assert found["contrast"].tolist() == [0, 0, 127.5]
    assert found["sharpness"][:2].tolist() == [0, 0]
    # The Laplacian is +255 in the row of columns left of the edge, −255 right of it, and 0 in the other four of six.
    assert found["sharpness"][2] == pytest.approx(math.log2(1 + 2 * 255**2 / 6))


def test_colours_count_as_the_eye_sees_them() -> None:
    red, green, blue = np.zeros((3, 1, 4, 4, 3), np.uint8)
    red[..., 0] = green[..., 1] = blue[..., 2] = 255
    bright = [float(image_statistics(image)["brightness"][0]) for image in (red, green, blue)]
    assert bright == pytest.approx([255 * 0.299, 255 * 0.587, 255 * 0.114])


def test_a_blurred_image_is_less_sharp() -> None:
    random = np.random.default_rng(0)
    sharp = random.integers(0, 256, (1, 32, 32, 1), dtype=np.uint8)
    blurred = (sum(np.roll(sharp.astype(int), n, axis=1) for n in range(4)) // 4).astype(np.uint8)
    assert image_statistics(blurred)["sharpness"] < image_statistics(sharp)["sharpness"] - 1


def test_confidence_entropy_and_class_of_answers_that_anybody_can_compute() -> None:
    found = answer_statistics(np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 0, 1.0, 0]]))
    assert found["confidence"].tolist() == pytest.approx([-math.log2(0.75), 1, 20])
    assert found["entropy"].tolist() == pytest.approx([0, 1, 20])
    assert found["class"].tolist() == [0, 0, 2]
    assert size_statistic(1024, 512) == 19


def test_bins_are_fixed_and_take_what_lies_outside() -> None:
    assert bins_of("brightness", np.array([0.0, 3.99, 4.0, 255.9, 999.0])).tolist() == [0, 0, 1, 63, 63]
    assert bins_of("class", np.array([7.0])).tolist() == [7]


def test_a_population_counts_every_image_once_and_keeps_none() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    scores = random.dirichlet(np.ones(4), 50)
    found = population_of([(images[:30], scores[:30]), (images[30:], scores[30:])], data="mine", classes=4)
    assert found is not None
    assert found.images == 50
    assert {name: sum(counts) for name, counts in found.counts.items()} == dict.fromkeys(found.counts, 50)
    assert len(found.counts["class"]) == 4
    assert found.counts["class"] == tuple(np.bincount(scores.argmax(axis=1), minlength=4))
    assert found.means["brightness"] == pytest.approx(image_statistics(images)["brightness"].mean(), abs=1e-5)
    assert population_of([], data="none", classes=4) is None


def capital(values: list[int], counts: list[int], seed: int = 0) -> ChangeTest:
    test = ChangeTest(counts, np.random.default_rng(seed))
    for value in values:
        test.observe(value)
    return test


def test_nobody_is_expected_to_win_where_nothing_changes() -> None:
    """The mean of the capital over all orders is 1 at most: here over many streams; and hardly one ever reaches 20."""
    random = np.random.default_rng(3)
    ends, ever = [], 0
    for seed in range(150):
        values = random.integers(0, 8, 160)
        test = capital(values[60:].tolist(), np.bincount(values[:60], minlength=8).tolist(), seed)
        ends.append(math.exp(min(test.evidence, 50)))
        ever += test.best >= math.log(20)
    assert ever <= 15  # 7.5 expected at most; 15 has a chance of 0.7%
    assert np.median(ends) < 1.5


def test_a_mean_that_moves_is_found_soon_and_also_after_a_long_quiet_time() -> None:
    random = np.random.default_rng(4)

    def draw(mean: float, count: int) -> list[int]:
        return [int(value) for value in np.clip(random.normal(mean, 8, count), 0, BINS - 1)]

    counts = np.bincount(draw(32, 400), minlength=BINS).tolist()
    at_once = capital(draw(40, 150), counts)
    assert at_once.best > math.log(700)
    late = capital(draw(32, 4 * EVERY), counts)
    assert late.best < math.log(700)
    for value in draw(40, 300):
        late.observe(value)
    assert late.best > math.log(700)


def test_another_spread_and_other_shares_of_classes_are_found() -> None:
    random = np.random.default_rng(5)
    usual = np.bincount(np.clip(random.normal(32, 8, 400), 0, 63).astype(int), minlength=64).tolist()
    for spread in (2, 20):
        values = np.clip(random.normal(32, spread, 400), 0, 63).astype(int).tolist()
        assert capital(values, usual).best > math.log(700)
    assert capital(random.choice(4, 300, p=[0.1, 0.6, 0.2, 0.1]).tolist(), [100] * 4).best > math.log(700)


def test_few_test_images_raise_no_alarm_by_being_few() -> None:
    """The attack on tests that take the test images for the truth: ten of them, and a long stream of the same kind."""
    random = np.random.default_rng(6)
    counts = np.bincount(np.clip(random.normal(32, 8, 10), 0, 63).astype(int), minlength=64).tolist()
    values = np.clip(random.normal(32, 8, 2500), 0, 63).astype(int).tolist()
    assert capital(values, counts).best < math.log(700)


def test_without_anything_to_compare_with_the_beginning_is_it() -> None:
    assert capital([3] * 500, [0] * 8).best < math.log(700)
    assert capital([3] * 300 + [6] * 100, [0] * 8).best > math.log(700)
