"""The page's decoding and resizing against Pillow's, byte for byte: pictures of any size, mode and orientation."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from package.web_modules import Modules, Refused, modules, needs_node, text
from PIL import Image

from vggdeploy.errors import InputError
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec

pytestmark = needs_node
_ORIENTATION = 274
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16")


@pytest.fixture(scope="module")
def page() -> Iterator[Modules]:
    with modules() as opened:
        yield opened


def spec_of(mode: str, resize: int, crop: int, interpolation: str) -> PreprocessSpec:
    count = 1 if mode == "L" else 3
    return PreprocessSpec(
        mode=mode, resize=resize, crop=crop, interpolation=interpolation, mean=(0.5,) * count, std=(0.5,) * count
    )


@st.composite
def specs(draw: st.DrawFn) -> PreprocessSpec:
    resize = draw(st.integers(1, 48))
    interpolation = draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]))
    return spec_of(draw(st.sampled_from(["RGB", "L"])), resize, draw(st.integers(1, resize)), interpolation)


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """Noise: any other rounding would show in it."""
    noise = np.random.default_rng(seed)
    channels = {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode)
    if mode == "1":
        return Image.fromarray(noise.integers(0, 2, (height, width), np.uint8) * 255).convert("1")
    if mode == "I;16":
        return Image.fromarray(noise.integers(0, 65536, (height, width), np.uint16))
    if mode in ("P", "PA"):
        made = Image.fromarray(noise.integers(0, 64, (height, width), np.uint8), mode="L")
        made.putpalette(noise.integers(0, 256, 3 * 64, np.uint8).tobytes())
        if mode == "PA":
            made.info["transparency"] = noise.integers(0, 256, 40, np.uint8).tobytes()
        return made
    shape = (height, width) if channels is None else (height, width, channels)
    return Image.fromarray(noise.integers(0, 256, shape, np.uint8), mode=mode)


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[_ORIENTATION] = orientation
    return made.tobytes()


def png(image: Image.Image, orientation: int = 1) -> bytes:
    """With EXIF, unless upright."""
    file = io.BytesIO()
    said = {} if orientation == 1 else {"exif": exif(orientation)}
    image.save(file, "PNG", **said, **{k: v for k, v in image.info.items() if k == "transparency"})
    return file.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=specs(), mode=st.sampled_from(_MODES), width=st.integers(1, 120), height=st.integers(1, 120),
    orientation=st.integers(1, 8), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_every_png_is_prepared_to_pillows_bits(
    page: Modules, spec: PreprocessSpec, mode: str, width: int, height: int, orientation: int, seed: int
) -> None:
    file = png(picture(mode, width, height, seed), orientation)
    assert np.array_equal(page.prepare(file, spec), prepare(file, spec))


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (33, 1500), (2000, 90)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_large_and_long_pictures_too(page: Modules, size: tuple[int, int], interpolation: str) -> None:
    file = png(picture("RGB", *size, seed=5))
    spec = spec_of("RGB", 256, 224, interpolation)
    assert np.array_equal(page.prepare(file, spec), prepare(file, spec))


@pytest.mark.parametrize("name", sorted(p.name for p in IMAGES.glob("*.png")))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_png_of_the_golden_set_too(page: Modules, name: str, mode: str) -> None:
    file, spec = (IMAGES / name).read_bytes(), spec_of(mode, 40, 32, "bilinear")
    assert np.array_equal(page.prepare(file, spec), prepare(file, spec))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_a_browser_decoded_is_turned_and_made_opaque_as_pillow_does(page: Modules, orientation: int) -> None:
    """A browser hands over RGBA; what it was turned by stands in the file."""
    array = np.random.default_rng(3).integers(0, 256, (37, 61, 4), np.uint8)
    spec = spec_of("RGB", 24, 20, "bilinear")
    expected = prepare(png(Image.fromarray(array), orientation), spec)
    assert np.array_equal(page.prepare_pixels(array, orientation, spec), expected)


@pytest.mark.parametrize(
    "name", [f"exif-{n}.jpg" for n in range(1, 9)] + ["exif-7.webp", "exif-6.png", "two-pictures.mpo"]
)
def test_orientations_are_found_where_pillow_finds_them(page: Modules, name: str) -> None:
    data = (IMAGES / name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert page("orientation", file=text(data)) == image.getexif().get(_ORIENTATION, 1)


def test_an_orientation_in_xmp_counts_where_exif_has_none(page: Modules) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "JPEG", xmp=xmp)
    with Image.open(file) as image:
        assert page("orientation", file=text(file.getvalue())) == image.getexif().get(_ORIENTATION) == 6


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def with_chunks(file: bytes, before: bytes, after: bytes = b"") -> bytes:
    """A PNG with more chunks behind its header, and behind its pixels."""
    return file[:33] + before + file[33:-12] + after + file[-12:]


def profile(block: bytes) -> bytes:
    """As ImageMagick writes EXIF into a PNG's text: name, length, 72 hexadecimal digits a line."""
    digits = block.hex()
    lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
    return f"\nexif\n{len(block):8}\n".encode() + "\n".join(lines).encode() + b"\n"


