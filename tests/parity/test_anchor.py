"""The encoded files in a bundle become what they became at export, or a verdict says which did not."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from attacks.planting import rewrite_manifest
from PIL import Image

from vggdeploy.bundle import Bundle, GoldenFiles, Manifest, update_bundle
from vggdeploy.bundle.arrays import array_bytes
from vggdeploy.errors import BundleError
from vggdeploy.parity import anchor
from vggdeploy.parity.anchor import JPEG_LEVELS, NAMES, check_anchor, decoder, save_anchor
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import Verdict


def preprocess(**changes: object):
    return lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, **changes))


def golden(**changes: object):
    return lambda m: msgspec.structs.replace(m, golden=msgspec.structs.replace(m.golden, **changes))


def shift_pixels(monkeypatch: pytest.MonkeyPatch, suffix: str, levels: int) -> None:
    """A decoder that reads one pixel of each file of that kind as so many levels darker or brighter."""

    start = {".png": b"\x89PNG", ".jpg": b"\xff\xd8"}[suffix]

    def other(data: bytes, spec: PreprocessSpec) -> np.ndarray:
        found = prepare(data, spec).astype(int)
        if data.startswith(start):
            found[0, 0, 0] += levels if found[0, 0, 0] < 128 else -levels
        return found.astype(np.uint8)

    monkeypatch.setattr(anchor, "prepare", other)


def test_the_files_are_of_every_kind(bundle: Bundle) -> None:
    found, orientations = set(), set()
    for file in bundle.manifest.golden.files:
        with Image.open(bundle.path(file)) as image:
            layers = getattr(image, "layer", ())
            found.add((image.format, image.mode, layers[0][1:3] if len(layers) == 3 else ()))
            orientations.add(image.getexif().get(274, 1))
    assert orientations == set(range(1, 9))
    assert {("JPEG", "RGB", (1, 1)), ("JPEG", "RGB", (2, 2)), ("JPEG", "L", ()), ("JPEG", "CMYK", ())} <= found
    assert {("PNG", mode, ()) for mode in ("L", "LA", "RGB", "RGBA", "P", "I;16")} <= found


def test_a_bundle_that_was_just_exported_passes(bundle: Bundle) -> None:
    found = check_anchor(bundle)
    assert (found.verdict, found.reasons) == (Verdict.PASS, ())


def test_at_224_pixels_they_take_less_than_300_kilobytes(tmp_path: Path) -> None:
    class Written:
        sizes: dict[str, int] = {}

        def write(self, path: str, data: bytes) -> None:
            self.sizes[path] = len(data)

    draft = Written()
    made = save_anchor(draft, GoldenFiles(inputs={}, outputs={}, data=""), PreprocessSpec())  # type: ignore[arg-type]
    assert set(made.anchor) == set(draft.sizes)
    assert len(made.files) == len(NAMES)
    assert sum(draft.sizes.values()) < 300_000


@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "bicubic"}, {"interpolation": "lanczos"}, {"interpolation": "nearest"}, {"resize": 33},
        {"resize": 36}, {"resize": 64},
    ],
)  # fmt: skip
def test_another_filter_or_size_fails_and_names_files(own_bundle: Path, change: dict[str, object]) -> None:
    rewrite_manifest(own_bundle, preprocess(**change))
    found = check_anchor(Bundle.open(own_bundle))
    assert found.verdict is Verdict.FAIL
    assert found.reasons[0].startswith("golden/files/rgb.png: ")
    assert "values differ, by up to" in found.reasons[0]
    assert len(found.reasons) <= 6


@pytest.mark.parametrize("change", [{"mean": (0.13,)}, {"std": (0.31,)}, {"mean": (0.1307 + 1 / 255,)}])
def test_another_mean_or_std_fails_by_the_levels(own_bundle: Path, change: dict[str, object]) -> None:
    rewrite_manifest(own_bundle, preprocess(**change))
    found = check_anchor(Bundle.open(own_bundle))
    assert found.verdict is Verdict.FAIL
    assert found.reasons[0] == "normalisation makes other numbers of the same pixels"


def test_of_a_png_not_one_level_may_differ(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_pixels(monkeypatch, ".png", 1)
    found = check_anchor(bundle)
    assert found.verdict is Verdict.FAIL
    assert "1 of 1024 values differ, by up to 1" in found.reasons[0]
    assert decoder() in found.reasons[-1]


def test_a_jpeg_may_differ_a_little_where_another_decoder_reads_it_and_not_at_all_where_the_same_does(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_pixels(monkeypatch, ".jpg", JPEG_LEVELS)
    assert check_anchor(Bundle.open(own_bundle)).verdict is Verdict.FAIL
    rewrite_manifest(own_bundle, golden(decoder="Pillow 10.3.0, libjpeg-turbo 3.0.2"))
    assert check_anchor(Bundle.open(own_bundle)).verdict is Verdict.PASS
    shift_pixels(monkeypatch, ".jpg", JPEG_LEVELS + 1)
    found = check_anchor(Bundle.open(own_bundle))
    assert found.verdict is Verdict.FAIL
    assert "Pillow 10.3.0, libjpeg-turbo 3.0.2 at export" in found.reasons[-1]


def test_an_older_bundle_is_unproven_and_says_what_to_do(own_bundle: Path) -> None:
    def older(manifest: Manifest) -> Manifest:
        return golden(files=(), prepared="", normalised="", decoder="")(manifest)

    rewrite_manifest(own_bundle, older)
    found = check_anchor(Bundle.open(own_bundle))
    assert found.verdict is Verdict.UNPROVEN
    assert "export it again" in found.reasons[0]


def test_files_without_what_they_became_are_refused(own_bundle: Path) -> None:
    with pytest.raises(BundleError, match="half of its golden files"):
        rewrite_manifest(own_bundle, golden(prepared=""))


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("what", ["cut short", "no picture", "another size", "another mode", "no levels"])
def test_recorded_pixels_that_cannot_be_read_are_one_clear_error(own_bundle: Path, what: str) -> None:
    bundle = Bundle.open(own_bundle)
    prepared = bundle.path(bundle.manifest.golden.prepared)
    with update_bundle(bundle) as draft:
        target = draft.path(bundle.manifest.golden.prepared)
        with Image.open(prepared) as image:
            match what:
                case "cut short":
                    target.write_bytes(damaged(prepared.read_bytes()))
                case "no picture":
                    target.write_bytes(b"GIF89a")
                case "another size":
                    image.crop((0, 0, 32, 32)).save(target, "PNG")
                case "another mode":
                    image.convert("RGB").save(target, "PNG")
                case "no levels":
                    shutil.copyfile(prepared, target)
                    draft.write(bundle.manifest.golden.normalised, array_bytes(np.zeros((1, 3, 16, 16), np.float32)))
    with pytest.raises(BundleError) as caught:
        check_anchor(Bundle.open(own_bundle))
    assert "export the bundle again" in caught.value.hint


def test_loading_reads_none_of_these_files(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    for file in bundle.manifest.golden.anchor:
        (own_bundle / file).unlink()
    Bundle.open(own_bundle, only=("onnx-fp32",)).golden()
