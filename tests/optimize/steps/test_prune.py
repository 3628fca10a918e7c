"""Channels are cut where they matter least, and what is left computes what it did without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from vggdeploy.errors import UsageError
from vggdeploy.model.layers import layers_of
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.optimize.steps.activations import recalibrate
from vggdeploy.optimize.steps.prune import measure_sensitivity, prune, taylor_scores
from vggdeploy.optimize.steps.widths import macs_of, widths_of
from vggdeploy.spec import CUSTOM, ModelSpec

# 24 px and three blocks: fc6 reads 3 × 3 positions of each channel.
SPEC = ModelSpec(
    arch=CUSTOM, blocks=((6,), (8, 10), (12,)), in_channels=1, classes=5, image_size=24, hidden=(14, 9)
)  # fmt: skip
NETWORKS = [
    SPEC,
    msgspec.structs.replace(SPEC, batch_norm=True),
    msgspec.structs.replace(SPEC, batch_norm=True, ranks=(5, 4), conv_ranks=((2,), (0, 7), (9,))),
]


def lively(spec: ModelSpec, seed: int = 0) -> VGG:
    """Random weights, biases and batch norms, so that nothing is 0 or 1 by chance."""
    model, random = new_vgg(spec, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.3)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.copy_(torch.rand(module.bias.shape, generator=random) - 0.4)
    return model.eval()


def batches(count: int = 48, size: int = 16) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    random = np.random.default_rng(0)
    images = random.normal(size=(count, 1, 24, 24)).astype(np.float32)
    labels = random.integers(0, 5, count)
    return ((images[i : i + size], labels[i : i + size]) for i in range(0, count, size))


def kill(model: VGG, name: str, channels: list[int]) -> None:
    """Make channels of a layer answer 0 whatever they see."""
    layers = layers_of(model.spec)
    index = next(i for i, x in enumerate(layers) if x.name == name)
    with torch.no_grad():
        for layer in layers[index : index + 2]:
            if layer.kind in ("conv", "batch_norm", "linear"):
                module: Any = model.get_submodule(layer.key)
                for tensor in (module[1] if layer.rank else module).parameters():
                    tensor[channels] = 0


@pytest.mark.parametrize("spec", NETWORKS, ids=["plain", "batch norm", "low rank"])
def test_cutting_dead_channels_changes_no_logit(spec: ModelSpec) -> None:
    model = lively(spec)
    dead = {"conv1_1": [0, 4], "conv2_1": [1], "conv2_2": [0, 9], "conv3_1": [2, 3, 11], "fc6": [0, 13], "fc7": [8]}
    for name, channels in dead.items():
        kill(model, name, channels)
    scores = taylor_scores(model, batches())
    own = widths_of(spec)
    for name, channels in dead.items():  # dead is what the scores find, and of them only
        assert set((scores[name] == 0).nonzero().flatten().tolist()) >= set(channels)
    scores = {name: torch.ones(width) for name, width in own.items()}
    for name, channels in dead.items():
        scores[name][channels] = 0
    cut = prune(model, {name: own[name] - len(channels) for name, channels in dead.items()}, scores)
    assert cut.spec.blocks == ((4,), (7, 8), (9,))
    assert cut.spec.hidden == (12, 8)
    assert (cut.spec.arch, cut.spec.ranks, cut.spec.batch_norm) == (CUSTOM, spec.ranks, spec.batch_norm)
    assert macs_of(cut.spec) < macs_of(spec)
    images = torch.rand(7, 1, 24, 24)
    with torch.inference_mode():
        torch.testing.assert_close(cut(images), model(images), rtol=1e-5, atol=1e-6)
    assert model.spec == spec  # what was given is as it was
    assert model(images).shape == (7, 5)


@pytest.mark.parametrize("spec", NETWORKS[:2], ids=["plain", "batch norm"])
def test_sensitivity_is_the_loss_of_the_network_that_would_be_cut(spec: ModelSpec) -> None:
    model = lively(spec)
    scores = taylor_scores(model, batches())
    found = measure_sensitivity(model, scores, batches(), ratios=(0.5,))
    assert found.keys() == widths_of(spec).keys()

    def loss(network: VGG) -> float:
        with torch.inference_mode():
            return (
                sum(
                    functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y), reduction="sum").item()
                    for x, y in batches()
                )
                / 48
            )

    for name in ("conv1_1", "conv2_2", "conv3_1", "fc6", "fc7"):
        ((width, rise),) = found[name].items()
        assert width == widths_of(spec)[name] // 2
        assert rise == pytest.approx(loss(prune(model, {name: width}, scores)) - loss(model), abs=1e-5)


def test_the_score_of_a_channel_is_the_squared_slope_of_its_gate() -> None:
    """Against finite differences: each channel is scaled by 1 ± ε, image by image."""
    model = lively(SPEC).double()
    chain = [*model.features, nn.Flatten(), *model.classifier]
    images, labels = next(batches(4, 4))
    images = images.astype(np.float64)
    scores = taylor_scores(model, [(images, labels)])

    def loss(relu: int, channel: int, scale: float) -> torch.Tensor:
        x = torch.from_numpy(images)
        for index, module in enumerate(chain):
            x = module(x)
            if index == relu:
                x = x.clone()
                x[:, channel] *= scale
        return functional.cross_entropy(x, torch.from_numpy(labels), reduction="none")

    with torch.inference_mode():
        for name, relu, channel in (("conv1_1", 1, 3), ("conv2_2", 6, 7), ("conv3_1", 9, 0), ("fc6", 13, 5)):
            slope = (loss(relu, channel, 1 + 1e-5) - loss(relu, channel, 1 - 1e-5)) / 2e-5
            assert scores[name][channel].item() == pytest.approx(slope.square().sum().item(), rel=1e-4, abs=1e-12)


def test_batch_norms_are_measured_anew() -> None:
    model = lively(NETWORKS[1])
    recalibrate(model, batches())
    with torch.inference_mode():
        whole = model.features[0](torch.from_numpy(np.concatenate([x for x, _ in batches()])))
    norm = model.features[1]
    torch.testing.assert_close(norm.running_mean, whole.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, whole.var(dim=(0, 2, 3)), rtol=0.05, atol=1e-3)  # per batch, averaged
    assert (norm.momentum, norm.training) == (0.1, False)


def test_the_best_channels_stay_in_their_order() -> None:
    model = lively(SPEC)
    scores = {name: torch.arange(width).flip(0) for name, width in widths_of(SPEC).items()}
    scores["conv1_1"] = torch.tensor([1.0, 5, 2, 9, 5, 0])
    cut = prune(model, {"conv1_1": 3}, scores)
    kept = model.features[0].weight[[1, 3, 4]]
    torch.testing.assert_close(cut.features[0].weight, kept, rtol=0, atol=0)
    assert prune(model, {"conv1_1": 6}, {}).spec == SPEC


@pytest.mark.parametrize(
    ("widths", "cause"),
    [
        ({"conv1_2": 3}, "layer 'conv1_2' is unknown"),
        ({"fc8": 3}, "layer 'fc8' is unknown"),
        ({"conv1_1": 0}, "conv1_1 cannot keep 0 channels"),
        ({"conv1_1": 7}, "conv1_1 cannot keep 7 channels — it has 6"),
    ],
)
def test_widths_that_no_layer_can_have_are_refused(widths: dict[str, int], cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        prune(lively(SPEC), widths, {name: torch.ones(w) for name, w in widths_of(SPEC).items()})
    assert cause in str(caught.value)