def xmp(orientation: int) -> bytes:
    return b'<rdf:Description tiff:Orientation="%d"/>' % orientation


TEXTS = {
    "tEXt": lambda key, value: chunk(b"tEXt", key + b"\0" + value),
    "zTXt": lambda key, value: chunk(b"zTXt", key + b"\0\0" + zlib.compress(value)),
    "iTXt": lambda key, value: chunk(b"iTXt", key + b"\0\0\0en\0\0" + value),
    "iTXt, packed": lambda key, value: chunk(b"iTXt", key + b"\0\1\0\0\0" + zlib.compress(value)),
}
_PROFILE, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize(("key", "value"), [(_PROFILE, profile(exif(6))), (_XMP, xmp(6))], ids=["profile", "xmp"])
def test_a_png_says_in_any_kind_of_text_how_it_is_turned(
    page: Modules, kind: str, late: bool, key: bytes, value: bytes
) -> None:
    spec, text_chunk = spec_of("RGB", 24, 20, "bilinear"), TEXTS[kind](key, value)
    plain = png(picture("RGB", 37, 61, seed=3))
    file = with_chunks(plain, *((b"", text_chunk) if late else (text_chunk,)))
    assert page("orientation", file=text(file)) == 6
    assert np.array_equal(page.prepare(file, spec), prepare(file, spec))
    assert not np.array_equal(prepare(file, spec), prepare(plain, spec))


_BLOCKS = [
    b"", b"Exif\0\0", exif(5), exif(0), exif(9), exif(7)[6:], b"Exif\0\0" + exif(3), b"garbage of EXIF", b"II*\0", exif(8)[:-9],
    b"MM\0*\0\0\0\x08\0\1\1\x12\0\1\0\0\0\1\6\0\0\0\0\0\0\0", b"MM*\0\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
    b"II*\0\x08\0\0\0\1\0\x12\1\4\0\2\0\0\0\6\0\0\0\0\0\0\0", b"II*\0\x08\0\0\0\1\0\x12\1\x63\0\1\0\0\0\6\0\0\0\0\0\0\0",
]  # fmt: skip
_VALUES = [
    *_BLOCKS, *map(profile, _BLOCKS), xmp(2), xmp(0), xmp(4) + b"\xff", b"<tiff:Orientation>8</tiff:Orientation>",
    b"1\n2\n3\n0g", b"\n\n\n4 9", b"\n\n\n49 49\v2a\f00", b"\n\n\n\xa049",
]  # fmt: skip


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 3)) == 0:
        return chunk(b"eXIf", draw(st.sampled_from(_BLOCKS)))
    key = draw(st.sampled_from([_PROFILE, _XMP, _PROFILE, _XMP, b"exif", b"xmp", b"Comment", b"Raw profile type xmp"]))
    return TEXTS[draw(st.sampled_from(sorted(TEXTS)))](key, draw(st.sampled_from(_VALUES)))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(chunks(), max_size=4), after=st.lists(chunks(), max_size=2))
def test_of_several_that_differ_the_page_believes_the_one_that_pillow_believes(
    page: Modules, before: list[bytes], after: list[bytes]
) -> None:
    """Readable and not, empty, of other types, twice, in the wrong kind of text."""
    spec = spec_of("RGB", 7, 5, "nearest")
    file = with_chunks(png(picture("RGB", 9, 11, seed=1)), b"".join(before), b"".join(after))
    assert np.array_equal(page.prepare(file, spec), prepare(file, spec))


