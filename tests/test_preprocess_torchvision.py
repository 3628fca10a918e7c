"""Resizing and cropping are torchvision's, pixel for pixel, at every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import _compute_resized_output_size

from vggdeploy.preprocess import _resized, normalise, prepare
from vggdeploy.spec import PreprocessSpec

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def spec_of(mode: str, resize: int, crop: int, interpolation: str = "bilinear") -> PreprocessSpec:
    channels = 1 if mode == "L" else 3
    return PreprocessSpec(
        mode=mode, resize=resize, crop=crop, interpolation=interpolation, mean=(0.4,) * channels, std=(0.3,) * channels
    )


def by_torchvision(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    geometry = transforms.Compose(
        [
            transforms.Resize(spec.resize, InterpolationMode(spec.interpolation)),
            transforms.CenterCrop(spec.crop),
        ]
    )
    return np.asarray(geometry(Image.fromarray(pixels))).reshape(spec.crop, spec.crop, spec.channels)


@settings(max_examples=400)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 70),
    crop=st.integers(1, 70),
    mode=st.sampled_from(["L", "RGB"]),
    interpolation=st.sampled_from(INTERPOLATIONS),
    seed=st.integers(0, 2**16),
)
@example(width=33, height=20, resize=20, crop=20, mode="RGB", interpolation="bilinear", seed=1)  # resize not needed
@example(width=20, height=20, resize=20, crop=20, mode="L", interpolation="bicubic", seed=1)  # nothing needed
@example(width=20, height=23, resize=20, crop=19, mode="L", interpolation="nearest", seed=1)  # both crops on a half
@example(width=1, height=90, resize=70, crop=1, mode="RGB", interpolation="lanczos", seed=1)
@example(width=90, height=1, resize=3, crop=2, mode="L", interpolation="bilinear", seed=1)
def test_any_image_is_resized_and_cropped_as_torchvision_does(
    width: int, height: int, resize: int, crop: int, mode: str, interpolation: str, seed: int
) -> None:
    spec = spec_of(mode, max(resize, crop), min(resize, crop), interpolation)
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(prepare(pixels, spec), by_torchvision(pixels, spec))


@settings(max_examples=500)
@given(width=st.integers(1, 100_000), height=st.integers(1, 100_000), resize=st.integers(1, 2000))
def test_the_size_after_resizing_is_torchvisions_even_where_it_would_be_huge(
    width: int, height: int, resize: int
) -> None:
    image = Image.new("L", (1, 1))
    image._size = (width, height)
    w, h = _resized(image, spec_of("L", resize, 1))
    assert [h, w] == _compute_resized_output_size((height, width), [resize])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (640, 480), (257, 256), (224, 224), (199, 1031)])
def test_the_imagenet_recipe_at_the_sizes_of_photographs(width: int, height: int) -> None:
    spec = PreprocessSpec()
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(prepare(pixels, spec), by_torchvision(pixels, spec))


@settings(max_examples=50)
@given(mode=st.sampled_from(["L", "RGB"]), seed=st.integers(0, 2**16))
def test_normalising_on_the_host_is_totensor_and_normalize(mode: str, seed: int) -> None:
    spec = spec_of(mode, 9, 7)
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 7, 7, spec.channels), np.uint8)
    theirs = transforms.Normalize(spec.mean, spec.std)(torch.from_numpy(pixels[0]).permute(2, 0, 1).float() / 255)
    ours = normalise(pixels, spec)
    assert ours.dtype == np.float32
    assert ours.shape == (1, spec.channels, 7, 7)
    assert ours.flags.c_contiguous
    # One multiplication and one addition, against two divisions and a subtraction: a few last places.
    np.testing.assert_allclose(ours[0], theirs.numpy(), rtol=0, atol=4e-7)
