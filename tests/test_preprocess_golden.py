"""Preprocessing, pixel for pixel, against arrays that were computed without it (tests/golden/make.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.errors import InputError
from vggdeploy.parity import pixels
from vggdeploy.parity.pixels import EXPECTED, IMAGES, cases, check_pixels, spec_of
from vggdeploy.preprocess import prepare
from vggdeploy.types import Verdict

MODES_SEEN = {"L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "I"}


def test_every_file_gives_its_golden_pixels() -> None:
    found = check_pixels()
    assert found.reasons == ()
    assert found.verdict is Verdict.PASS
    assert found.against == "135 golden arrays"


def test_every_golden_array_has_its_file() -> None:
    with np.load(EXPECTED) as arrays:
        assert {f"{path.name}:{name}" for path, name in cases()} == set(arrays)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda found: found[::-1], "rgb.png as RGB, bilinear 20, cropped to 16: "),
        (lambda found: found[..., ::-1], "rgb.png as RGB, bilinear 20, cropped to 16: "),
        (lambda found: found ^ np.uint8(found.shape[0] == 31), "rgb.png as RGB, bicubic 48, cropped to 31: "),
        (lambda found: found + np.uint8(20), "grey.jpg as L, bilinear 20, cropped to 17: "),
    ],
)
def test_other_pixels_fail_and_the_file_is_named(change, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "prepare", lambda path, spec: change(prepare(path, spec)))
    found = check_pixels()
    assert found.verdict is Verdict.FAIL
    assert any(reason.startswith(what) and "values differ, by up to" in reason for reason in found.reasons)
    assert "Pillow" in found.reasons[-1]


def test_a_file_that_cannot_be_read_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path, spec: object) -> None:
        raise InputError(f"{path.name} is not an image in a known format", "x")

    monkeypatch.setattr(pixels, "prepare", refusing)
    assert "rgb.webp is not an image in a known format" in " ".join(check_pixels().reasons)


def test_the_files_cover_every_mode_and_orientation() -> None:
    modes, orientations = set(), set()
    for path in IMAGES.iterdir():
        with Image.open(path) as image:
            modes.add(image.mode)
            orientations.add(image.getexif().get(274, 1))
    assert modes >= MODES_SEEN
    assert orientations == set(range(1, 9))


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.png")), ids=lambda path: path.name)
def test_path_text_bytes_and_open_image_are_the_same_image(path: Path) -> None:
    spec = spec_of("rgb")
    expected = prepare(path, spec)
    for source in (str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(prepare(source, spec), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(prepare(image, spec), expected)