def test_text_that_cannot_be_unpacked_is_refused_where_it_could_turn_the_picture(page: Modules) -> None:
    spec, plain = spec_of("RGB", 7, 5, "nearest"), png(picture("RGB", 9, 11, seed=1))
    packed = zlib.compress(profile(exif(6)))
    bomb = zlib.compress(profile(exif(6)) + b"\n" * 2**20)
    for data, told in (
        (b"\0" + packed[:-9], "damaged PNG"), (b"\0\xff" + packed, "damaged PNG"),
        (b"\1" + packed, "packed in an unknown way"), (b"\0" + bomb, "its text is too long"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=told) as refused:
            page.prepare(with_chunks(plain, chunk(b"zTXt", _PROFILE + b"\0" + data)), spec)
        assert refused.value.known
        other = with_chunks(plain, chunk(b"zTXt", b"Comment\0\0" + data[1:]))
        assert np.array_equal(page.prepare(other, spec), page.prepare(plain, spec))


def test_what_stands_behind_the_first_picture_of_an_animation_does_not_turn_it(page: Modules) -> None:
    file = io.BytesIO()
    frames = [picture("RGB", 9, 11, seed) for seed in (1, 2)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    data, turned = file.getvalue(), TEXTS["tEXt"](_PROFILE, profile(exif(6)))
    for made, expected in ((with_chunks(data, b"", turned), 1), (with_chunks(data, turned), 6)):
        assert page("orientation", file=text(made)) == expected
        spec = spec_of("RGB", 7, 5, "nearest")
        assert np.array_equal(page.prepare(made, spec), prepare(made, spec))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of EXIF that is cut short
@pytest.mark.parametrize("block", _BLOCKS)
@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_exif_of_any_kind_counts_beside_xmp_as_for_pillow(page: Modules, form: str, block: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, form, exif=block, xmp=xmp(3))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        try:
            expected = image.getexif().get(_ORIENTATION)
        except Exception:  # as `prepare` has it: what cannot be read tells nothing
            expected = None
    expected = expected if isinstance(expected, int) and 1 <= expected <= 8 else 1
    assert page("orientation", file=text(file.getvalue())) == expected


def test_metadata_that_is_hidden_from_a_browser_leaves_the_picture_alone(page: Modules) -> None:
    for name in ("exif-6.jpg", "exif-7.webp"):
        data = (IMAGES / name).read_bytes()
        bare = page.bytes("bare", data)
        with Image.open(io.BytesIO(bare)) as image, Image.open(io.BytesIO(data)) as before:
            assert image.getexif().get(_ORIENTATION) is None
            assert np.array_equal(np.asarray(image), np.asarray(before))


def test_a_damaged_file_is_refused_in_words_and_never_answered_otherwise_than_pillow(page: Modules) -> None:
    """Hundreds of damaged PNGs: the page refuses, or has Pillow's pixels."""
    chance = random.Random(0)
    spec = spec_of("RGB", 8, 8, "bilinear")
    names = ("rgb-portrait.png", "palette-alpha.png", "grey16-clear.png", "exif-6.png", "rgba.png", "rgb16.png")
    refused = 0
    for number in range(600):
        data = bytearray((IMAGES / names[number % len(names)]).read_bytes())
        for _ in range(chance.choice((1, 1, 2))):
            data[chance.randrange(8, len(data))] ^= 1 << chance.randrange(8)
        try:
            expected = prepare(bytes(data), spec, max_pixels=10**6)
        except InputError:
            expected = None
        try:
            pixels = page.prepare(bytes(data), spec)
        except Refused as error:
            assert error.known, error
            refused += 1
            continue
        assert expected is not None, number
        assert np.array_equal(pixels, expected), number
    assert refused > 300


@pytest.mark.parametrize(
    "name", ["exif-6.jpg", "progressive.jpg", "two-pictures.mpo", "animated.gif", "clear.gif", "rgba.webp", "rgb.bmp"]
)
def test_a_file_is_whole_exactly_when_pillow_says_so(page: Modules, name: str) -> None:
    """Cut at every place. A browser would fill up what is missing, and Pillow refuses."""
    data = (IMAGES / name).read_bytes()
    kind = {"mpo": "jpeg", "jpg": "jpeg"}.get(name[-3:], name.rpartition(".")[2])
    spec = spec_of("RGB", 8, 8, "bilinear")
    for length in range(12, len(data) + 1, 3):
        try:
            prepare(data[:length], spec)
            decodes = True
        except InputError:
            decodes = False
        if page("whole", file=text(data[:length]), type=f"image/{kind}"):
            assert decodes, length
    assert page("whole", file=text(data), type=f"image/{kind}")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(page: Modules) -> None:
    inner, outer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(inner, "JPEG")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(
        outer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + inner.getvalue()
    )
    data = outer.getvalue()
    assert page("whole", file=text(data), type="image/jpeg")
    assert not page("whole", file=text(data[:-40]), type="image/jpeg")


def test_a_bomb_is_refused_by_its_header(page: Modules) -> None:
    for size, told in (((20_000, 20_000), "more than this page takes"), ((80_000, 1), "too elongated")):
        data = bytearray(png(Image.new("L", (1, 1))))
        data[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
        with pytest.raises(Refused, match=told):
            page.prepare(bytes(data), spec_of("RGB", 256, 224, "bilinear"))
