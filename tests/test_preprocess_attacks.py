"""An image that cannot be used is one `InputError` that names it: never another error, a warning, a hang or a bomb."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from vggdeploy.errors import InputError
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import FORMATS, MAX_PIXELS, prepare
from vggdeploy.spec import PreprocessSpec

MIB = 2**20
SPEC = PreprocessSpec()
GREY = PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,))


def refused(source: Any, spec: PreprocessSpec = SPEC, **options: Any) -> str:
    """Refuse it, quickly and in silence; returns the cause: one line, with a remedy."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        prepare(source, spec, **options)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.cause


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """The block's peak of resident memory is at most ``limit`` bytes above where it began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak (VmHWM) back to what is resident now
    except OSError:
        pytest.skip("this kernel does not measure peaks")
    before = peak()
    yield
    assert peak() - before <= limit


def peak() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


# What stands at the path


def test_no_such_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "cat.jpg") == f"{tmp_path}/cat.jpg cannot be read: No such file or directory"


def test_a_directory(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)


def test_an_empty_path() -> None:
    assert refused("") == "'' cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "path", ["a\0b.png", "\ud800.png", "x" * 300, "d/" * 5000], ids=["nul", "surrogate", "long", "deep"]
)
def test_what_cannot_be_a_path(path: str) -> None:
    assert "cannot be read" in refused(path)


def test_a_name_that_would_break_the_line_is_escaped(tmp_path: Path) -> None:
    assert r"a\nb\x1b[31m" in refused(tmp_path / "a\nb\x1b[31m")


def test_a_name_in_no_encoding_is_read_and_named(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(path)).write_bytes((IMAGES / "rgb.png").read_bytes())
    assert prepare(os.fsdecode(path), SPEC).shape == (224, 224, 3)
    Path(os.fsdecode(path)).write_bytes(b"")
    assert refused(os.fsdecode(path)).isprintable()


def test_a_path_object_of_bytes_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes((IMAGES / "rgb.png").read_bytes())
    with os.scandir(os.fsencode(tmp_path)) as entries:
        assert prepare(next(entries), SPEC).shape == (224, 224, 3)  # type: ignore[arg-type]


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(tmp_path / "pipe.png")


def test_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("cat.png")
        assert "cannot be read" in refused("cat.png")


def test_a_device_without_end() -> None:
    assert "not a regular file" in refused("/dev/zero")


def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cat.bmp").touch()
    os.truncate(tmp_path / "cat.bmp", 2**40)  # sparse: it takes no disk
    assert "has more than" in refused(tmp_path / "cat.bmp")


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "cat.png").symlink_to("cat.png")
    assert "symbolic links" in refused(tmp_path / "cat.png")


def test_a_file_without_permission(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    (tmp_path / "cat.png").write_bytes((IMAGES / "rgb.png").read_bytes())
    (tmp_path / "cat.png").chmod(0)
    for directory in tmp_path.parents[:3]:
        directory.chmod(0o755)
    script = f"""
import os
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec
os.setgid(65534); os.setuid(65534)
try:
    prepare({str(tmp_path / "cat.png")!r}, PreprocessSpec())
except Exception as error:
    print(type(error).__name__, error)
