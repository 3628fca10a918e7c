"""From an image to the graph's input: the one function that training, evaluation and the runtime share.

Decode, upright, mode, resize, crop; all on the host, all integers. Normalisation is inside the graph.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vggdeploy.errors import InputError
from vggdeploy.optional import first_line
from vggdeploy.spec import PreprocessSpec

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

# Only decoders that people send pictures in: fewer parsers for a hostile file to reach.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb: 256 MiB of RGB

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def prepare(source: ImageLike, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """One image as ``uint8 [crop, crop, channels]``.

    Args:
        source: a path, the bytes of an image file, a PIL image, or a ``uint8`` array ``[H, W]``, ``[H, W, 1]``,
            ``[H, W, 3]`` or ``[H, W, 4]`` (grey, grey, RGB, RGBA).
        spec: the manifest's preprocessing.
        max_pixels: an image with more pixels than this is refused before it is decoded.

    Transparency is composed onto white; 16-bit grey is scaled to 8 bits; CMYK and palettes become RGB; EXIF
    orientation is applied; of an animation the first frame is taken. Resizing and cropping compute the sizes that
    ``torchvision.transforms.Resize(int)`` and ``CenterCrop`` compute.

    Raises:
        InputError: not an image, cut short, too large, or an array of another dtype or shape.
    """
    name = describe(source)
    image = _decode(source, name, max_pixels)
    try:
        image = _to_mode(ImageOps.exif_transpose(image), spec.mode)
        return _resize_and_crop(image, spec)
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # Pillow decodes lazily: damage shows up here
        raise InputError(f"{name} is damaged: {first_line(error)}", "replace the file") from error


def prepare_batch(
    sources: Sequence[ImageLike], spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Several images as ``uint8 [N, crop, crop, channels]``; see `prepare`."""
    batch = np.empty((len(sources), spec.crop, spec.crop, spec.channels), np.uint8)
    for row, source in zip(batch, sources, strict=True):
        row[...] = prepare(source, spec, max_pixels=max_pixels)
    return batch


def normalise(batch: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """``uint8 [N, H, W, C]`` → normalised ``float32 [N, C, H, W]``: what a graph with a float32 input wants."""
    scale, shift = np.float32(spec.scale), np.float32(spec.shift)
    return np.ascontiguousarray((batch.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2))


def describe(source: ImageLike) -> str:
    """How an error names an image."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"the {'image' if isinstance(source, Image.Image) else type(source).__name__} given"


def _decode(source: ImageLike, name: str, max_pixels: int) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        _check_size(source, name, max_pixels)
        return source
    if isinstance(source, (str, os.PathLike)):
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}", "check the path and its permissions") from error
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        raise InputError(f"a {type(source).__name__} is not an image", "give a path, bytes, a PIL image or a uint8 array")
    if not data:
        raise InputError(f"{name} is empty (0 bytes)", "replace the file")
    try:
        with warnings.catch_warnings():
            # We check the size ourselves, on the next line; a warning about metadata is not the user's concern.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image, name, max_pixels)
            image.load()
    except Image.DecompressionBombError:
        raise _too_large(name, "far too many", max_pixels) from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not an image in a known format", f"give one of {', '.join(FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise InputError(f"{name} is damaged: {first_line(error)}", "replace the file") from error
    return image


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise _too_large(name, f"{image.width} × {image.height}", max_pixels)
    if pixels == 0:
        raise InputError(f"{name} has no pixels ({image.width} × {image.height})", "replace the image")


def _too_large(name: str, size: str, max_pixels: int) -> InputError:
    return InputError(f"{name} has {size} pixels; the limit is {max_pixels:,}", "scale it down, or raise max_pixels")


def _from_array(array: NDArray[Any]) -> Image.Image:
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not good or array.size == 0:
        raise InputError(
            f"an array of {array.dtype}{list(array.shape)} is not an image",
            "give uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; for a prepared batch call engine.run",
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by its range; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels go from {values.min():g} to {values.max():g}; 8- and 16-bit images are read")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    short, long = sorted(image.size)
    if short != spec.resize:
        other = int(spec.resize * long / short)
        size = (spec.resize, other) if image.width <= image.height else (other, spec.resize)
        image = image.resize(size, _RESAMPLING[spec.interpolation])
    left = round((image.width - spec.crop) / 2.0)
    top = round((image.height - spec.crop) / 2.0)
    image = image.crop((left, top, left + spec.crop, top + spec.crop))
    return np.asarray(image, np.uint8).reshape(spec.crop, spec.crop, spec.channels)


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files as given, and every image file below a directory, sorted.

    Raises:
        InputError: a path that does not exist, or a directory without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"{path} holds no images", f"known suffixes: {', '.join(sorted(SUFFIXES))}")
            found += inside
        else:
            found.append(path)
    return found
