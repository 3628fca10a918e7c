"""Grad-CAM: by known answers, and by what happens to the answer when the places that it names are covered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.engine.engine import load
from vggdeploy.evaluate.grad_cam import GradCam, heat_picture
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.preprocess import normalise
from vggdeploy.spec import ModelSpec, PreprocessSpec


def noise(count: int, size: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network whose head is a mean over each map and one linear layer."""
    home = tmp_path_factory.mktemp("pooled")
    spec = ModelSpec(
        arch="custom", blocks=((4,), (6, 5)), hidden=(), head_pool="avg", classes=3, image_size=16, in_channels=3
    )
    checkpoint = Checkpoint(spec=spec, preprocess=PreprocessSpec(resize=16, crop=16), labels=("a", "b", "c"))
    save_checkpoint(home / "checkpoint", new_vgg(spec), checkpoint)
    options = ExportOptions(formats=["onnx-fp32"], samples=4)
    return export_bundle(home / "checkpoint", home / "bundle", options)


def test_with_a_pooled_head_it_is_the_older_cam_of_the_linear_weights(pooled: Bundle) -> None:
    """Of a mean of pooled maxima the slope of a map is its weight at each maximum, so α is proportional to the weight."""
    pixels = noise(2, 16, 3)
    model = load_model(pooled.root / "checkpoint")
    images = torch.from_numpy(normalise(pixels, pooled.manifest.preprocess))
    with torch.no_grad():
        maps = model.features[:-1](images)  # before the last pool
        weights = next(part for part in model.classifier if isinstance(part, torch.nn.Linear)).weight
        expected = torch.einsum("nchw,nc->nhw", maps, weights[[2, 0]]).clamp(min=0)
    expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    found = GradCam(pooled)(pixels, [2, 0])
    assert found.shape == (2, 8, 8) and found.max() == 1
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_slopes_are_those_of_finite_differences(bundle: Bundle, digits_test: ImageSet) -> None:
    """Through the two hidden layers of the head: each channel is raised everywhere by a little, and the score watched."""
    pixels, index = digits_test.images[:1], int(digits_test.labels[0])
    cam = GradCam(bundle)
    model = load_model(bundle.root / "checkpoint").double()
    split = cam._split
    image = torch.from_numpy(normalise(pixels, bundle.manifest.preprocess)).double()

    def score(maps: torch.Tensor) -> float:
        return float(model.classifier(model.neck(model.features[split:](maps)))[0, index])

    with torch.no_grad():
        maps = model.features[:split](image)
        step = 1e-6
        slopes = []
        for channel in range(maps.shape[1]):
            raised = maps.clone()
            raised[:, channel] += step
            slopes.append((score(raised) - score(maps)) / step / maps[0, 0].numel())
        heat = torch.einsum("chw,c->hw", maps[0], torch.tensor(slopes).double()).clamp(min=0)
    np.testing.assert_allclose(cam(pixels, [index])[0], (heat / heat.max()).numpy(), atol=1e-3)


def test_another_class_has_another_map(pooled: Bundle) -> None:
    pixels = np.repeat(noise(1, 16, 3), 3, axis=0)
    maps = GradCam(pooled)(pixels, [0, 1, 2])
    assert not np.allclose(maps[0], maps[1]) or not np.allclose(maps[1], maps[2])


def test_the_picture_shows_the_image_and_is_brightest_where_the_heat_is() -> None:
    heat = np.zeros((2, 2), np.float32)
    heat[0, 1] = 1
    with Image.open(__import__("io").BytesIO(heat_picture(np.full((32, 32, 1), 128, np.uint8), heat))) as picture:
        found = np.asarray(picture).astype(int)
    assert found.shape == (224, 456, 3)
    assert (found[:, :224] == 128).all()
    half = found[:, 232:]
    assert half[20, 200, 0] > half[200, 20, 0] and half[20, 200, 2] < half[200, 20, 2]  # yellow beside dark blue


def test_predict_writes_a_picture_an_image_and_names_it(
    bundle_dir: Path, digits_test: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):  # one name twice
        (tmp_path / folder).mkdir()
        Image.fromarray(digits_test.images[0][..., 0]).save(tmp_path / folder / "digit.png")
    files = [str(tmp_path / folder / "digit.png") for folder in ("a", "b")]
    assert run(["predict", str(bundle_dir), *files, "--explain", str(tmp_path / "why"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert len({row["explanation"] for row in rows}) == 2
    for row in rows:
        with Image.open(row["explanation"]) as picture:
            assert picture.size == (456, 224)
    assert sorted(p.name for p in (tmp_path / "why").iterdir()) == ["1-digit.png", "2-digit.png"]


def test_a_bundle_without_its_reference_says_so(
    bundle_dir: Path, digits_test: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim = tmp_path / "slim"
    assert run(["package", str(bundle_dir), "--target", "slim", "-o", str(slim)]) == 0
    Image.fromarray(digits_test.images[0][..., 0]).save(tmp_path / "digit.png")
    with load(slim) as engine:
        assert engine.classify(tmp_path / "digit.png")
    capsys.readouterr()
    code = run(["predict", str(slim), str(tmp_path / "digit.png"), "--explain", str(tmp_path / "why")])
    told = capsys.readouterr().err
    assert code in (1, 2) and "Traceback" not in told and "reference" in told
    assert not (tmp_path / "why").exists()
