"""The perceptual distance: its formula, LPIPS number by number, and what is refused because it would mislead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vggdeploy
from vggdeploy.cli.app import run
from vggdeploy.engine.engine import Engine
from vggdeploy.engine.perceptual import perceptual_distance
from vggdeploy.errors import InputError, MissingDependencyError, UsageError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.outputs import LPIPS_LAYERS
from vggdeploy.preprocess import prepare_batch
from vggdeploy.system.optional import installed

MAPS = ("relu1_1", "relu3_2", "logits")


@pytest.fixture(scope="module")
def maps_dir(checkpoint: Path, once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    options = ExportOptions(formats=["onnx-fp32"], outputs=MAPS, samples=20)
    return once("maps/bundle", lambda path: export_bundle(checkpoint, path, options))


@pytest.fixture(scope="module")
def engine(maps_dir: Path) -> Engine:
    return vggdeploy.load(maps_dir)


def noise(count: int, size: int = 32, channels: int = 1, seed: int = 0) -> list[np.ndarray]:
    shape = (count, size, size, channels) if channels > 1 else (count, size, size)
    return list(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_it_is_the_formula_summed_position_by_position(engine: Engine) -> None:
    images = noise(3)
    outputs = engine.run_prepared(prepare_batch(images, engine.bundle.manifest.preprocess))
    weights = {name: np.random.default_rng(1).random(outputs[name].shape[1]) for name in MAPS[:2]}
    expected = []
    for other in (1, 2):
        total = 0.0
        for name, weight in weights.items():
            _, channels, height, width = outputs[name].shape
            for y in range(height):
                for x in range(width):
                    a, b = (outputs[name][i, :, y, x].astype(float) for i in (0, other))
                    a, b = a / (np.linalg.norm(a) + 1e-10), b / (np.linalg.norm(b) + 1e-10)
                    total += sum(weight[c] * (a[c] - b[c]) ** 2 for c in range(channels)) / (height * width)
        expected.append(total)
    np.testing.assert_allclose(perceptual_distance(engine, images[0], images[1:], heads=weights), expected, rtol=1e-9)


def test_an_image_is_at_distance_0_from_itself_and_both_directions_are_the_same(engine: Engine) -> None:
    a, b = noise(2)
    there, same = perceptual_distance(engine, a, [b, a])
    assert same == 0
    assert there > 0
    assert perceptual_distance(engine, b, [a])[0] == pytest.approx(there, rel=1e-12)


def test_the_order_and_the_number_of_others_change_no_distance(engine: Engine) -> None:
    first, *others = noise(11)
    all_at_once = perceptual_distance(engine, first, iter(others))
    one_by_one = [perceptual_distance(engine, first, [other])[0] for other in others]
    np.testing.assert_allclose(all_at_once, one_by_one, rtol=1e-4)


def test_more_noise_is_further_away(engine: Engine, maps_dir: Path) -> None:
    image = np.full((32, 32), 128, np.uint8)
    spots = np.random.default_rng(2).integers(-20, 21, (32, 32))
    noisy = [np.uint8(image + strength * spots) for strength in (1, 3, 6)]
    found = perceptual_distance(engine, image, noisy)
    assert list(found) == sorted(found) and found[0] > 0


@pytest.mark.parametrize(
    ("heads", "cause"),
    [
        ({"relu1_2": np.ones(8)}, "the heads are for relu1_2"),
        ({"relu1_1": np.ones(9)}, "has 8 channels"),
        ({"relu1_1": np.full(8, -1.0)}, "below 0"),
        ({"relu1_1": np.full(8, np.nan)}, "below 0, or that are no numbers"),
        ({}, "no layer"),
    ],
)
def test_heads_of_another_network_are_refused(engine: Engine, heads: dict[str, np.ndarray], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        perceptual_distance(engine, noise(1)[0], noise(1), heads=heads)


def test_a_bundle_without_maps_and_a_lonely_image_are_refused(engine: Engine, bundle_dir: Path) -> None:
    with vggdeploy.load(bundle_dir) as classifier, pytest.raises(UsageError, match="no feature maps"):
        perceptual_distance(classifier, noise(1)[0], noise(1))
    with pytest.raises(InputError, match="between two"):
        perceptual_distance(engine, noise(1)[0], [])


def test_the_verb_sorts_and_says_what_it_compared(
    maps_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number, image in enumerate(noise(3)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    first, *others = [str(tmp_path / f"{number}.png") for number in range(3)]
    assert run(["distance", str(maps_dir), first, *others, first, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = [row["distance"] for row in found["others"]]
    assert found["others"][0] == {"image": first, "distance": 0.0}
    assert values == sorted(values) and len(values) == 3
    assert run(["distance", str(maps_dir), first, str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "0.0000" in told.out.splitlines()[0] and "32 × 32 pixels" in told.err


def test_lpips_of_another_network_is_refused_and_not_called_lpips(
    maps_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    image = str(tmp_path / "a.png")
    assert run(["distance", str(maps_dir), image, image, "--heads", "lpips"]) == 2
    assert "fitted to VGG-16 without batch norm" in " ".join(capsys.readouterr().err.split())
    assert run(["distance", str(maps_dir), image, image, "--heads", "alex"]) == 2


def test_heads_that_are_not_installed_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from vggdeploy.model.foreign import lpips_heads

    monkeypatch.setattr(lpips_heads, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        lpips_heads.lpips_heads()
    assert caught.value.hint == "pip install lpips"


@pytest.mark.late
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision", "ignore::FutureWarning")  # of how lpips calls them
def test_with_its_heads_it_is_the_public_lpips_number_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from PIL import Image

    from vggdeploy.bundle.checkpoint import Checkpoint
    from vggdeploy.model.vgg import new_vgg
    from vggdeploy.model.weights import save_checkpoint
    from vggdeploy.spec import ModelSpec, PreprocessSpec

    assert installed("lpips"), "pip install 'vggdeploy[test]'"
    import lpips

    torch.manual_seed(0)
    spec = ModelSpec.named("vgg16", image_size=64, hidden=8, classes=2)
    model = new_vgg(spec)
    checkpoint = tmp_path / "checkpoint"
    preprocess = PreprocessSpec(resize=64, crop=64)
    save_checkpoint(checkpoint, model, Checkpoint(spec=spec, preprocess=preprocess, labels=("a", "b")))
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", ExportOptions(formats=["onnx-fp32"], outputs=LPIPS_LAYERS, samples=4)
    ).root
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    convs = [part for part in model.modules() if isinstance(part, torch.nn.Conv2d)]
    places = [part for part in theirs.net.modules() if isinstance(part, torch.nn.Conv2d)]
    assert len(convs) == len(places) == 13
    for ours, place in zip(convs, places, strict=True):
        place.load_state_dict(ours.state_dict())

    images = noise(4, 64, 3)
    images[1] = np.uint8(images[0] * 0.9)
    images[2] = np.uint8(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3))
    tensors = [torch.from_numpy(i).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in images]
    with torch.inference_mode():
        expected = [float(theirs(tensors[0], other)) for other in tensors[1:]]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    assert run(["distance", str(bundle), *files, "--heads", "lpips", "--json"]) == 0
    rows = {row["image"]: row["distance"] for row in json.loads(capsys.readouterr().out)["others"]}
    np.testing.assert_allclose([rows[file] for file in files[1:]], expected, rtol=1e-4)
    assert max(expected) > 10 * min(expected) > 0  # not all alike, so a wrong formula would show
