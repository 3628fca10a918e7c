"""Images of a folder that cannot be used: all are named at once, or left out where that is asked for, and never in silence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.cli.app import run
from vggdeploy.data.folder import skipping
from vggdeploy.data.loaders import load_split, open_split
from vggdeploy.data.sources import default_preprocess
from vggdeploy.data.specs import SPLITS
from vggdeploy.errors import DataError, InputError, UsageError
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec

AVIF = b"\0\0\0\x1cftypavif" + bytes(200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 20 images, each a different grey; three images of them are bad, each in its own way."""
    root = tmp_path / "pictures"
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            Image.new("L", (36, 36), 100 * number + index).save(root / name / f"{index:02d}.png")
    (root / "cat" / "05.png").write_bytes(b"<html>404</html>")
    cut = root / "dog" / "11.png"
    cut.write_bytes(cut.read_bytes()[:40])
    (root / "dog" / "12.png").unlink()
    (root / "dog" / "12.avif").write_bytes(AVIF)
    return root


def test_all_of_them_are_named_at_once_whatever_split_they_are_in(folder: Path) -> None:
    name = f"folder:{folder}"
    spec = default_preprocess(name, 32)
    told = []
    for split in SPLITS:
        for memory in (2**30, 0):
            try:
                opened = open_split(name, split, spec, memory=memory)
                opened.batch(np.arange(len(opened)))
            except InputError as error:
                told.append(error)
    assert told
    assert len({str(error) for error in told}) == 1
    assert "3 of 40 images cannot be used" in told[0].cause
    for bad in ("cat/05.png is not an image", "dog/11.png is", "dog/12.avif is an AVIF file, which is not read here"):
        assert bad in told[0].cause
    assert "--skip-bad" in told[0].hint


def test_left_out_they_move_no_other_image(folder: Path) -> None:
    name = f"folder:{folder}"
    spec = default_preprocess(name, 32)
    seen = {}
    for split in SPLITS:
        opened = load_split(skipping(name), split, spec)
        seen[split] = {int(image[0, 0, 0]) for image in opened.images}
        assert not opened.left_out or "left out: " in opened.left_out
    assert sum(map(len, seen.values())) == 37
    for index in (5, 111, 112):  # mended, every other image is where it was
        where = folder / ("dog" if index > 99 else "cat") / f"{index % 100:02d}.png"
        Image.new("L", (36, 36), index).save(where)
    (folder / "dog" / "12.avif").unlink()
    for split in SPLITS:
        now = {int(image[0, 0, 0]) for image in load_split(name, split, spec).images}
        assert now - {5, 111, 112} == seen[split]


def test_a_class_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("L", (36, 36), index).save(tmp_path / name / f"{index}.png")
    for file in (tmp_path / "dog").iterdir():
        os.truncate(file, 10)
    name = f"folder+skip-bad:{tmp_path}"
    with pytest.raises(DataError, match=r"of the class dog no training image can be used: .*dog/"):
        load_split(name, "train", default_preprocess(name, 32))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (AVIF, "AVIF"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000"),
    ],
)
def test_a_format_that_is_not_read_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=f"is an {kind} file, which is not read here — convert it to one of JPEG"):
        prepare(data, PreprocessSpec())


def test_only_folders_have_bad_images() -> None:
    with pytest.raises(UsageError, match="digits has no bad images to skip"):
        skipping("digits")
    with pytest.raises(UsageError, match="folder\\+skip-bad: names no folder"):
        skipping("folder+skip-bad:")


@pytest.mark.late
def test_from_training_to_a_bundle_the_same_images_are_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["train", "--dataset", f"folder:{folder}", "--width", "0.05", "--hidden", "16", "--epochs", "1"]
    line += ["--batch-size", "20", "-o", str(tmp_path / "out" / "ckpt")]
    assert run(line) == 1
    assert "3 of 40 images cannot be used" in capsys.readouterr().err
    assert run([*line, "--skip-bad"]) == 0
    assert "left out: " in capsys.readouterr().err
    export = [
        "export",
        str(tmp_path / "out" / "ckpt"),
        "-o",
        str(tmp_path / "out" / "bundle"),
        "--formats",
        "onnx-fp32",
    ]
    assert run(export) == 0
