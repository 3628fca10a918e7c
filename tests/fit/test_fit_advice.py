"""Advice is an estimate with its grounds, and no number stands where none is known."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from test_fit_family import trial

from vggdeploy.fit.advice import exponent_of, images_advice, more_time
from vggdeploy.records.fit import FitTrial, Rung


def climbed(*hits: int) -> FitTrial:
    rungs = tuple(Rung(epochs=1, hits=one, samples=1000, seconds=1.0) for one in hits)
    return msgspec.structs.replace(trial(0, 1.0, 1), rungs=rungs)


def test_what_more_time_brings_follows_from_the_last_trainings() -> None:
    assert "about 1.0 points" in more_time(climbed(800, 840, 860), 5)
    assert "no fewer errors" in more_time(climbed(800, 860, 850), 5)
    assert "1 of 3 times" in more_time(climbed(800), 5)


def test_a_power_law_is_found_and_noise_is_none() -> None:
    images = [100, 200, 400]
    assert exponent_of(images, [2.0 * n**-0.5 for n in images]) == pytest.approx(0.5)
    assert exponent_of([100, 200], [0.1, 0.2]) is None  # more images, more errors
    assert exponent_of([100], [0.1]) is None
    assert exponent_of([100, 200], [0.4, 0.001]) == 1.0  # steeper than any that was found on images


def test_the_class_with_the_most_errors_is_named_with_what_it_is_taken_for() -> None:
    labels = np.repeat([0, 1, 2], 10)
    answers = labels.copy()
    answers[10:15], answers[20] = 2, 0
    told = images_advice(answers, labels, ("cat", "dog", "fox"), (40, 40, 40), 0.5)
    assert told[0] == (
        "Collect about 200 more images of dog: 5 of its 10 validation images are wrong, most of them taken for fox."
    )
    assert "fox" in told[1]
    assert "images^-0.50" in told[-1]
    assert not any("cat:" in line for line in told)


def test_without_a_learning_curve_no_number_is_named() -> None:
    labels = np.repeat([0, 1], 5)
    told = images_advice(1 - labels, labels, ("a", "b"), (5, 5), None)
    assert all(line.startswith("Collect more images of") for line in told)


def test_nothing_wrong_is_nothing_to_collect() -> None:
    labels = np.repeat([0, 1], 5)
    assert images_advice(labels, labels, ("a", "b"), (5, 5), 0.5) == ()