"""
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("InputError")
    assert "Permission denied" in done.stdout


# What stands in the file


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello, I am a text file\n", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
     b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a",
     b"II*\0\x08\0\0\0", b"RIFF\x10\0\0\0WEBP", b"BM", b"P6", b"P5\n-1 -1\n255\n", b"P6 1 1 0 \0", b"P9 1 1 255 \0"],
    ids=["empty", "nul", "text", "pdf", "eps", "svg", "zip", "png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm",
         "negative", "no maximum", "unknown"],
)  # fmt: skip
def test_no_image_at_all(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "cat.png").write_bytes(data)
    assert str(tmp_path / "cat.png") in refused(tmp_path / "cat.png")


def test_postscript_never_reaches_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"EPS", "PDF", "WMF", "EMF", "MPEG", "FPX"} & set(FORMATS)
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("cat.eps", "cat.png"):
        (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
        assert "known format" in refused(tmp_path / name)
    assert not called.exists()


@pytest.mark.parametrize("name", sorted(p.name for p in IMAGES.iterdir()))
def test_a_file_cut_anywhere_is_refused_or_whole(name: str) -> None:
    data = (IMAGES / name).read_bytes()
    spec = PreprocessSpec(mode="RGB", resize=8, crop=8)
    whole = prepare(data, spec)
    for end in range(0, len(data), max(1, len(data) // 60)):
        try:
            found = prepare(data[:end], spec)
        except InputError:
            continue
        if not name.endswith((".jpg", ".mpo", ".gif")):  # these formats end where the decoder says; lost rows are grey
            np.testing.assert_array_equal(found, whole, err_msg=f"{end} of {len(data)}")


def test_half_a_jpeg_is_never_taken_for_a_whole_one() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))
    data = encoded(noise, "JPEG")
    for share in (0.2, 0.5, 0.9, 0.99):
        assert "truncated" in refused(data[: int(len(data) * share)])


def test_an_application_that_loads_truncated_images_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LOAD_TRUNCATED_IMAGES` is the whole process's: documented, and not ours to overrule."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))
    data = encoded(noise, "JPEG")
    assert prepare(data[: len(data) // 2], SPEC).shape == (224, 224, 3)


# Bombs


BOMBS = {
    "png": png(60_000, 60_000, png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
    "png beyond memory": png(2**31 - 1, 2**31 - 1, png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
    "png just above": png(MAX_PIXELS + 1, 1, png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
    "gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x08\x02L\x01\0;",
    "gif frame beyond its screen": b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x08\x02L\x01\0;",
    "bmp": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    + b"\0" * 50,
    "ppm": b"P6 100000 100000 255\n" + b"\0" * 100,
    "pgm in text": b"P2 100000 100000 255\n" + b"1 " * 100,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_decoded(name: str) -> None:
    with little_memory(20 * MIB):
        assert "pixels" in refused(BOMBS[name])


def test_pillows_own_limit_holds_whatever_the_callers_is() -> None:
    assert "could be decompression bomb" in refused(BOMBS["png"], max_pixels=10**12)


def test_a_tiff_bomb_is_refused(tmp_path: Path) -> None:
    tags = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 60_000), (279, 100)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    assert "pixels" in refused(b"II*\0" + struct.pack("<I", 8) + directory + b"\0" * 100)


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    image = Image.new("L", (101, 10))
    assert "101 × 10 pixels; the limit is 1,009" in refused(image, GREY, max_pixels=1009)
    assert refused(encoded(image), GREY, max_pixels=1009).startswith("the bytes given has 101 × 10 pixels")
    assert refused(np.asarray(image), GREY, max_pixels=1009).startswith("the ndarray given has 101 × 10 pixels")


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 80_000_000), (3, 20_000_000)])
def test_a_thread_of_an_image_does_not_explode_when_it_is_resized(size: tuple[int, int]) -> None:
    """Resized to 256 pixels on the short side, 1 × 10,000 would take 2.6 GB, 1 × 80,000,000 two exabytes."""
    rows = zlib.compressobj()
    row = b"\0" + b"\0" * 3 * size[0]
    body = b"".join(rows.compress(row * 100) for _ in range(3)) + rows.flush()  # cut short: it is not looked at
    data = png(*size, png_chunk(b"IDAT", body))
    with little_memory(20 * MIB):
        assert "resized it would have" in refused(data)


def test_a_strip_within_reason_is_resized() -> None:
    strip = np.zeros((5, 1000, 3), np.uint8)
    strip[:, 490:510] = 255
    assert prepare(strip, PreprocessSpec(resize=64, crop=64)).mean() > 200


def test_a_giant_text_chunk_in_a_png_is_not_unpacked() -> None:
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 60_000_000))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    data = png(1, 1, bomb, pixels)
    with little_memory(20 * MIB):
        refused(data, GREY)


def test_a_giant_profile_in_a_png_is_not_unpacked() -> None:
    bomb = png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"a" * 60_000_000))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    data = png(1, 1, bomb, pixels)
    with little_memory(20 * MIB):
        assert "damaged" in refused(data, GREY)


def test_more_pixel_data_than_pixels_is_not_unpacked() -> None:
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 60_000_000))
    data = png(1, 1, pixels)
    with little_memory(20 * MIB):
        prepare(data, GREY)


# Metadata


EXIFS = [b"Exif\0\0" + x for x in (b"", b"II*\0", b"garbage", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff")]


@pytest.mark.parametrize("exif", EXIFS, ids=map(str, range(len(EXIFS))))
def test_exif_that_cannot_be_read_leaves_the_image_as_it_is_stored(exif: bytes) -> None:
    image = Image.open(IMAGES / "exif-1.jpg")
    expected = prepare(image, SPEC)
    data = encoded(image, "JPEG", exif=exif, quality="keep")
    np.testing.assert_array_equal(prepare(data, SPEC), expected)


@pytest.mark.parametrize("value", [0, 9, 65535, -1, "6", b"\6", (6, 1), 6.0], ids=repr)
def test_an_orientation_that_is_none_is_ignored(value: Any) -> None:
    image = Image.open(IMAGES / "rgb.png")
    expected = prepare(image, SPEC)
    image.getexif()[274] = value
    np.testing.assert_array_equal(prepare(image, SPEC), expected)


def test_the_callers_image_is_not_changed() -> None:
    with Image.open(IMAGES / "exif-6.png") as image:
        image.load()
        before = image.copy(), image.mode, image.size, dict(image.info), dict(image.getexif())
        first = prepare(image, SPEC)
        np.testing.assert_array_equal(prepare(image, SPEC), first)
        assert (image.mode, image.size, dict(image.info), dict(image.getexif())) == before[1:]
        assert image.tobytes() == before[0].tobytes()
