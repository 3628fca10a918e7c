"""Make the golden images and arrays of the preprocessing tests.

    python tests/golden/make.py

Every file is an encoding of pixels that this script computed; `expected.npz` holds what preprocessing has to make of
them. It is computed from those pixels, not from the files, and without vggdeploy's preprocessing: the modes by the
formulas below, the geometry by torchvision. So a golden array is a second opinion, not a recording. Both travel with
the package, for `vggdeploy verify --strict-preprocess`.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vggdeploy.parity.pixels import EXPECTED, GEOMETRY, IMAGES, MODES, SPECS

Pixels = np.ndarray[Any, Any]


def picture(width: int, height: int, channels: int = 3) -> Pixels:
    """Slopes, a fine chequerboard, and a bright frame: something for every way to resample wrongly."""
    y, x = np.mgrid[:height, :width]
    planes = [(x * 255 // width), (y * 255 // height), ((x + y) % 2) * 200, 255 - x * y % 256]
    found = np.stack(planes[:channels], axis=-1).astype(np.uint8)
    found[0, :, :3] = found[:, -1, :3] = 250
    return found


def blocks(width: int, height: int) -> Pixels:
    """Four plain quarters: a JPEG of them is exact but for rounding, in whatever decoder."""
    found = np.zeros((height, width, 3), np.uint8)
    found[: height // 2, : width // 2] = (200, 40, 40)
    found[: height // 2, width // 2 :] = (40, 180, 60)
    found[height // 2 :, : width // 2] = (50, 60, 190)
    found[height // 2 :, width // 2 :] = (220, 210, 90)
    return found


def soft(width: int, height: int) -> Pixels:
    """Four quarters of other colours with slopes of 16 pixels between them: chroma that was halved comes back as it was."""
    u = np.clip((np.arange(width) - (width - 1) / 2) / 16 + 0.5, 0, 1)[None, :, None]
    v = np.clip((np.arange(height) - (height - 1) / 2) / 16 + 0.5, 0, 1)[:, None, None]
    corners = blocks(2, 2).astype(float)
    upper, lower = ((1 - u) * left + u * right for left, right in corners)
    return np.rint((1 - v) * upper + v * lower).astype(np.uint8)


def stripes(width: int, height: int) -> Pixels:
    """Squares of 8 pixels on two slopes: something to make smaller, and small as a file."""
    y, x = np.mgrid[:height, :width]
    planes = [(x // 8 + y // 8) % 2 * 170 + 40, x * 255 // width, y * 255 // height]
    return np.stack(planes, axis=-1).astype(np.uint8)


# The modes, by formula


def onto_white(rgba: Pixels) -> Pixels:
    """Alpha over white, rounded to the nearest."""
    colour, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def grey_of(rgb: Pixels) -> Pixels:
    """ITU-R BT.601 luma in 16-bit fixed point, as Pillow documents for `convert("L")`."""
    weights = np.array([19595, 38470, 7471])
    return ((rgb.astype(np.int64) @ weights + 2**15) >> 16).astype(np.uint8)


def rgb_of_cmyk(cmyk: Pixels) -> Pixels:
    """(255 − C)(255 − K) / 255, and so on: without colour profiles, as Pillow converts."""
    inverse = 255 - cmyk.astype(np.int64)
    product = inverse[..., :3] * inverse[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def expected(rgb: Pixels, spec: tuple[str, int, int, str]) -> Pixels:
    mode, resize, crop, interpolation = spec
    pixels = rgb if mode == "RGB" else rgb[..., 0] if (rgb == rgb[..., :1]).all() else grey_of(rgb)
    geometry = transforms.Compose(
        [transforms.Resize(resize, InterpolationMode(interpolation)), transforms.CenterCrop(crop)]
    )
    return np.asarray(geometry(Image.fromarray(pixels))).reshape(crop, crop, -1)


# The files


def as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=-1)


def stored(upright: Pixels, orientation: int) -> Pixels:
    """The pixels as a camera stores them that was held so (EXIF 2.32, tag 274)."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(turned[orientation])


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


