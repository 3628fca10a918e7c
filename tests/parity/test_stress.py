"""The stress set: images at the ends of the pixels' range, made by formula, with the reference's answers in the bundle."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.parity.stress import stress_images, stress_reference
from vggdeploy.spec import PreprocessSpec

GREY = PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,))
RGB = PreprocessSpec(resize=32, crop=32)


@pytest.mark.parametrize(("spec", "count"), [(GREY, 12), (RGB, 18)])
def test_the_set_holds_black_white_noise_patterns_and_every_saturated_colour(spec: PreprocessSpec, count: int) -> None:
    images = stress_images(spec)
    assert images.shape == (count, 32, 32, spec.channels)
    assert images.dtype == np.uint8
    assert not images[0].any()
    assert (images[1] == 255).all()
    assert len({image.tobytes() for image in images}) == count
    if spec.channels == 3:
        colours = {tuple(image[0, 0]) for image in images if (image == image[0, 0]).all()}
        assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)} <= colours


def test_the_images_are_the_same_on_every_machine() -> None:
    """Only the answers travel: the formula may not change."""
    digest = hashlib.sha256(stress_images(RGB).tobytes()).hexdigest()
    assert digest == "619a208b9d80f964feb01dc27452e1744dff8fd8bcd2534d5c8fad8f76784d3e"


def test_the_first_images_are_a_prefix() -> None:
    assert (stress_images(RGB, 5) == stress_images(RGB)[:5]).all()
    assert stress_images(PreprocessSpec(resize=1, crop=1)).shape == (18, 1, 1, 3)


def test_a_bundle_carries_the_answers_and_no_images(bundle: Bundle) -> None:
    reference = stress_reference(bundle)
    assert reference is not None
    assert reference.images[:].shape == (12, 32, 32, 1)
    assert reference.outputs["logits"][:].shape == (12, 10)
    assert list(bundle.manifest.golden.stress) == ["logits"]
    assert all(path in bundle.manifest.golden.pair for path in bundle.manifest.golden.stress.values())


def test_a_graph_with_a_float_input_gets_them_normalised(float_bundle_dir) -> None:
    reference = stress_reference(Bundle.open(float_bundle_dir))
    assert reference is not None
    assert reference.images[:].dtype == np.float32
    assert reference.images[:].shape == (12, 1, 32, 32)
