"""From an image to the graph's input: the one function that training, evaluation and the runtime share.

Decode, upright, mode, resize, crop; all on the host, all integers. Normalisation is inside the graph. The exact rules
stand in docs/reference/preprocessing.md.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from vggdeploy.errors import InputError, first_line, nearby
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.files import read_regular
from vggdeploy.system.ranges import ranged
from vggdeploy.system.streams import BinaryFile, Upload, is_file, name_of, read_stream

OneImage = str | os.PathLike[str] | bytes | Image.Image | BinaryFile | Upload
ImageLike = OneImage | NDArray[Any]
_Finish = Callable[[Image.Image, PreprocessSpec], NDArray[np.uint8]]

# Only decoders that people send pictures in: fewer parsers for a hostile file to reach, and never Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
# Pictures, too, and read by none of these decoders: by the bytes from the fifth on (ISO/IEC 14496-12; ISO/IEC 18181-2 and
# 15444-1), and by suffix.
_UNREAD = {
    b"ftypavif": "AVIF", b"ftypavis": "AVIF", b"ftypheic": "HEIC", b"ftypheix": "HEIC", b"ftypmif1": "HEIF",
    b"JXL \r\n\x87\n": "JPEG XL", b"jP  \r\n\x87\n": "JPEG 2000",
}  # fmt: skip
UNREAD_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jxl", ".jp2"})
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 256 MiB of RGB
# Bytes of a file beside its pixels, of which none of the formats takes more than 8 (16-bit RGBA) for one.
MAX_METADATA = 64 * 2**20

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# EXIF 2.32, tag 274: what turns the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# 16 bits to 8 by the range: 257 · v goes back to v. (Pillow would clip everything above 255 to white.)
_TO_8_BITS = np.rint(np.arange(2**16) / 257).astype(np.uint8)


def prepare(source: ImageLike, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """One image as ``uint8 [crop, crop, channels]``.

    Args:
        source: a path, the bytes of an image file, an open file or upload (read from where it stands, and put back there
            where it can be), a PIL image, or a ``uint8`` array ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or
            ``[H, W, 4]`` (grey, grey, RGB, RGBA).
        spec: the manifest's preprocessing.
        max_pixels: an image with more pixels than this, as it is or as ``spec`` resizes it, is refused before it is
            decoded.

    Transparency is composed onto white; 16-bit grey is scaled to 8 bits; CMYK and palettes become RGB; EXIF
    orientation is applied; of an animation the first frame is taken. Resizing and cropping compute what
    ``torchvision.transforms.Resize(int)`` and ``CenterCrop`` compute on a PIL image, pixel for pixel.

    Raises:
        InputError: not an image, cut short, too large, too elongated, or an array of another dtype or shape.
    """
    return _prepare(source, spec, describe(source), max_pixels)


@ranged("decode")
def squeeze(
    source: ImageLike, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """One image for a detector, whole: ``uint8 [crop, crop, channels]``, its sides resized each on its own, and the width and
    height that it had when upright. Nothing is cut off; the rest is as in `prepare`."""
    sizes: list[tuple[int, int]] = []

    def finish(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
        sizes.append(image.size)
        if image.size != (spec.crop, spec.crop):
            image = image.resize((spec.crop, spec.crop), _RESAMPLING[spec.interpolation])
        return np.asarray(image, np.uint8).reshape(spec.crop, spec.crop, spec.channels)

    pixels = _prepare(source, spec, describe(source), max_pixels, finish)
    return pixels, sizes[0]


@ranged("decode")
def prepare_batch(
    sources: Sequence[ImageLike], spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Several images as ``uint8 [N, crop, crop, channels]``; see `prepare`."""
    batch = np.empty((len(sources), spec.crop, spec.crop, spec.channels), np.uint8)
    for number, source in enumerate(sources):
        batch[number] = _prepare(source, spec, _own_name(source) or f"image {number} of the batch", max_pixels)
    return batch


