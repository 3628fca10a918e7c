"""Preprocessing, pixel for pixel, against arrays that were computed without it (tests/golden/make.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden.specs import GEOMETRY, MODES, SPECS
from PIL import Image

from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = dict(np.load(GOLDEN / "expected.npz"))
FILES = sorted((GOLDEN / "images").iterdir())
LOSSY = {".jpg", ".mpo"}
MODES_SEEN = {"L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "I"}


def spec_of(name: str) -> PreprocessSpec:
    mode, resize, crop, interpolation = SPECS[name]
    channels = 1 if mode == "L" else 3
    return PreprocessSpec(
        mode=mode, resize=resize, crop=crop, interpolation=interpolation, mean=(0.5,) * channels, std=(0.5,) * channels
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_gives_its_golden_pixels(path: Path) -> None:
    for name in SPECS if path.name in GEOMETRY else MODES:
        found, expected = prepare(path, spec_of(name)), EXPECTED[f"{path.name}:{name}"]
        assert found.dtype == np.uint8
        assert found.shape == expected.shape
        if path.suffix in LOSSY:
            # Decoders may round a level away, and quarters that meet may ring: no more than that.
            error = np.abs(found.astype(int) - expected)
            assert error.max() <= 16, name
            assert error.mean() <= 1.5, name
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_every_golden_array_was_compared() -> None:
    compared = {f"{p.name}:{name}" for p in FILES for name in (SPECS if p.name in GEOMETRY else MODES)}
    assert compared == EXPECTED.keys()


def test_the_files_cover_every_mode_and_orientation() -> None:
    modes, orientations = set(), set()
    for path in FILES:
        with Image.open(path) as image:
            modes.add(image.mode)
            orientations.add(image.getexif().get(274, 1))
    assert modes >= MODES_SEEN
    assert orientations == set(range(1, 9))


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".png"], ids=lambda path: path.name)
def test_path_text_bytes_and_open_image_are_the_same_image(path: Path) -> None:
    spec = spec_of("rgb")
    expected = EXPECTED[f"{path.name}:rgb"]
    for source in (str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(prepare(source, spec), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(prepare(image, spec), expected)
