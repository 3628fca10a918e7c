"""The backbone gives the layers it names, and torchvision's detectors train on it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.errors import InputError, UsageError
from vggdeploy.model import Backbone, backbone
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.preprocess import normalise
from vggdeploy.spec import ModelSpec, PreprocessSpec

SPEC = ModelSpec.named("vgg16", width=0.0625, classes=5, image_size=32, hidden=8)
WITH_NORM = ModelSpec.named("vgg11_bn", width=0.0625, classes=5, image_size=32, hidden=8)


@pytest.mark.parametrize("spec", [SPEC, WITH_NORM], ids=["vgg16", "vgg11_bn"])
def test_each_level_is_the_last_relu_of_its_block(spec: ModelSpec) -> None:
    model = new_vgg(spec, seed=4).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected, x = [], images
    with torch.inference_mode():
        for module in model.features:
            if isinstance(module, torch.nn.MaxPool2d):
                expected.append(x.clone())
            x = module(x)
        found = backbone(spec, levels=(1, 2, 3, 4, 5), seed=4).eval()(images)
    assert list(found) == ["0", "1", "2", "3", "4"]
    for level, (name, features) in enumerate(found.items(), 1):
        torch.testing.assert_close(features, expected[level - 1], rtol=0, atol=0, msg=name)
        assert features.shape[2:] == (64 // 2 ** (level - 1), 96 // 2 ** (level - 1))


def test_channels_and_strides_are_told() -> None:
    several, single = backbone(SPEC), backbone(SPEC, levels=(4,))
    assert (several.out_channels, several.strides) == ([16, 32, 32], (4, 8, 16))
    assert several.return_layers == {"block3": "0", "block4": "1", "block5": "2"}
    assert (single.out_channels, single.strides) == (32, (8,))
    assert single.training


def test_what_lies_behind_the_last_level_is_left_out() -> None:
    shallow = backbone(SPEC, levels=(2,))
    convs = [m for m in shallow.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 4
    assert not any(isinstance(m, torch.nn.Linear) for m in shallow.modules())


@pytest.mark.parametrize("size", [(16, 16), (47, 201), (17, 33)])
def test_any_size_from_its_stride_up_fits(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        found = backbone(SPEC)(torch.zeros(1, 3, *size))
    assert [tuple(f.shape[2:]) for f in found.values()] == [tuple(n // s for n in size) for s in (4, 8, 16)]


def test_an_image_below_the_stride_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="15 × 40 pixels"):
        backbone(SPEC)(torch.zeros(1, 3, 40, 15))


@pytest.mark.parametrize("levels", [(), (0, 1), (3, 6), (4, 3), (3, 3)])
def test_levels_that_there_are_not_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="levels"):
        backbone(SPEC, levels=levels)


def test_frozen_blocks_neither_learn_nor_move_their_batch_norms() -> None:
    network = backbone(WITH_NORM, levels=(3,), frozen=2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.randn(4, 3, 32, 32))["0"].square().sum().backward()
    optimiser.step()
    moved = {key.split(".")[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"block3"}
    with pytest.raises(UsageError, match="frozen"):
        backbone(WITH_NORM, levels=(3,), frozen=4)


def test_a_checkpoints_weights_are_taken_and_its_file_never_changes(tmp_path: Path) -> None:
    about = Checkpoint(spec=SPEC, preprocess=PreprocessSpec(resize=32, crop=32), labels=())
    save_checkpoint(tmp_path / "ckpt", new_vgg(SPEC, seed=9), about)
    data = (tmp_path / "ckpt/model.safetensors").read_bytes()
    network = backbone(tmp_path / "ckpt", levels=(1,))
    torch.testing.assert_close(network.block1[0].weight, new_vgg(SPEC, seed=9).features[0].weight, rtol=0, atol=0)
    with torch.no_grad():
        network.block1[0].weight.add_(1)
    assert (tmp_path / "ckpt/model.safetensors").read_bytes() == data


def test_a_model_is_copied_not_shared() -> None:
    model = new_vgg(SPEC)
    network = backbone(model, levels=(1,))
    assert network.block1[0].weight is not model.features[0].weight
    assert torch.equal(network.block1[0].weight, model.features[0].weight)


def test_a_feature_pyramid_takes_its_maps() -> None:
    network = backbone(SPEC)
    pyramid = FeaturePyramidNetwork(network.out_channels, out_channels=8)
    found = pyramid(network(torch.zeros(1, 3, 64, 64)))
    assert [tuple(f.shape[1:]) for f in found.values()] == [(8, 16, 16), (8, 8, 8), (8, 4, 4)]


def with_pyramid(network: Backbone) -> BackboneWithFPN:
    return BackboneWithFPN(network, network.return_layers, network.out_channels, out_channels=16)


def test_torchvisions_wrapper_gives_what_the_pyramid_gives() -> None:
    network = backbone(SPEC).eval()
    wrapped = with_pyramid(network).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = wrapped.fpn(network(images))
        found = wrapped(images)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("levels", [(3, 4, 5), (5,)], ids=["pyramid", "one level"])
def test_faster_rcnn_learns_from_random_boxes(levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = backbone(SPEC, levels=levels, frozen=1)
    whole = network if len(levels) == 1 else with_pyramid(network)
    # The wrapper adds a map, pooled from the last: one set of anchors for each.
    maps = len(levels) + (len(levels) > 1)
    anchors = AnchorGenerator(sizes=((16, 32),) * maps, aspect_ratios=((0.5, 1.0, 2.0),) * maps)
    detector = FasterRCNN(
        whole, num_classes=3, min_size=64, max_size=96, rpn_anchor_generator=anchors,
        box_detections_per_img=5, rpn_post_nms_top_n_train=50,
    ).train()  # fmt: skip
    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    targets = [{"boxes": boxes(4), "labels": torch.tensor([1, 2, 1, 2])} for _ in images]
    learning = {k: p for k, p in detector.named_parameters() if p.requires_grad}
    before = {k: p.detach().clone() for k, p in learning.items()}
    optimiser = torch.optim.SGD(learning.values(), lr=0.01)
    loss = sum(detector(images, targets).values())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    assert math.isfinite(loss.item())
    learned = [k for k, p in learning.items() if "block" in k and not torch.equal(p, before[k])]
    assert any("block3" in k for k in learned)
    assert not any("block1" in k for k in learning)
    with torch.inference_mode():
        answers = detector.eval()(images)
    assert [set(a) for a in answers] == [{"boxes", "labels", "scores"}] * 2


def boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 30
    return torch.cat([corner, corner + 10 + torch.rand(count, 2) * 20], dim=1)


def test_a_bundle_exports_the_same_levels(checkpoint: Path, tmp_path: Path) -> None:
    from vggdeploy.export.bundle import ExportOptions, export_bundle
    from vggdeploy.runtime import open_session

    names = ["relu3_2", "relu4_2", "relu5_2"]  # a VGG-11's last of each block
    export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(outputs=names, formats=["onnx-fp32"], samples=50))
    bundle = Bundle.open(tmp_path / "bundle")
    images = bundle.golden()[0]["image"]
    with open_session(bundle, bundle.manifest.variant("onnx-fp32")) as session:
        found = session.run({"image": images})
    network = backbone(tmp_path / "bundle/checkpoint").eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(normalise(images, bundle.manifest.preprocess)))
    for name, features in zip(names, expected.values(), strict=True):
        np.testing.assert_allclose(found[name], features.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_package_exports_it_and_imports_no_torch_before() -> None:
    code = "import sys, vggdeploy.model as m; assert 'backbone' in dir(m) + m.__all__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    assert callable(sys.modules["vggdeploy.model"].backbone)
    with pytest.raises(ImportError):
        from vggdeploy.model import bakcbone  # noqa: F401


def test_the_model_is_loaded_as_it_was_saved(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    network = backbone(checkpoint, levels=(5,)).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(images)["0"], model.features[:-1](images), rtol=0, atol=0)