def normalise(batch: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """``uint8 [N, H, W, C]`` → normalised ``float32 [N, C, H, W]``: what a graph with a float32 input wants."""
    scale, shift = np.asarray(spec.scale, np.float32), np.asarray(spec.shift, np.float32)
    return np.ascontiguousarray((batch.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2))


def denormalise(batch: NDArray[np.float32], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The pixels that `normalise` was given, to the last bit: ``float32 [N, C, H, W]`` → ``uint8 [N, H, W, C]``."""
    scale, shift = np.asarray(spec.scale, np.float32), np.asarray(spec.shift, np.float32)
    pixels = np.rint((batch.transpose(0, 2, 3, 1) - shift) / scale)
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))


def describe(source: ImageLike) -> str:
    """How an error names an image."""
    return _own_name(source) or f"the {'image' if isinstance(source, Image.Image) else type(source).__name__} given"


def _own_name(source: Any) -> str:
    """The path, or the name that a file or an upload says; "" without one."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return path if path.isprintable() and path else ascii(path)
    return name_of(source) if is_file(source) else ""


def _prepare(
    source: ImageLike, spec: PreprocessSpec, name: str, max_pixels: int, finish: _Finish | None = None
) -> NDArray[np.uint8]:
    data = _read(source, name, max_pixels)
    try:
        with _quiet_pillow():
            image = _open(data)
            _check_size(image, spec, name, max_pixels)
            image.load()
            return (finish or _resize_and_crop)(_to_mode(_upright(image), spec.mode, name), spec)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        hint = "scale it down (a larger max_pixels needs a larger PIL.Image.MAX_IMAGE_PIXELS too)"
        raise InputError(f"{name}: {first_line(error)}", hint) from None
    except UnidentifiedImageError:
        kind = _UNREAD.get(data[4:12], "") if isinstance(data, bytes) else ""
        cause = (
            f"{name} is an {kind} file, which is not read here" if kind else f"{name} is not an image in a known format"
        )
        raise InputError(cause, f"{'convert it to' if kind else 'give'} one of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise InputError(f"{name} needs more memory than there is", "scale it down") from None
    except Exception as error:  # a damaged or hostile file can drive Pillow's parsers into any error there is
        raise InputError(f"{name} is damaged: {first_line(error)}", "replace the file") from error


def _read(source: ImageLike, name: str, max_pixels: int) -> bytes | Image.Image:
    """The bytes of a file, or an image in memory."""
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    return source if isinstance(source, Image.Image) else read_encoded(source, name, max_pixels)


def read_encoded(
    source: str | os.PathLike[str] | bytes | BinaryFile | Upload, name: str, max_pixels: int = MAX_PIXELS
) -> bytes:
    """The bytes of an image file, not decoded yet. ``name`` is how an error names it; the rest as `prepare`.

    Raises:
        InputError: it cannot be read, or is empty; what is no path, no file and has no bytes.
    """
    limit = 8 * max_pixels + MAX_METADATA
    if isinstance(source, (str, os.PathLike)):
        try:
            data = read_regular(os.fsdecode(source), limit=limit)
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}", "give the path of an image file") from error
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif is_file(source):
        data = read_stream(source, name, limit)
    else:
        raise InputError(
            f"a {type(source).__name__} is not an image",
            "give a path, bytes, an open file, a PIL image or a uint8 array",
        )
    if not data:
        raise InputError(f"{name} is empty (0 bytes)", "replace the file")
    return data


def _open(data: bytes | Image.Image) -> Image.Image:
    return data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data), formats=FORMATS)


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not good or array.size == 0:
        raise InputError(
            f"{name}: {array.dtype}{list(array.shape)} is not an image",
            "give uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; for a prepared batch call engine.run",
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _check_size(image: Image.Image, spec: PreprocessSpec, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name} has no pixels ({width} × {height})", "replace the image")
    if width * height > max_pixels:
        raise InputError(f"{name} has {width} × {height} pixels; the limit is {max_pixels:,}", "scale it down")
    # The memory that resizing takes grows with the ratio of the sides, whatever the size of the file.
    if math.prod(new := _resized(image, spec)) > max_pixels:
        raise InputError(
            f"{name} has {width} × {height} pixels; resized it would have {new[0]} × {new[1]}, above {max_pixels:,}",
            "cut it to a shape nearer to a square",
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(Base.Orientation)
    except Exception:  # metadata that cannot be read tells nothing; the pixels are fine, and any error is possible
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels, whose range is unknown", "save it with 8 or 16 bits")
    try:
        if image.mode.startswith("I"):
            image = _to_8_bits(image)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        if image.mode not in ("1", "L"):
            image = image.convert("RGB")  # also on the way to grey: the same picture is the same grey in any mode
        return image.convert(mode)
    except ValueError as error:
        raise InputError(f"{name} has the mode {image.mode}: {first_line(error)}", "convert it to RGB first") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels go from {values.min()} to {values.max()}, beyond 16 bits")
    grey = _TO_8_BITS[values]
    if isinstance(clear := image.info.get("transparency"), int):  # a PNG can name one grey that is transparent
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _resized(image: Image.Image, spec: PreprocessSpec) -> tuple[int, int]:
    """The size after resizing: the shorter side exact, the other rounded down, as torchvision has it."""
    short, long = sorted(image.size)
    other = int(spec.resize * long / short)
    return (spec.resize, other) if image.width <= image.height else (other, spec.resize)


def _resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    size = _resized(image, spec)
    if image.size != size:
        image = image.resize(size, _RESAMPLING[spec.interpolation])
    # round() is to even on a half, in torchvision's CenterCrop too.
    left = round((image.width - spec.crop) / 2.0)
    top = round((image.height - spec.crop) / 2.0)
    image = image.crop((left, top, left + spec.crop, top + spec.crop))
    return np.asarray(image, np.uint8).reshape(spec.crop, spec.crop, spec.channels)


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The images of `walk_images`, of paths that hold some.

    Raises:
        InputError: as `count_images`.
    """
    sources = [Path(path) for path in paths]
    count_images(sources)
    return list(walk_images(sources))


def count_images(sources: Iterable[Path]) -> int:
    """How many images there are, found out before the work starts.

    Raises:
        InputError: a source that does not exist, or a directory without images.
    """
    total = 0
    for source in sources:
        if not source.exists():
            raise InputError(
                f"{describe(source)} does not exist",
                f"{nearby(source)}give the path of an image file or of a directory",
            )
        count = sum(1 for _ in walk_images([source]))
        if not count:
            raise InputError(f"{describe(source)} holds no images", f"known suffixes: {', '.join(sorted(SUFFIXES))}")
        total += count
    return total


def walk_images(sources: Iterable[Path], *, hidden: bool = True, suffixes: frozenset[str] = SUFFIXES) -> Iterator[Path]:
    """Files as given, and every image file below a directory, sorted. An image file is known by its suffix.

    One directory's names are in memory at a time; linked directories are not followed. A directory that cannot be read
    is yielded itself: as an image it is an error.

    Args:
        hidden: whether files and directories whose names begin with a dot are looked at.
        suffixes: of image files, in lower case.
    """
    for source in sources:
        if source.is_dir():
            yield from _walk(source, hidden, suffixes)
        else:
            yield source


def _walk(directory: Path, hidden: bool, suffixes: frozenset[str]) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            inside = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        yield directory
        return
    for name, is_directory in inside:
        path = directory / name
        if name.startswith(".") and not hidden:
            continue
        if is_directory:
            yield from _walk(path, hidden, suffixes)
        elif path.suffix.lower() in suffixes and path.is_file():
            yield path


# Without a handler of the application's, Pillow's log of a strange TIFF would go to stderr. This adds none of ours.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# As `warnings.filterwarnings("ignore", module="PIL\\.")` would insert it.
_IGNORE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_lock = threading.Lock()
_inside = 0


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Within the block, no warning that comes from Pillow is shown (or raised, where warnings are errors).

    They tell of metadata, or of sizes that we check ourselves. `warnings.catch_warnings` is not for threads (before
    Python 3.14): of two blocks that overlap, the one that ends last can leave the process without any warnings, and
    each makes warnings that were shown once be shown again.
    """
    global _inside  # noqa: PLW0603  # it counts the threads inside; the filters are the whole process's too
    with _lock:
        _inside += 1
        if warnings.filters[:1] != [_IGNORE]:
            warnings.filters.insert(0, _IGNORE)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                with contextlib.suppress(ValueError):  # somebody's catch_warnings has put other filters there
                    while True:
                        warnings.filters.remove(_IGNORE)  # type: ignore[attr-defined]
