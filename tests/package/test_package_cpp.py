"""The C++ project: built with the real compiler and LibTorch, and compared with Python bit for bit."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.errors import InputError, UsageError
from vggdeploy.package.base import Order
from vggdeploy.package.cpp import model_settings, package_cpp, tall_first
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import TensorSpec

READS = {".png", ".jpg", ".ppm", ".pgm"}
# What Python takes and the C++ program refuses, each with its reason; docs/how-to/cpp-service.md says so.
REFUSED = {
    "cmyk.jpg": "CMYK",
    "grey16.pgm": "no 8-bit PGM",
    "grey16-clear.png": "16-bit grey with a transparent colour",
}


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: apt-get install cmake g++ libpng-dev libjpeg-dev)")


def call(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def project(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cpp") / "project"
    package_cpp(Order(bundle=Bundle.open(bundle_dir), output=root))
    return root


@pytest.fixture(scope="module")
def classify(project: Path) -> Path:
    """The program, built with CMake as its README says."""
    needs("cmake", "g++")
    import torch

    build = project.parent / "build"
    call("cmake", "-S", project, "-B", build, f"-DTORCH_ROOT={torch.__path__[0]}")
    call("cmake", "--build", build, "--parallel", "2")
    return build / "classify"


Prepare = Callable[[Sequence[Path], PreprocessSpec], tuple[list[NDArray[np.uint8] | None], str]]


@pytest.fixture(scope="module")
def prepare_cpp(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Its preprocessing alone, for any settings; no libtorch takes part, so this is built in seconds."""
    needs("g++")
    home = tmp_path_factory.mktemp("prepare")
    sources = [project / "src" / f"{name}.cpp" for name in ("decode", "exif", "model", "prepare", "resize")]
    flags = [
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-I",
        project / "src",
    ]
    call(
        "g++", *flags, Path(__file__).with_name("prepare_main.cpp"), *sources, "-lpng", "-ljpeg", "-o", home / "prepare"
    )

    def all_of(images: Sequence[Path], spec: PreprocessSpec) -> tuple[list[NDArray[np.uint8] | None], str]:
        out = tmp_path_factory.mktemp("raw")
        about = {
            "file": "none", "input": "image", "output": "logits", "output_index": 0, "classes": 1,
            "channels": spec.channels, "resize": spec.resize, "crop": spec.crop, "interpolation": spec.interpolation,
            "tall_first": int(tall_first()),
        }  # fmt: skip
        (out / "model.txt").write_text("".join(f"{name} {value}\n" for name, value in about.items()))
        done = call(home / "prepare", out, out, *images)
        shape = (spec.crop, spec.crop, spec.channels)
        files = [out / f"{index}.raw" for index in range(len(images))]
        return [np.fromfile(f, np.uint8).reshape(shape) if f.exists() else None for f in files], done.stderr

    return all_of


def spec_of(mode: str = "RGB", resize: int = 40, crop: int = 32, interpolation: str = "bilinear") -> PreprocessSpec:
    count = 1 if mode == "L" else 3
    return PreprocessSpec(
        mode=mode, resize=resize, crop=crop, interpolation=interpolation, mean=(0.5,) * count, std=(0.5,) * count
    )


