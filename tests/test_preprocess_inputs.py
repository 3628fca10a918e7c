"""Whatever is not a usable picture in memory is one `InputError`; whatever is, becomes what the model wants."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vggdeploy.errors import InputError
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import find_images, prepare, prepare_batch, walk_images
from vggdeploy.spec import PreprocessSpec

SPEC = PreprocessSpec()
GREY = PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,))


def refused(source: Any, spec: PreprocessSpec = SPEC) -> str:
    """Refuse it; returns the cause: one line, with a remedy."""
    with pytest.raises(InputError) as caught:
        prepare(source, spec)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.cause


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


# Modes and arrays


def test_floating_point_pixels_are_refused() -> None:
    image = Image.fromarray(np.full((40, 40), 0.5, np.float32))
    assert "floating-point" in refused(image)
    assert "floating-point" in refused(encoded(image, "TIFF"))


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_pixels_beyond_16_bits_are_refused(value: int) -> None:
    pixels = np.zeros((40, 40), np.int32)
    pixels[3, 3] = value
    assert "beyond 16 bits" in refused(Image.fromarray(pixels))


def test_a_mode_that_cannot_be_converted_is_named() -> None:
    assert "has the mode La" in refused(Image.new("La", (40, 40)))


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spec", [SPEC, GREY], ids=["rgb", "grey"])
def test_every_mode_of_pillow_becomes_the_models(mode: str, spec: PreprocessSpec) -> None:
    assert prepare(Image.new(mode, (40, 30)), spec).shape == (spec.crop, spec.crop, spec.channels)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 0), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0, 3), np.uint8), np.zeros((), np.uint8),
        np.zeros(5, np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5, 5), np.uint8), np.zeros((3, 5, 5), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8), np.zeros((5, 5, 0), np.uint8), np.zeros((5, 5)), np.full((5, 5, 3), np.nan),
        np.zeros((5, 5, 3), np.float16), np.zeros((5, 5), bool), np.zeros((5, 5), np.int8), np.zeros((5, 5), np.uint16),
        np.zeros((5, 5), np.int64), np.array([["a"]]), np.array([[object()]]), np.zeros((5, 5), "V3"),
        np.zeros((5, 5), "M8[s]"),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)  # fmt: skip
def test_an_array_that_is_no_image(array: np.ndarray) -> None:
    assert "is not an image" in refused(array)


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1), (40, 30, 3), (40, 30, 4), (1, 1)])
def test_an_array_in_any_memory_layout(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = prepare(array, SPEC)
    padded = np.zeros((shape[0] * 2, *shape[1:]), np.uint8)
    padded[::2] = array
    readonly = array.copy()
    readonly.setflags(write=False)
    for same in (np.asfortranarray(array), padded[::2], array[::-1][::-1], readonly):
        np.testing.assert_array_equal(prepare(same, SPEC), expected)


@pytest.mark.parametrize(
    "source", [None, 3, [], {}, object(), [[1, 2], [3, 4]], io.BytesIO(b"x")], ids=lambda s: type(s).__name__
)
def test_what_is_no_image(source: Any) -> None:
    assert "is not an image" in refused(source)


def test_an_image_without_pixels() -> None:
    assert "has no pixels (0 × 5)" in refused(Image.new("RGB", (0, 5)))


def test_a_batch_names_the_image_that_failed(tmp_path: Path) -> None:
    good = np.zeros((40, 40), np.uint8)
    with pytest.raises(InputError, match=r"^image 2 of the batch: float64\[40, 40\] is not an image"):
        prepare_batch([good, good, good.astype(float)], SPEC)
    with pytest.raises(InputError, match="missing.png cannot be read".replace(".", r"\.")):
        prepare_batch([good, tmp_path / "missing.png"], SPEC)


# Threads and the rest of the process


def test_pillows_warnings_are_silent_in_threads_and_everybody_elses_are_not() -> None:
    """`catch_warnings` would leave the process without warnings when its blocks overlap."""
    palette = Image.new("P", (40, 40))
    palette.info["transparency"] = bytes(range(256))  # Pillow warns when it converts this to RGB
    heard: list[str] = []

    def decode() -> None:
        for _ in range(100):
            prepare(palette.copy(), GREY)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=decode) for _ in range(8)]
        for thread in threads:
            thread.start()
        while True:  # once at least, however quick the threads are
            warnings.warn("from the application", stacklevel=1)
            heard.append("x")
            if not any(thread.is_alive() for thread in threads):
                break
            time.sleep(0.001)
        for thread in threads:
            thread.join()
        assert warnings.filters == before
        assert len(shown) == len(heard)
        assert {str(w.message) for w in shown} == {"from the application"}


def test_pillows_log_does_not_reach_the_terminal() -> None:
    script = f"""
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec
data = bytearray(open({str(IMAGES / "raw.tif")!r}, "rb").read())
at = data.index(b"\\x15\\x01\\x03\\x00")
data[at + 8 : at + 10] = b"\\xff\\xff"  # 65,535 samples a pixel
try:
    prepare(bytes(data), PreprocessSpec())
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("InputError\n", "")


# Finding


def test_a_directory_gives_its_images_sorted(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "sub/c.webp", "notes.txt", "d.gif.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "e.png").mkdir()
    found = [p.relative_to(tmp_path).as_posix() for p in find_images([tmp_path])]
    assert found == ["a.jpeg", "b.PNG", "sub/c.webp"]


def test_the_walk_is_sorted_follows_no_linked_directory_and_leaves_hidden_names_out_on_request(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b/z.png", "b/a/x.JPG", "b.png", "a-b.png", "a/2.png", "b/.hidden.png", "c/d.txt", ".h/e.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "given.png").touch()
    (root / "loop").symlink_to(root)
    (root / "linked.png").symlink_to(tmp_path / "given.png")
    (root / "broken.png").symlink_to(tmp_path / "nothing.png")
    found = list(walk_images([root, tmp_path / "given.png"]))
    assert found == [*sorted(p for p in found if p.is_relative_to(root)), tmp_path / "given.png"]
    named = [p.relative_to(root).as_posix() for p in found[:-1]]
    visible = ["a/2.png", "a-b.png", "b/a/x.JPG", "b/z.png", "b.png", "linked.png"]
    assert named == [".h/e.png", *visible[:2], "b/.hidden.png", *visible[2:]]
    assert [p.relative_to(root).as_posix() for p in walk_images([root], hidden=False)] == visible


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "upload").touch()
    assert find_images([tmp_path / "upload"]) == [tmp_path / "upload"]


def test_a_directory_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        find_images([tmp_path])


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_images([tmp_path / "cat.png"])
