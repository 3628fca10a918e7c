"""Parameters in groups: what decays and what does not, features and head; and which of them are frozen when."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from vggdeploy.model.layers import layers_of
from vggdeploy.model.vgg import VGG
from vggdeploy.spec import ModelSpec
from vggdeploy.train.muon import Muon
from vggdeploy.train.recipe import ALL_FEATURES, NO_FREEZE, Recipe

BETA2 = 0.999  # of AdamW (Kingma & Ba 2015); β₁ is the recipe's momentum


def new_optimizer(recipe: Recipe, model: VGG) -> Optimizer:
    """Fused SGD or AdamW, or Muon, over at most four groups: the weights and the rest, of features and head.

    Only weights of convolutions and linear layers decay. Biases and batch norms do not: it would pull the output's mean
    and scale to 0 without making the network simpler (Goyal et al. 2017, section 5.3; He et al. 2019, section 3.1).
    Every group has its peak learning rate as ``peak``. With Muon the linear layers are among the rest: no batch norm
    follows them, so their scale means something, and for 4096 × 4096 weights the step would take longer than the network.
    """
    groups: list[dict[str, Any]] = []
    muon = recipe.optimizer == "muon"
    for part, peak in ((model.features, recipe.lr_features or recipe.lr), (model.classifier, recipe.lr)):
        layers = [m for m in part.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        if muon and part is model.classifier:
            layers = []
        decaying = {id(layer.weight) for layer in layers}
        for decay in (True, False):
            chosen = [p for p in part.parameters() if (id(p) in decaying) == decay]
            if chosen:
                rate = peak if decay else recipe.lr_rest or peak
                kind = {"turn": decay} if muon else {"weight_decay": recipe.weight_decay if decay else 0.0}
                groups.append({"params": chosen, "lr": rate, "peak": rate, **kind})
    if muon:
        return Muon(groups, momentum=recipe.momentum)
    if recipe.optimizer == "adamw":
        return AdamW(groups, betas=(recipe.momentum, BETA2), fused=True)
    sgd = SGD(groups, momentum=recipe.momentum, fused=True)
    if recipe.momentum:
        # The first step computes the same from 0 as from nothing; and torch's fused step refuses a group in which some
        # parameters have a momentum and others, frozen until now, have none.
        for parameter in model.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Every group's learning rate: ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def frozen_layers(recipe: Recipe, spec: ModelSpec, epoch: int) -> int:
    """How many modules of ``features``, from the first, are frozen in an epoch (counted from 0).

    Every ``unfreeze_every`` epochs the deepest block that is still frozen, or what of it is, is let go: from the head
    towards the image, whose features are the most general (Howard & Ruder 2018, section 3.3).
    """
    if recipe.freeze == NO_FREEZE:
        return 0
    sizes = [len(block) for block in spec.blocks]
    convs = sum(sizes) if recipe.freeze == ALL_FEATURES else int(recipe.freeze)
    if recipe.unfreeze_every:
        for _ in range(epoch // recipe.unfreeze_every):
            whole = 0
            for size in sizes:  # the block that holds the last frozen convolution begins after `whole` of them
                if whole + size >= convs:
                    break
                whole += size
            convs = min(convs, whole)
    if convs == 0:
        return 0
    if convs == sum(sizes):
        return len([x for x in layers_of(spec) if x.part == "features"])
    firsts = [x.index for x in layers_of(spec) if x.kind == "conv"]
    return firsts[convs]  # up to the first convolution that learns


def freeze(model: VGG, modules: int) -> None:
    """Freeze the first ``modules`` of the features, and only them: no gradients, and the statistics of their batch
    norms stay. Call it after ``model.train()``, which would move them."""
    for at, module in enumerate(model.features):
        frozen = at < modules
        module.requires_grad_(not frozen)
        if frozen:
            module.eval()


def moments(optimizer: Optimizer, model: VGG) -> dict[str, torch.Tensor]:
    """What the optimiser remembers of every parameter, by ``PARAMETER/NAME``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = value
    return tensors


def set_moments(optimizer: Optimizer, model: VGG, found: dict[str, torch.Tensor]) -> None:
    """Put back what `moments` gave. Each tensor gets its parameter's memory layout, as the optimiser would make it."""
    parameters = dict(model.named_parameters())
    for key, value in found.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device).clone()
        with torch.no_grad():
            optimizer.state[parameter][moment] = like.copy_(value)


# Of one-cycle: it starts at a 25th of the peak, and ends at a 10,000th of the start (torch's OneCycleLR, after Smith &
# Topin 2018).
START_SHARE, END_SHARE = 1 / 25, 1e-4


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of step ``step`` of ``steps``, counted from 0."""
    return recipe.lr * rate_factor(recipe, step, steps)


def rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """The share of its peak that a learning rate has at step ``step`` of ``steps``.

    ``cosine``, ``step`` and ``constant`` rise linearly in the warm-up (Goyal et al. 2017, section 2.2), then follow
    half a cosine down to 0 (Loshchilov & Hutter 2017, eq. 5, without restarts), fall by ``step_factor`` after every
    ``step_every`` epochs, or stay. ``one-cycle`` rises and falls along half cosines, as torch's OneCycleLR does; its
    momentum stays.
    """
    if recipe.schedule == "one-cycle":
        return _one_cycle(recipe.warmup, step, steps)
    warm = recipe.warmup * steps
    if step < warm:
        return min(1.0, (step + 1) / warm)
    if recipe.schedule == "step":
        return recipe.step_factor ** (step * recipe.epochs // steps // recipe.step_every)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _one_cycle(warmup: float, step: int, steps: int) -> float:
    peak = max(0.0, warmup * steps - 1)
    if step <= peak and peak > 0:
        return _cosine(START_SHARE, 1.0, step / peak)
    return _cosine(1.0, START_SHARE * END_SHARE, (step - peak) / max(1.0, steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