def test_the_settings_are_the_manifests(project: Path, bundle_dir: Path) -> None:
    manifest = Bundle.open(bundle_dir).manifest
    lines = (project / "model/model.txt").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines)
    assert settings["crop"] == str(manifest.preprocess.crop)
    assert (settings["output"], settings["output_index"], settings["classes"]) == ("logits", "0", "10")
    assert (project / "model/labels.txt").read_text().splitlines() == list(manifest.labels)
    digest, name = (project / "model/SHA256SUMS").read_text().split()
    assert hashlib.sha256((project / "model" / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("variant", "runtime"), [("onnx-fp32", "onnxruntime"), ("torchscript-fp32", "torchscript")])
def test_each_variant_gets_its_runtime(bundle_dir: Path, tmp_path: Path, variant: str, runtime: str) -> None:
    package_cpp(Order(bundle=Bundle.open(bundle_dir), output=tmp_path / "p", variants=(variant,)))
    assert (tmp_path / "p/model/model.cmake").read_text() == f"set(MODEL_RUNTIME {runtime})\n"
    assert (tmp_path / f"p/cmake/{runtime}.cmake").is_file()
    assert (tmp_path / f"p/src/{runtime}.cpp").is_file()


def test_a_bundle_that_it_cannot_feed_is_refused(bundle_dir: Path) -> None:
    manifest = Bundle.open(bundle_dir).manifest
    floats = msgspec.structs.replace(manifest, input=TensorSpec("image", "float32", ("N", 1, 32, 32)))
    with pytest.raises(UsageError, match="normalised float32"):
        model_settings(floats, "model.pt")
    features = msgspec.structs.replace(manifest, outputs=(TensorSpec("fc7", "float32", ("N", 128)),))
    with pytest.raises(UsageError, match="no class scores, only fc7"):
        model_settings(features, "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_golden_image_is_prepared_to_the_same_bits(prepare_cpp: Prepare, mode: str) -> None:
    images = sorted(p for p in IMAGES.iterdir() if p.suffix in READS)
    spec = spec_of(mode)
    found, told = prepare_cpp(images, spec)
    for image, pixels in zip(images, found, strict=True):
        if image.name in REFUSED:
            assert pixels is None, image.name
            assert REFUSED[image.name] in told
        else:
            assert pixels is not None, told
            assert np.array_equal(pixels, prepare(image, spec)), image.name


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _exif(orientation: int | None) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    if orientation is not None:
        exif[Base.Orientation] = orientation
    return exif.tobytes()


def _profile(data: bytes) -> bytes:
    digits = data.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return f"\nexif\n{len(data):8}\n{lines}\n".encode()


_PROFILE, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_SAYS = b'<x tiff:Orientation="%d"/>'
# Of a PNG, what stands in it beside the pixels, by what it says.
SAID_BY_PNGS = {
    "a raw profile": _chunk(b"tEXt", _PROFILE + b"\0" + _profile(_exif(6))),
    "a packed raw profile": _chunk(b"zTXt", _PROFILE + b"\0\0" + zlib.compress(_profile(_exif(3)))),
    "an international raw profile": _chunk(b"iTXt", _PROFILE + b"\0\0\0\0\0" + _profile(_exif(8))),
    "a profile of no digits": _chunk(b"tEXt", _PROFILE + b"\0\nexif\n 4\nzz"),
    "a profile without the tag, and XMP": _chunk(b"tEXt", _PROFILE + b"\0" + _profile(_exif(None)))
    + _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 5),
    "eXIf, and a profile of another mind": _chunk(b"tEXt", _PROFILE + b"\0" + _profile(_exif(6)))
    + _chunk(b"eXIf", _exif(2).removeprefix(b"Exif\0\0")),
    "eXIf, and XMP of another mind": _chunk(b"eXIf", _exif(7).removeprefix(b"Exif\0\0"))
    + _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 3),
    "eXIf of 9, and XMP": _chunk(b"eXIf", _exif(9).removeprefix(b"Exif\0\0"))
    + _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 3),
    "XMP": _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 6),
    "packed XMP": _chunk(b"iTXt", _XMP + b"\0\1\0\0\0" + zlib.compress(_SAYS % 4)),
    "XMP as an element": _chunk(b"iTXt", _XMP + b"\0\0\0\0\0<tiff:Orientation>8</tiff:Orientation>"),
    "two of XMP": _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 6) + _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 3),
    "XMP of 9": _chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + _SAYS % 9),
    "no word of it": _chunk(b"tEXt", b'Comment\0tiff:Orientation="6"'),
}


