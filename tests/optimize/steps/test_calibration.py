"""The images that INT8 is calibrated on: how many there have to be, of how many classes, and which of them cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.data import loaders
from vggdeploy.data.loaders import ImageSet
from vggdeploy.errors import DataError
from vggdeploy.optimize.steps.calibration import load_calibration

pytestmark = pytest.mark.late


def make_folder(root: Path, images: ImageSet, counts: dict[str, int]) -> Path:
    """Digits in colour on 48 × 30 pixels, so many of each class; noise would calibrate some networks too badly."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        known = np.flatnonzero(images.labels == int(name))
        for index in range(count):
            digit = Image.fromarray(np.asarray(images.images[known[index % len(known)], ..., 0]))
            ImageOps.pad(digit, (48, 30)).convert("RGB").save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({str(n): 3 for n in range(10)}, "to calibrate on"),
        ({str(n): 60 if n == 4 else 1 for n in range(10)}, ""),
    ],
)
def test_a_folder_has_to_hold_enough(
    bundle_dir: Path,
    tmp_path: Path,
    digits_test: ImageSet,
    counts: dict[str, int],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_folder(tmp_path / "data" / "train", digits_test, counts)
    make_folder(tmp_path / "data" / "validation", digits_test, dict.fromkeys(counts, 2))
    make_folder(tmp_path / "data" / "test", digits_test, dict.fromkeys(counts, 2))
    code = run(
        ["optimize", str(bundle_dir), "--step", "int8", "-o", str(tmp_path / "b"), "--int8-for", "cpu",
         "--calibration-data", f"folder:{data.parent}"]
    )  # fmt: skip
    # Images of another size and mode are prepared as the model wants them: what is refused is their number.
    told = capsys.readouterr().err
    assert code == (1 if said else 0), told
    assert said in told


def test_images_of_one_class_are_refused(bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loaders.load_split
    monkeypatch.setattr(
        loaders, "load_split", lambda *a, **k: replace(s := real(*a, **k), labels=np.zeros_like(s.labels))
    )
    with pytest.raises(DataError, match="all 64 calibration images are 0"):
        load_calibration("", Bundle.open(bundle_dir).manifest, images=64, data_dir=None)


def test_an_unreadable_image_is_named(
    bundle_dir: Path, tmp_path: Path, digits_test: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {str(n): 6 for n in range(10)}
    for part in ("train", "validation", "test"):
        make_folder(tmp_path / "data" / part, digits_test, counts)
    (tmp_path / "data" / "train" / "3" / "5.png").write_bytes(b"\x89PNG no picture")
    command = ["optimize", str(bundle_dir), "--step", "int8", "-o", str(tmp_path / "b")]
    assert run([*command, "--calibration-data", f"folder:{tmp_path / 'data'}"]) == 1
    assert "5.png" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