def png16(width: int, height: int, values: Pixels, clear: int | None = None) -> bytes:
    """A 16-bit PNG, grey or RGB (Pillow writes no 16-bit RGB, and no transparent grey)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    trns = b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + trns + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def pngs() -> dict[str, tuple[bytes, Pixels]]:
    """File name → its bytes and the RGB that it shows."""
    rgb, rgba = picture(37, 23), picture(33, 27, 4)
    grey = picture(41, 29)[..., 0]
    la = np.stack([grey, picture(41, 29)[..., 1]], axis=-1)
    la_white = onto_white(np.concatenate([as_rgb(grey), la[..., 1:]], axis=-1))
    bits = (picture(35, 31)[..., 2] > 0) ^ (picture(35, 31)[..., 0] > 128)
    index, table = rgb[..., 0] // 32, np.random.RandomState(3).randint(0, 256, (8, 3)).astype(np.uint8)
    table[5] = table[4]
    palette = Image.fromarray(index, "L")
    palette.putpalette(table.tobytes())
    alphas = np.array([0, 40, 80, 120, 160, 200, 255, 255], np.uint8)
    half_clear = onto_white(np.concatenate([table[index], alphas[index][..., None]], axis=-1))
    one_clear = np.where((index == 3)[..., None], 255, table[index]).astype(np.uint8)
    wide = picture(29, 29)[..., 0].astype(np.uint16) * 201 + 77
    wide8 = np.rint(wide / 257).astype(np.uint8)
    deep = picture(26, 31).astype(np.uint16) * 257 + 100
    key = tuple(int(v) for v in rgb[5, 7])
    keyed = np.where((rgb == rgb[5, 7]).all(-1, keepdims=True), 255, rgb).astype(np.uint8)
    return {
        "grey.png": (save(grey), as_rgb(grey)),
        "grey-alpha.png": (save(la, mode="LA"), la_white),
        "rgb.png": (save(rgb), rgb),
        "rgb-portrait.png": (save(picture(23, 38)), picture(23, 38)),
        "rgb-square.png": (save(picture(31, 31)), picture(31, 31)),
        "rgb-clear.png": (save(rgb, transparency=key), keyed),
        "large.png": (save(stripes(480, 360), optimize=True), stripes(480, 360)),
        "rgba.png": (save(rgba, mode="RGBA"), onto_white(rgba)),
        "bilevel.png": (save(Image.fromarray(bits)), as_rgb(bits * np.uint8(255))),
        "palette.png": (save(palette), table[index]),
        "palette-alpha.png": (save(palette, transparency=alphas.tobytes()), half_clear),
        "palette-clear.png": (save(palette, transparency=3), one_clear),
        "grey16.png": (png16(29, 29, wide), as_rgb(wide8)),
        "grey16-clear.png": (
            png16(29, 29, wide, int(wide[3, 4])), as_rgb(np.where(wide == wide[3, 4], 255, wide8).astype(np.uint8))
        ),
        "rgb16.png": (png16(26, 31, deep), (deep >> 8).astype(np.uint8)),
        "exif-6.png": (save(stored(rgb, 6), exif=exif(6)), rgb),
    }  # fmt: skip


def others() -> dict[str, tuple[bytes, Pixels]]:
    rgb, rgba = picture(37, 23), picture(33, 27, 4)
    second = 255 - rgb
    wide = picture(29, 29)[..., 0].astype(np.uint16) * 201 + 77
    wide8 = as_rgb(np.rint(wide / 257).astype(np.uint8))
    cmyk = picture(30, 24, 4)
    index, table = rgb[..., 0] // 32, np.random.RandomState(4).randint(0, 256, (8, 3)).astype(np.uint8)
    frames = [Image.fromarray(index, "L"), Image.fromarray(7 - index, "L")]
    for frame in frames:
        frame.putpalette(table.tobytes())
    bits = picture(35, 31)[..., 0] > 128
    moving: dict[str, Any] = {"save_all": True, "duration": 50}
    pages = [Image.fromarray(second)]
    return {
        "animated.gif": (save(frames[0], "GIF", append_images=frames[1:], **moving), table[index]),
        "clear.gif": (
            save(frames[0], "GIF", transparency=2),
            np.where((index == 2)[..., None], 255, table[index]).astype(np.uint8),
        ),
        "raw.tif": (save(rgb, "TIFF"), rgb),
        "lzw.tif": (save(rgb, "TIFF", compression="tiff_lzw"), rgb),
        "deflate.tif": (save(rgba, "TIFF", compression="tiff_adobe_deflate", mode="RGBA"), onto_white(rgba)),
        "cmyk.tif": (save(cmyk, "TIFF", mode="CMYK"), rgb_of_cmyk(cmyk)),
        "grey16.tif": (save(Image.fromarray(wide), "TIFF"), wide8),
        "pages.tif": (save(rgb, "TIFF", save_all=True, append_images=pages), rgb),
        "exif-5.tif": (save(stored(rgb, 5), "TIFF", exif=exif(5)), rgb),
        "rgb.webp": (save(rgb, "WEBP", lossless=True), rgb),
        "rgba.webp": (save(rgba, "WEBP", lossless=True, exact=True, mode="RGBA"), onto_white(rgba)),
        "animated.webp": (save(rgb, "WEBP", lossless=True, append_images=pages, **moving), rgb),
        "exif-7.webp": (save(stored(rgb, 7), "WEBP", lossless=True, exif=exif(7)), rgb),
        "rgb.bmp": (save(rgb, "BMP"), rgb),
        "palette.bmp": (save(frames[0], "BMP"), table[index]),
        "bilevel.bmp": (save(Image.fromarray(bits), "BMP"), as_rgb(bits * np.uint8(255))),
        "rgb.ppm": (save(rgb, "PPM"), rgb),
        "grey.pgm": (save(rgb[..., 0], "PPM"), as_rgb(rgb[..., 0])),
        "grey16.pgm": (b"P5 29 29 65535\n" + wide.astype(">u2").tobytes(), wide8),
        "bilevel.pbm": (save(Image.fromarray(bits), "PPM"), as_rgb(bits * np.uint8(255))),
    }


def jpegs() -> dict[str, tuple[bytes, Pixels]]:
    """JPEG decoders may differ by a level or two; where the quarters meet, a little more."""
    upright = blocks(64, 32)
    whole: dict[str, Any] = {"quality": 98, "subsampling": 0}
    cmyk = np.zeros((32, 64, 4), np.uint8)
    cmyk[:16, :32], cmyk[:16, 32:], cmyk[16:, :32] = (200, 30, 0, 20), (0, 150, 90, 60), (10, 20, 220, 0)
    found = {f"exif-{n}.jpg": (save(stored(upright, n), "JPEG", exif=exif(n), **whole), upright) for n in range(1, 9)}
    found["cmyk.jpg"] = (save(cmyk, "JPEG", mode="CMYK", quality=98), rgb_of_cmyk(cmyk))
    found["grey.jpg"] = (save(upright[..., 0], "JPEG", **whole), as_rgb(upright[..., 0]))
    found["progressive.jpg"] = (save(upright, "JPEG", progressive=True, **whole), upright)
    for name, subsampling in (("soft-444.jpg", 0), ("soft-420.jpg", 2)):
        found[name] = (save(soft(64, 32), "JPEG", quality=98, subsampling=subsampling), soft(64, 32))
    two = [Image.fromarray(255 - upright)]
    found["two-pictures.mpo"] = (save(upright, "MPO", save_all=True, append_images=two, **whole), upright)
    return found


def save(pixels: Pixels | Image.Image, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if mode and image.mode != mode:  # CMYK has the shape of RGBA, LA that of nothing else
        image = Image.frombytes(mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    arrays = {}
    for name, (data, rgb) in {**pngs(), **others(), **jpegs()}.items():
        (IMAGES / name).write_bytes(data)
        for spec in SPECS if name in GEOMETRY else MODES:
            arrays[f"{name}:{spec}"] = expected(rgb, SPECS[spec])
    np.savez_compressed(EXPECTED, **arrays)


if __name__ == "__main__":
    main()
