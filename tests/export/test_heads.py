"""Fine-tuned heads and networks without one, from the state dict to every exported file: as the original module computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model.foreign_nets import Appended, Pooled, filled, grown, nested, torchvision_net, with_head
from numpy.typing import NDArray
from torch import nn

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.export.source import SourceOptions, import_weights
from vggdeploy.spec import PreprocessSpec
from vggdeploy.verify.samples import synthetic_images

FORMATS = "onnx-fp32,torchscript-fp32"
SIZE = 64
PREPROCESS = PreprocessSpec(resize=SIZE, crop=SIZE)
MAP = 64 * 49

NETS: dict[str, tuple[Callable[[], nn.Module], str | None, int]] = {
    "two layers": (lambda: with_head(nn.Linear(MAP, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 7)), None, 7),
    "nested": (nested, None, 3),
    "pooled": (lambda: filled(Pooled(nn.Linear(64, 7))), "avg,none", 7),
    "pooled by maximum": (
        lambda: filled(Pooled(nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 4)), pool="max")),
        "max,relu,none", 4,
    ),
    "appended": (lambda: filled(Appended(relu=True)), "relu,relu,relu,none", 3),
    "appended without ReLU": (grown, "relu,relu,none,none", 3),
}  # fmt: skip


def normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    return ((pixels - mean) / std).float()


def distance(found: NDArray[np.float32], expected: torch.Tensor) -> float:
    """max |Δ| in units of the largest value."""
    assert found.shape == tuple(expected.shape)
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


def exported(net: nn.Module, root: Path, *options: str, formats: str = FORMATS) -> Path:
    torch.save(net.state_dict(), root / "net.pth")
    size = ["--image-size", str(SIZE), "--resize", str(SIZE)]
    line = ["export", str(root / "net.pth"), "-o", str(root / "bundle"), "--formats", formats, *size]
    assert run([*line, *options]) == 0
    return root / "bundle"


@pytest.mark.parametrize("kind", ["two layers", "pooled"])
def test_onnx_and_torchscript_agree_with_the_original_module(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path, FORMATS)


@pytest.mark.late
@pytest.mark.parametrize("kind", NETS)
def test_every_file_agrees_with_the_original_module(kind: str, tmp_path: Path) -> None:
    path = check(kind, tmp_path, f"{FORMATS},onnx-fp16,openvino-fp32")
    assert run(["verify", str(path), "--variant", "onnx-fp32", "--layers", "--samples", "4"]) == 0


def check(kind: str, tmp_path: Path, formats: str) -> Path:
    make, head, classes = NETS[kind]
    net = make()
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg"[:classes]))
    flag = ["--head", head] if head else []
    path = exported(net, tmp_path, "--labels", str(tmp_path / "labels.txt"), *flag, formats=formats)
    images = synthetic_images(4, PREPROCESS, seed=1)
    with torch.inference_mode():
        expected = net(normalised(images))
    for variant in Bundle.open(path).manifest.variants:
        with vggdeploy.load(path, variant=variant.name) as engine:
            logits = engine.run({"image": images})["logits"]
            assert distance(logits, expected) < (1e-5 if variant.precision == "fp32" else 2e-2), variant.name
            answers = engine.classify(images, top=1)
        assert [a[0].index for a in answers] == expected.argmax(1).tolist()
    assert run(["verify", str(path), "--samples", "16"]) == 0
    return path


def test_a_network_without_head_is_embedded_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = torchvision_net()
    path = exported(net.features, tmp_path)  # type: ignore[arg-type]
    manifest = Bundle.open(path).manifest
    assert [o.name for o in manifest.outputs] == ["pool5"]
    images = synthetic_images(3, PREPROCESS, seed=2)
    with torch.inference_mode():
        expected = net.features(normalised(images))  # type: ignore[operator]
    for variant in manifest.variants:
        with vggdeploy.load(path, variant=variant.name) as engine:
            limit = 1e-5 if variant.precision == "fp32" else 2e-2
            assert distance(engine.run({"image": images})["pool5"], expected) < limit
            assert distance(engine.embed(images), expected.mean((2, 3))) < limit
            with pytest.raises(UsageError, match="no class scores") as caught:
                engine.classify(images)
            assert "--outputs" not in caught.value.hint  # no export would give it any
    assert run(["verify", str(path), "--samples", "16"]) == 0
    assert "vggdeploy embed" in capsys.readouterr().err


@pytest.mark.late
def test_a_network_without_head_gives_the_maps_that_are_asked_for(tmp_path: Path) -> None:
    net = torchvision_net(batch_norm=True)
    flags = ("--outputs", "relu5_2,pool4,relu3_2", "--samples", "4")
    path = exported(net.features, tmp_path, *flags, formats="onnx-fp32")  # type: ignore[arg-type]
    images = synthetic_images(2, PREPROCESS, seed=2)
    features = list(net.features.children())  # type: ignore[union-attr]
    with torch.inference_mode():
        expected, x = {}, normalised(images)
        for index, module in enumerate(features):
            x = module(x)
            name = {27: "relu5_2", 21: "pool4", 13: "relu3_2"}.get(index)
            expected |= {name: x.clone()} if name else {}
    with vggdeploy.load(path, variant="onnx-fp32") as engine:
        found = engine.run({"image": images})
    for name, values in expected.items():
        assert distance(found[name], values) < 1e-5, name


def test_the_flag_that_a_refusal_names_is_the_one_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(filled(Pooled(nn.Linear(64, 7))).state_dict(), tmp_path / "net.pth")
    line = ["export", str(tmp_path / "net.pth"), "-o", str(tmp_path / "b"), "--formats", "onnx-fp32", "--samples", "4"]
    assert run(line) == 1
    assert "--image-size 224 --head avg,none" in capsys.readouterr().err
    assert run([*line, "--image-size", "224", "--head", "avg,none"]) == 0
    assert "ReduceMean" in (tmp_path / "b" / "variants" / "onnx-fp32" / "model.onnx").read_bytes().decode("latin-1")


def test_a_checkpoint_with_such_a_head_and_its_steps(tmp_path: Path) -> None:
    """It is read again as it was written: pruning, low rank and the summary know the head."""
    from vggdeploy.model.layers import summarise
    from vggdeploy.model.weights import load_model
    from vggdeploy.optimize.steps.low_rank import factorise
    from vggdeploy.optimize.steps.prune import prune, taylor_scores

    net = filled(Pooled(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 7))))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    about = SourceOptions(head="avg,relu,none", image_size=SIZE)
    import_weights(str(tmp_path / "net.pth"), tmp_path / "checkpoint", about)
    model = load_model(tmp_path / "checkpoint")
    rows = summarise(model.spec).layers
    assert [(r.name, r.shape) for r in rows[-5:]] == [
        ("avgpool", (64,)), ("fc6", (16,)), ("relu6", (16,)), ("drop6", (16,)), ("fc7", (7,)),
    ]  # fmt: skip
    x = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = factorise(model, {"fc6": 16})(x)
        assert torch.allclose(whole, model(x), rtol=1e-4, atol=1e-4)
    scores = taylor_scores(model, [(x.numpy(), np.zeros(4, np.int64))])
    small = prune(model, {"fc6": 8, "conv5_2": 32}, scores)
    assert (small.spec.hidden, small.spec.flat_features) == ((8,), 32)
    with torch.inference_mode():
        assert small(x).shape == (4, 7)
