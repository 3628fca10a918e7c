"""Muon: steps with known answers; what turns and what does not; what is learned is the bundle's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vggdeploy.model.vgg import new_vgg
from vggdeploy.train.muon import Muon, orthogonalised
from vggdeploy.train.optimizer import new_optimizer, set_rate
from vggdeploy.train.recipe import Recipe

SMALL = Recipe(width=0.05, hidden=8, optimizer="muon", lr=0.1, lr_rest=0.03, momentum=0.8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (4, 27), (40, 6), (1, 9)])
def test_orthogonalised_keeps_the_directions_and_levels_what_they_weigh(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(random(*shape), full_matrices=False)
    rank = min(shape)
    matrix = left @ torch.diag(torch.linspace(1.0, 0.2, rank)) @ right
    found = orthogonalised(matrix)
    # In the basis of the matrix' own singular vectors the answer is diagonal, with nearly equal values.
    inside = left.T @ found @ right.T
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-4)
    assert inside.diagonal().min() > 0.4
    assert inside.diagonal().max() < 1.3


def test_zeros_stay_zeros_and_no_number_is_lost() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))
    weight = nn.Parameter(torch.zeros(3, 5))
    optimizer = Muon([{"params": [weight], "lr": 0.1, "turn": True}], momentum=0.9)
    weight.grad = random(3, 5)
    optimizer.step()
    assert torch.equal(weight, torch.zeros(3, 5))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_step_turns_by_the_learning_rate_whatever_weights_and_gradients_weigh(scale: float) -> None:
    weight = nn.Parameter(random(16, 8, 3, 3) * scale)
    before = weight.detach().clone()
    optimizer = Muon([{"params": [weight], "lr": 0.1, "turn": True}], momentum=0.9)
    weight.grad = random(16, 8, 3, 3, seed=1) / scale
    optimizer.step()
    assert weight.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
    angle = math.acos(torch.cosine_similarity(weight.flatten(), before.flatten(), dim=0).item())
    assert angle == pytest.approx(0.1, rel=0.05)
    assert (weight - before).flatten() @ weight.grad.flatten() < 0  # downhill


def test_what_is_no_matrix_follows_nesterovs_momentum() -> None:
    weight = nn.Parameter(random(5))
    reference = nn.Parameter(weight.detach().clone())
    ours = Muon([{"params": [weight], "lr": 0.1}], momentum=0.8)
    theirs = torch.optim.SGD([reference], lr=0.1, momentum=0.8, nesterov=True)
    for seed in range(3):
        for parameter, optimizer in ((weight, ours), (reference, theirs)):
            parameter.grad = random(5, seed=seed)
            optimizer.step()
    assert torch.allclose(weight, reference, atol=1e-6)


def test_convolutions_turn_and_the_rest_has_its_own_rate() -> None:
    model = new_vgg(SMALL.model_spec())
    optimizer = new_optimizer(SMALL, model)
    turned = {id(p) for group in optimizer.param_groups if group["turn"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in turned}
    assert names == {name for name, p in model.named_parameters() if p.ndim == 4}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    set_rate(optimizer, 0.5)
    assert {(group["turn"], group["lr"]) for group in optimizer.param_groups} == {(True, 0.05), (False, 0.015)}


def test_biases_have_their_own_rate_with_every_optimiser() -> None:
    recipe = Recipe(width=0.05, hidden=8, lr=0.1, lr_features=0.02, lr_rest=0.4)
    optimizer = new_optimizer(recipe, new_vgg(recipe.model_spec()))
    found = {(group["params"][0].ndim > 1, group["lr"]) for group in optimizer.param_groups}
    assert found == {(True, 0.02), (True, 0.1), (False, 0.4)}
