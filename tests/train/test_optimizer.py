"""Optimiser steps with known answers, computed by hand from the formulas; what decays; what is frozen when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vggdeploy.model.deployable import Deployable
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.train.feed import Batch
from vggdeploy.train.optimizer import freeze, frozen_layers, moments, new_optimizer, set_moments, set_rate
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.step import Stepper
from vggdeploy.types import Precision

CPU = torch.device("cpu")
SMALL = Recipe(width=0.05, hidden=8)


def model_of(recipe: Recipe) -> VGG:
    return new_vgg(recipe.model_spec(), seed=1)


def two_steps(recipe: Recipe, gradient: float = 0.5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters before and after two steps with the same constant gradient everywhere."""
    model = model_of(recipe)
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    optimizer = new_optimizer(recipe, model)
    for factor in (1.0, 0.5):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        set_rate(optimizer, factor)
        optimizer.step()
    return before, {name: p.detach().double() for name, p in model.named_parameters()}


def decays(name: str, p: Tensor) -> bool:
    return name.endswith("weight") and p.ndim > 1


def test_sgd_with_momentum_and_decay() -> None:
    recipe = Recipe(width=0.05, hidden=8, lr=0.1, lr_features=0.02, momentum=0.8, weight_decay=0.01)
    before, after = two_steps(recipe)
    for name, w in before.items():
        lr, decay = 0.02 if name.startswith("features") else 0.1, 0.01 if decays(name, w) else 0.0
        v = 0.5 + decay * w
        first = w - lr * v
        v = 0.8 * v + 0.5 + decay * first
        assert torch.allclose(after[name], first - lr / 2 * v, atol=1e-6), name


def test_adamw_decays_beside_the_gradient() -> None:
    recipe = Recipe(width=0.05, hidden=8, optimizer="adamw", lr=0.01, momentum=0.9, weight_decay=0.1)
    before, after = two_steps(recipe)
    for name, w in before.items():
        decay = 0.1 if decays(name, w) else 0.0
        expected = w
        for lr in (0.01, 0.005):  # of a constant gradient both moments, corrected, are the gradient and its square
            expected = expected - lr * decay * expected - lr * 0.5 / (0.5 + 1e-8)
        assert torch.allclose(after[name], expected, atol=1e-6), name


def test_biases_and_batch_norms_do_not_decay() -> None:
    optimizer = new_optimizer(SMALL, model := model_of(SMALL))
    shapes = {p.ndim for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert shapes == {1}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def stepped(recipe: Recipe, images: Tensor, labels: Tensor) -> tuple[VGG, tuple[float, float]]:
    model = model_of(recipe)
    network = Deployable(model, recipe.preprocess()).train()
    stepper = Stepper(recipe, network, model, steps=10, precision=Precision.FP32, device=CPU)
    return model, stepper(Batch(0, len(labels), images, labels, np.arange(len(labels))))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 32, 32, 1), generator=generator, dtype=torch.uint8)
    return images, torch.arange(8)


def test_clipping_scales_all_gradients_to_the_norm(batch: tuple[Tensor, Tensor]) -> None:
    recipe = Recipe(width=0.05, hidden=8, arch="vgg11", dropout=0.0, momentum=0.0, weight_decay=0.0, warmup=0.0, lr=1.0)
    start = [p.detach() for p in model_of(recipe).parameters()]
    clip = Recipe(**{f: getattr(recipe, f) for f in Recipe.__struct_fields__} | {"clip": 0.01})
    moved = {}
    for name, each in (("free", recipe), ("clipped", clip)):
        model, _ = stepped(each, *batch)
        moved[name] = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), start, strict=True)]).detach()
    assert moved["free"].norm() > 0.02
    assert moved["clipped"].norm() == pytest.approx(0.01, rel=1e-3)  # lr is 1: the step is the gradient
    assert torch.cosine_similarity(moved["free"], moved["clipped"], dim=0) == pytest.approx(1, abs=1e-5)


def test_smoothing_changes_the_step_and_not_the_loss_that_is_reported(batch: tuple[Tensor, Tensor]) -> None:
    plain = Recipe(width=0.05, hidden=8, dropout=0.0, label_smoothing=0.0)
    smooth = Recipe(width=0.05, hidden=8, dropout=0.0, label_smoothing=0.3)
    (one, told), (two, told_too) = stepped(plain, *batch), stepped(smooth, *batch)
    assert told == told_too
    assert not torch.equal(one.classifier[6].weight, two.classifier[6].weight)
    reference = model_of(plain).train()
    network = Deployable(reference, plain.preprocess())
    loss = torch.nn.functional.cross_entropy(network(batch[0])[0], batch[1], reduction="sum")
    assert told[0] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("freeze_", "every", "epoch", "modules"),
    [  # vgg11_bn: convolutions at 0 | 4 | 8 11 | 15 18 | 22 25, pools at 3 7 14 21 28
        ("none", 0, 0, 0),
        ("0", 0, 0, 0),
        ("1", 0, 9, 4),
        ("3", 0, 0, 11),
        ("features", 0, 9, 29),
        ("8", 0, 0, 29),
        ("features", 2, 0, 29),
        ("features", 2, 1, 29),
        ("features", 2, 2, 22),
        ("features", 2, 4, 15),
        ("features", 2, 9, 4),
        ("features", 2, 10, 0),
        ("3", 1, 1, 8),
        ("3", 1, 2, 4),
        ("3", 1, 3, 0),
    ],
)
def test_which_modules_are_frozen_when(freeze_: str, every: int, epoch: int, modules: int) -> None:
    recipe = Recipe(freeze=freeze_, unfreeze_every=every, init="x", width=0.05, hidden=8)
    assert frozen_layers(recipe, recipe.model_spec(), epoch) == modules


def test_frozen_parts_keep_weights_and_statistics(batch: tuple[Tensor, Tensor]) -> None:
    model = model_of(SMALL)
    network = Deployable(model, SMALL.preprocess()).train()
    freeze(model, 11)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stepper = Stepper(SMALL, network, model, steps=10, precision=Precision.FP32, device=CPU)
    for step in range(2):
        stepper(Batch(step, 8, *batch, np.arange(8)))
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith("features.") and int(key.split(".")[1]) < 11}
    assert frozen <= same
    assert "features.9.running_mean" in frozen
    # Biases before a batch norm have no gradient but rounding; everything else has moved.
    assert {key for key in before.keys() - frozen if key.endswith("weight")}.isdisjoint(same)
    freeze(model, 0)
    stepper(Batch(2, 8, *batch, np.arange(8)))
    assert not torch.equal(model.features[0].weight, before["features.0.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_what_an_optimiser_remembers_survives(optimizer: str) -> None:
    recipe = Recipe(width=0.05, hidden=8, optimizer=optimizer)  # type: ignore[arg-type]
    models = [model_of(recipe).to(memory_format=torch.channels_last) for _ in range(2)]  # type: ignore[call-overload]
    optimizers = [new_optimizer(recipe, model) for model in models]
    for value in (0.5, 0.25):
        for p in models[0].parameters():
            p.grad = torch.full_like(p, value)
        optimizers[0].step()
    models[1].load_state_dict(models[0].state_dict())
    set_moments(optimizers[1], models[1], {k: v.contiguous() for k, v in moments(optimizers[0], models[0]).items()})
    for model, each in zip(models, optimizers, strict=True):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        each.step()
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
