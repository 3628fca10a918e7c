"""Encoded files that travel in a bundle, with the pixels they became: preprocessing that changed since is seen anywhere.

JPEG (4:2:0, 4:4:4, grey, CMYK, every EXIF orientation) and PNG (8 and 16 bits, grey, RGB, palette, alpha), to be enlarged
and to be made smaller. All were made from formulas (tests/golden/make.py). What they became lies in one PNG, one below the
other; what normalisation makes of the 256 levels, in an array.
"""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from vggdeploy.bundle import Bundle, GoldenFiles
from vggdeploy.bundle.arrays import MAX_BYTES, array_bytes, read_array
from vggdeploy.bundle.store import Draft
from vggdeploy.errors import BundleError, InputError, counted, first_line
from vggdeploy.parity.pixels import IMAGES, LOSSY
from vggdeploy.preprocess import normalise, prepare
from vggdeploy.records import Check
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec, Verdict

NAMES = (
    *("rgb.png", "large.png", "soft-420.jpg", "soft-444.jpg", "rgb16.png", "rgba.png", "palette.png", "grey.png"),
    *("grey16.png", "grey-alpha.png", "grey.jpg", "cmyk.jpg", *(f"exif-{n}.jpg" for n in range(1, 9))),
)
# Another decoder may round each of a pixel's transforms by a level: 1.8 of them reach a colour. Every Pillow from 10.4 to
# 13.0 and torchvision's decoder gave the same pixels to the last bit.
JPEG_LEVELS = 2
_MOST_PIXELS = 2**24  # of all arrays: of huge inputs fewer files travel
_TOLD = 3  # files that a verdict names


def decoder() -> str:
    """What decodes images here."""
    turbo = features.version("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, " + (f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}")


def save_anchor(draft: Draft, golden: GoldenFiles, spec: PreprocessSpec) -> GoldenFiles:
    """Write the files and what they become now; returns the golden files with them."""
    names = NAMES[: max(1, _MOST_PIXELS // spec.crop**2)]
    for name in names:
        draft.write(f"golden/files/{name}", (IMAGES / name).read_bytes())
    pixels = np.concatenate([prepare(IMAGES / name, spec) for name in names])
    picture = io.BytesIO()
    Image.fromarray(pixels[..., 0] if spec.channels == 1 else pixels).save(picture, "PNG")
    draft.write("golden/prepared.png", picture.getvalue())
    draft.write("golden/normalised.npy", array_bytes(normalise(_levels(spec), spec)))
    return msgspec.structs.replace(
        golden,
        files=tuple(f"golden/files/{name}" for name in names),
        prepared="golden/prepared.png",
        normalised="golden/normalised.npy",
        decoder=decoder(),
    )


def check_anchor(bundle: Bundle) -> Check:
    """Prepare the bundle's files again, with the manifest's settings: exactly the recorded pixels, or of a JPEG that another
    decoder reads, pixels within `JPEG_LEVELS` of them.

    Raises:
        BundleError: the recorded pixels cannot be read.
    """
    golden, spec = bundle.manifest.golden, bundle.manifest.preprocess
    what, against = "preprocessing of golden files", f"what the {counted(len(golden.files), 'file')} became at export"
    if not golden.files:
        why = "the bundle was exported before such files travelled with it; export it again"
        return Check(what=what, against="what they became at export", verdict=Verdict.UNPROVEN, reasons=(why,))
    lossy = 0 if golden.decoder == decoder() else JPEG_LEVELS
    expected = _recorded(bundle.file(golden.prepared), len(golden.files), spec)
    wrong = []
    for file, pixels in zip(golden.files, expected, strict=True):
        data = bundle.file(file).read(limit=MAX_BYTES)
        if told := _difference(data, spec, pixels, lossy if PurePosixPath(file).suffix in LOSSY else 0):
            wrong.append(f"{file}: {told}")
    reasons = wrong[:_TOLD] + [f"{len(wrong) - _TOLD} more files differ"] * (len(wrong) > _TOLD)
    levels = normalise(_levels(spec), spec)
    shape = TensorSpec("normalised", "float32", ("N", *levels.shape[1:]))
    if not np.allclose(read_array(bundle.file(golden.normalised), shape), levels, rtol=1e-6, atol=1e-6):
        reasons.append("normalisation makes other numbers of the same pixels")
    if reasons:
        reasons.append(f"other settings or another decoder ({golden.decoder} at export, {decoder()} here) decide this")
    return Check(what=what, against=against, verdict=Verdict.FAIL if reasons else Verdict.PASS, reasons=tuple(reasons))


def _levels(spec: PreprocessSpec) -> NDArray[np.uint8]:
    """All 256 levels in every channel, as an image."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    return np.repeat(levels, spec.channels, axis=3)


def _recorded(file: HashedFile, count: int, spec: PreprocessSpec) -> NDArray[Any]:
    """The arrays in the picture, ``[count, crop, crop, channels]``. Its size is looked at before it is decoded."""
    wanted = spec.mode, (spec.crop, count * spec.crop)
    data = file.read(limit=MAX_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            found = image.mode, image.size
            if found == wanted:
                return np.asarray(image).reshape(count, spec.crop, spec.crop, spec.channels)
    except Exception as error:  # a damaged or hostile file can drive Pillow's parser into any error there is
        raise BundleError(f"{file.path} cannot be read: {first_line(error)}", "export the bundle again") from error
    raise BundleError(f"{file.path} is a picture {found}; the manifest makes {wanted}", "export the bundle again")


def _difference(data: bytes, spec: PreprocessSpec, expected: NDArray[Any], allowed: int) -> str:
    """What is wrong with the pixels of a file, or ""."""
    try:
        off = np.abs(prepare(data, spec).astype(int) - expected)
    except InputError as error:
        return error.cause
    return f"{np.count_nonzero(off)} of {off.size} values differ, by up to {off.max()}" if off.max() > allowed else ""