@pytest.mark.late
def test_pictures_are_turned_by_whatever_pillow_reads(prepare_cpp: Prepare, tmp_path: Path) -> None:
    """EXIF and XMP of PNGs in every place, before and behind the pixels; XMP and EXIF in parts of JPEGs."""
    plain = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(plain, "PNG")
    png = plain.getvalue()
    files = []
    for number, (name, said) in enumerate(SAID_BY_PNGS.items()):
        for place, at in (("before", 33), ("behind", len(png) - 12)):
            files.append(tmp_path / f"{number:02} {place} {name}.png")
            files[-1].write_bytes(png[:at] + said + png[at:])
    Image.fromarray(pixels).save(plain := io.BytesIO(), "JPEG", quality=95)
    jpeg, mark = plain.getvalue(), b"http://ns.adobe.com/xap/1.0/\0"
    parts = {
        "XMP": [mark + _SAYS % 6],
        "XMP and EXIF without the tag": [mark + _SAYS % 6, _exif(None)],
        "XMP and EXIF with it": [mark + _SAYS % 6, _exif(3)],
        "EXIF in two parts": [_exif(8)[:40], b"Exif\0\0" + _exif(8)[40:]],
    }
    for name, segments in parts.items():
        said = b"".join(b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data for data in segments)
        files.append(tmp_path / f"{name}.jpg")
        files[-1].write_bytes(jpeg[:2] + said + jpeg[2:])
    spec = spec_of(resize=32, crop=32)
    found, told = prepare_cpp(files, spec)
    assert told == ""
    straight = prepare(Image.fromarray(pixels), spec)
    turned = 0
    for file, drawn in zip(files, found, strict=True):
        expected = prepare(file, spec)
        assert drawn is not None and np.array_equal(drawn, expected), file.name
        turned += file.suffix == ".png" and not np.array_equal(expected, straight)
    assert turned >= 20  # so that files which nobody turns prove nothing


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillow_s_to_the_bit(prepare_cpp: Prepare, tmp_path: Path, interpolation: str) -> None:
    """Noise of every shape, larger and smaller than asked for: any other rounding would show in it."""
    random = np.random.default_rng(7)
    images = []
    for index in range(60):
        height, width = random.integers(1, 160, 2)
        if max(height, width) > 40 * min(height, width):
            continue
        shape = (height, width) if index % 3 == 0 else (height, width, 3)
        images.append(tmp_path / f"{index}.png")
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(images[-1])
    for resize, crop in ((32, 32), (37, 24), (97, 96)):
        spec = spec_of("RGB", resize, crop, interpolation)
        found, told = prepare_cpp(images, spec)
        assert not told
        for image, pixels in zip(images, found, strict=True):
            assert np.array_equal(pixels, prepare(image, spec)), (image.name, resize)  # type: ignore[arg-type]


