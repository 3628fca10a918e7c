"""Whether images become the pixels that models are trained on, here: golden arrays for every mode, format and orientation.

The arrays were computed from pixels, not from the files beside them (tests/golden/make.py): modes by their formulas,
geometry by torchvision. So they are a second opinion, and not a recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from vggdeploy.errors import InputError
from vggdeploy.preprocess import prepare
from vggdeploy.records import Check
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import Verdict

HERE = Path(__file__).parent
IMAGES = HERE / "images"
EXPECTED = HERE / "expected.npz"

# mode, resize, crop, interpolation. Every file is prepared with `MODES`; those of `GEOMETRY` with all.
SPECS: dict[str, tuple[str, int, int, str]] = {
    "rgb": ("RGB", 20, 16, "bilinear"),
    "grey": ("L", 20, 17, "bilinear"),
    "up": ("RGB", 50, 45, "bilinear"),
    "all": ("RGB", 19, 19, "bilinear"),
    "one": ("L", 1, 1, "bilinear"),
    "nearest": ("RGB", 20, 15, "nearest"),
    "bicubic": ("RGB", 48, 31, "bicubic"),
    "lanczos": ("RGB", 21, 20, "lanczos"),
    "same": ("RGB", 23, 22, "bilinear"),
}
MODES = ("rgb", "grey")
GEOMETRY = frozenset({"rgb.png", "rgb-portrait.png", "rgb-square.png", "grey.png", "exif-6.png"})
LOSSY = frozenset({".jpg", ".mpo"})
# Decoders of lossy formats may round a level away, and edges may ring: no more than that.
_MOST, _MEAN = 16, 1.5


def cases() -> Iterator[tuple[Path, str]]:
    """Every golden array's file, and the name of the preprocessing in `SPECS` that it was made for."""
    for path in sorted(IMAGES.iterdir()):
        yield from ((path, name) for name in (SPECS if path.name in GEOMETRY else MODES))


def spec_of(name: str) -> PreprocessSpec:
    """The preprocessing of that name in `SPECS`."""
    mode, resize, crop, interpolation = SPECS[name]
    channels = 1 if mode == "L" else 3
    return PreprocessSpec(
        mode=mode, resize=resize, crop=crop, interpolation=interpolation, mean=(0.5,) * channels, std=(0.5,) * channels
    )


def check_pixels() -> Check:
    """Prepare every golden file on this machine, and compare the pixels: exactly, where the format keeps them exactly."""
    reasons, count = [], 0
    with np.load(EXPECTED, allow_pickle=False) as expected:
        for path, name in cases():
            count += 1
            if wrong := _difference(path, name, expected[f"{path.name}:{name}"]):
                mode, resize, crop, interpolation = SPECS[name]
                reasons.append(f"{path.name} as {mode}, {interpolation} {resize}, cropped to {crop}: {wrong}")
    if reasons:
        reasons.append(f"Pillow {PIL.__version__} decides this: use the version that the model was trained with")
    return Check(
        what="decoding, resizing and cropping",
        against=f"{count} golden arrays",
        verdict=Verdict.FAIL if reasons else Verdict.PASS,
        reasons=tuple(reasons),
    )


def _difference(path: Path, name: str, expected: NDArray[Any]) -> str:
    """What is wrong with the pixels of a file, or ""."""
    try:
        found = prepare(path, spec_of(name))
    except InputError as error:
        return error.cause
    off = np.abs(found.astype(int) - expected)
    exact = path.suffix not in LOSSY
    if off.max() > (0 if exact else _MOST) or off.mean() > (0 if exact else _MEAN):
        return f"{np.count_nonzero(off)} of {off.size} values differ, by up to {off.max()}"
    return ""
