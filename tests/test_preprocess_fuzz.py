"""Thousands of damaged files: an array or an `InputError`, and never anything else."""

from __future__ import annotations

import random
import time
import warnings

import numpy as np
import pytest

from vggdeploy.errors import InputError
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec

# Of each format the files that reach the most of its parser.
NAMES = (
    "rgb-portrait.png", "palette-alpha.png", "grey16-clear.png", "exif-6.png", "exif-6.jpg", "cmyk.jpg",
    "progressive.jpg", "two-pictures.mpo", "animated.gif", "clear.gif", "animated.webp", "rgba.webp", "exif-7.webp",
    "raw.tif", "lzw.tif", "deflate.tif", "pages.tif", "exif-5.tif", "palette.bmp", "bilevel.bmp", "rgb.ppm", "grey16.pgm",
)  # fmt: skip
SPEC = PreprocessSpec(mode="RGB", resize=8, crop=8)
MAX_PIXELS = (
    10**6
)  # a mutated header may ask for more: decoding that would be the machine's time, not the parser's test


def mutated(good: bytes, chance: random.Random) -> bytes:
    """One to four changes; often in the first hundred bytes, where the headers are."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not data:
            break
        at = chance.randrange(min(100, len(data)) if chance.random() < 0.5 else len(data))
        match chance.randrange(6):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                data[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x01"))
            case 3:
                del data[at : at + chance.randrange(1, 20)]
            case 4:
                data[at:at] = chance.randbytes(chance.randrange(1, 20))
            case 5:
                del data[max(at, 8) :]
    return bytes(data)


def attack(seed: int, count: int) -> tuple[int, int]:
    """How many were refused, and how many decoded."""
    refused = decoded = 0
    files = [(name, (IMAGES / name).read_bytes()) for name in NAMES]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for number in range(count):
            name, good = files[number % len(files)]
            data = mutated(good, random.Random(f"{seed} {number}"))
            start = time.monotonic()
            try:
                found = prepare(data, SPEC, max_pixels=MAX_PIXELS)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error), (name, seed, number)
            except BaseException as error:
                raise AssertionError(f"{name}, seed {seed}, number {number}") from error
            else:
                decoded += 1
                assert found.shape == (8, 8, 3)
                assert found.dtype == np.uint8
            assert time.monotonic() - start < 5, (name, seed, number)
    assert not shown, shown[0]
    return refused, decoded


def test_two_thousand_damaged_files() -> None:
    refused, decoded = attack(seed=1, count=2000)
    assert refused > 400
    assert decoded > 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_thousand_damaged_files(seed: int) -> None:
    attack(seed=seed, count=10_000)