@pytest.mark.slow
def test_jpegs_of_any_sampling_and_quality_are_the_same(prepare_cpp: Prepare, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    images = []
    for index in range(24):
        height, width = random.integers(17, 90, 2)
        smooth = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((int(width), int(height)))
        images.append(tmp_path / f"{index}.jpg")
        smooth.save(
            images[-1], quality=int(random.integers(20, 100)), subsampling=index % 3, progressive=index % 2 == 0
        )
    spec = spec_of()
    found, told = prepare_cpp(images, spec)
    assert not told
    for image, pixels in zip(images, found, strict=True):
        assert np.array_equal(pixels, prepare(image, spec)), image.name  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_damaged_file_is_refused_and_never_crashes(prepare_cpp: Prepare, tmp_path: Path) -> None:
    """Cut, or with flipped bytes: an answer or a sentence, and where both answer to a cut file they agree."""
    random = np.random.default_rng(5)
    spec = spec_of()
    images = []
    for source in ("rgb.png", "palette-alpha.png", "exif-6.jpg", "progressive.jpg", "rgb.ppm", "grey16.png"):
        data = (IMAGES / source).read_bytes()
        for index in range(60):
            damaged = bytearray(data)
            if index % 2:
                damaged = damaged[: int(random.integers(len(data)))]
            for place in random.integers(0, max(len(damaged), 1), 4 if index % 2 == 0 else 0):
                damaged[place] = int(random.integers(256))
            images.append(tmp_path / f"{index}-{source}")
            images[-1].write_bytes(damaged)
    found, told = prepare_cpp(images, spec)
    refused = [image for image, pixels in zip(images, found, strict=True) if pixels is None]
    assert len(told.splitlines()) == len(refused) > 100
    for image, pixels in zip(images, found, strict=True):
        cut = int(image.name.split("-")[0]) % 2 == 1
        if pixels is not None and cut:
            try:
                expected = prepare(image, spec)
            except InputError:
                continue
            assert np.array_equal(pixels, expected), image.name


@pytest.mark.slow
def test_it_answers_what_python_answers_bit_for_bit(
    classify: Path, project: Path, bundle_dir: Path, digits_test: ImageSet, tmp_path: Path
) -> None:
    """The same LibTorch, the same threads, the same pixels: the same scores to the last bit, and the same labels."""
    images = []
    for index in range(40):
        images.append(tmp_path / f"{index}.png")
        Image.fromarray(digits_test.images[index, ..., 0]).resize((50, 61)).save(images[-1])
    arguments = ["--threads", "1", "--top", "2", "--dump", tmp_path, project / "model"]
    lines = call(classify, *arguments, *images).stdout.splitlines()
    pixels = np.fromfile(tmp_path / "input.raw", np.uint8).reshape(-1, 32, 32, 1)
    scores = np.fromfile(tmp_path / "output.raw", np.float32).reshape(-1, 10)
    # A process of its own: the number of PyTorch's threads is one for the whole process.
    code = f"""
import numpy as np, vggdeploy
pixels = np.fromfile({str(tmp_path / "input.raw")!r}, np.uint8).reshape(-1, 32, 32, 1)
with vggdeploy.load({str(bundle_dir)!r}, variant="torchscript-fp32", threads=1) as engine:
    scores = np.concatenate([engine.run({{"image": image[None]}})["logits"] for image in pixels])
    np.save({str(tmp_path / "python.npy")!r}, scores)
"""
    call(sys.executable, "-c", code)
    assert np.array_equal(scores, np.load(tmp_path / "python.npy"))
    with vggdeploy.load(bundle_dir, variant="torchscript-fp32") as engine:
        spec = engine.bundle.manifest.preprocess
        for image, found, line in zip(images, pixels, lines, strict=True):
            assert np.array_equal(found, prepare(image, spec))
            best = engine.classify(image, top=1)[0]
            assert line.startswith(f"{image}: {best.label} ")


@pytest.mark.slow
def test_the_program_says_what_is_wrong(classify: Path, project: Path, digit_png: Path, tmp_path: Path) -> None:
    assert "usage:" in call(classify, code=2).stderr
    assert "takes a number above 0" in call(classify, "--top", "none", project / "model", digit_png, code=2).stderr
    assert "unknown option" in call(classify, "--fast", "1", project / "model", digit_png, code=2).stderr
    assert "model.txt cannot be read" in call(classify, tmp_path, digit_png, code=1).stderr
    done = call(classify, project / "model", tmp_path / "gone.png", digit_png, code=1)
    assert "gone.png: it cannot be read" in done.stderr
    assert f"{digit_png}: {digit_png.stem} " in done.stdout


@pytest.mark.slow
def test_the_source_for_onnx_runtime_compiles_where_its_headers_are(project: Path) -> None:
    """``CPLUS_INCLUDE_PATH`` is how headers outside the compiler's own directories are named."""
    needs("g++")
    extra = ["-isystem", "/usr/include/onnxruntime"]
    probe = subprocess.run(
        ["g++", "-E", "-x", "c++", *extra, "-"],
        input="#include <onnxruntime_cxx_api.h>",
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip("ONNX Runtime's C++ headers (Debian 13: libonnxruntime-dev) are not installed")
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-I", project / "src", *extra]
    call("g++", *flags, project / "src" / "onnxruntime.cpp")


def test_the_command_names_the_build_to_try_next(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["package", str(bundle_dir), "--target", "cpp", "-o", str(tmp_path / "p")]) == 0
    assert "-DTORCH_ROOT=" in capsys.readouterr().err
