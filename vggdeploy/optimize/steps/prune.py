"""Structured pruning: whole channels of convolutions, and of fc6 and fc7, are cut out of the network.

Torch-Pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning") cuts: it follows a channel through batch norm
and flattening into the layer that reads it. Which channels matter is Taylor importance (`taylor_scores`); which layers can
spare them is measured (`measure_sensitivity`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from vggdeploy.model.layers import layers_of
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import new_with_state
from vggdeploy.optimize.steps.activations import Batches
from vggdeploy.optimize.steps.widths import RATIOS, widths_of, with_widths
from vggdeploy.spec import ModelSpec

Scores = dict[str, Tensor]


@dataclass(frozen=True)
class _Unit:
    """A layer that can become narrower: its module, and where, in `_chain`, the ReLU stands that its outputs pass."""

    name: str
    layer: str
    relu: int


def _units(spec: ModelSpec) -> list[_Unit]:
    layers = [layer for layer in layers_of(spec) if layer.part != "neck"]
    names = widths_of(spec)
    found = []
    for layer in layers:
        if layer.name in names:
            relu = layer.name.replace("conv", "relu").replace("fc", "relu")
            at = next(i for i, x in enumerate(layers) if x.name == relu)
            # In `_chain` the neck stands between the two parts, also where it only flattens.
            key = f"{layer.key}.1" if layer.rank else layer.key
            found.append(_Unit(layer.name, key, at + (layer.part == "classifier")))
    return found


def _chain(model: VGG) -> list[nn.Module]:
    return [*model.features, model.neck, *model.classifier]


def taylor_scores(model: VGG, batches: Batches) -> Scores:
    """How much each channel matters to the loss: layer → ``float64 [channels]``.

    Of a channel's activations z behind the ReLU: Σ_images (Σ_positions z · ∂L/∂z)², the first-order Taylor estimate of the
    squared change of an image's loss when the channel is set to 0 (Molchanov et al. 2019, "Importance Estimation for
    Neural Network Pruning", eq. 8 with a gate on every channel). It needs no batch norm, and unlike a norm of weights it
    knows which channels are alive on real images.

    Args:
        batches: of training images.
    """
    found = {unit.name: torch.zeros(0) for unit in _units(model.spec)}
    chain, relus = _chain(model), {unit.relu: unit.name for unit in _units(model.spec)}
    sums: Scores = {}
    was_training = model.training
    model.eval()
    try:
        for images, labels in batches:
            taps: dict[str, Tensor] = {}
            x = torch.from_numpy(images).requires_grad_()
            for index, module in enumerate(chain):
                x = module(x)
                if index in relus:
                    taps[relus[index]] = x
            # Summed, not averaged: so each image's gradient is its own.
            loss = functional.cross_entropy(x, torch.from_numpy(labels), reduction="sum")
            for (name, z), slope in zip(taps.items(), torch.autograd.grad(loss, list(taps.values())), strict=True):
                each = (z.detach() * slope).flatten(2).sum(dim=2) if z.ndim == 4 else z.detach() * slope
                sums[name] = sums.get(name, 0) + each.double().square().sum(dim=0)
    finally:
        model.train(was_training)
    return {name: sums[name] for name in found}


def measure_sensitivity(
    model: VGG, scores: Mapping[str, Tensor], batches: Batches, ratios: Sequence[float] = RATIOS
) -> dict[str, dict[int, float]]:
    """How much the mean loss rises when one layer alone keeps its best channels: layer → width → rise in nats.

    A channel that is cut out is one whose activation is 0: so it is computed, without building any network.

    Args:
        batches: of held-out images.
    """
    chain, units = _chain(model), _units(model.spec)
    masks = {
        unit.name: {w: _mask(scores[unit.name], w) for w in _some_widths(len(scores[unit.name]), ratios)}
        for unit in units
    }
    at = {unit.relu: unit.name for unit in units}
    sums = {name: dict.fromkeys(widths, 0.0) for name, widths in masks.items()}
    whole, count = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels in batches:
                x, truth = torch.from_numpy(images), torch.from_numpy(labels)
                count += len(labels)
                for index, module in enumerate(chain):
                    x = module(x)
                    for width, mask in masks[at[index]].items() if index in at else ():
                        masked = x * mask.reshape(1, -1, *[1] * (x.ndim - 2))
                        sums[at[index]][width] += _loss(chain[index + 1 :], masked, truth)
                whole += functional.cross_entropy(x, truth, reduction="sum").item()
    finally:
        model.train(was_training)
    return {name: {w: (total - whole) / count for w, total in widths.items()} for name, widths in sums.items()}


def prune(model: VGG, widths: Mapping[str, int], scores: Mapping[str, Tensor]) -> VGG:
    """A network with these widths, that keeps the channels with the highest scores. ``model`` stays as it is.

    Args:
        widths: layer → channels; layers that are not named stay.
        scores: layer → importance of each of its channels; needed for the layers that become narrower.

    Raises:
        UsageError: see `vggdeploy.optimize.steps.widths.with_widths`.
    """
    spec = with_widths(model.spec, widths)
    own = widths_of(model.spec)
    # On copies, and with gradients: the graph of dependencies is traced through them.
    cut = deepcopy(model).eval().requires_grad_(True)
    example = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)
    graph = tp.DependencyGraph().build_dependency(cut, example_inputs=example)
    modules = dict(cut.named_modules())
    for unit in _units(model.spec):
        width = widths.get(unit.name, own[unit.name])
        if width == own[unit.name]:
            continue
        layer = modules[unit.layer]
        remove = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
        drop = (_mask(scores[unit.name], width) == 0).nonzero().flatten().tolist()
        graph.get_pruning_group(layer, remove, idxs=drop).prune()
    state = {key: tensor.detach() for key, tensor in cut.state_dict().items()}
    return new_with_state(spec, state, where="the pruned network").train(model.training)


def _some_widths(width: int, ratios: Sequence[float]) -> list[int]:
    return sorted({max(1, round(ratio * width)) for ratio in ratios} - {width}, reverse=True)


def _mask(scores: Tensor, width: int) -> Tensor:
    """1 for the ``width`` channels with the highest scores (of equals the first), 0 for the rest."""
    order = torch.argsort(scores, descending=True, stable=True)
    mask = torch.zeros(len(scores))
    mask[order[:width]] = 1
    return mask


def _loss(rest: Sequence[nn.Module], x: Tensor, labels: Tensor) -> float:
    for module in rest:
        x = module(x)
    return functional.cross_entropy(x, labels, reduction="sum").item()
