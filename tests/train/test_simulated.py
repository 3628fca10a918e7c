"""Training with the rounding of INT8: the rounding is a quantiser's, the gradient passes, and only the rounding is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model
from vggdeploy.spec import ModelSpec
from vggdeploy.train.loop import train
from vggdeploy.train.quantisation import rounded_activations, rounded_weights, simulate_int8
from vggdeploy.train.recipe import Recipe


@settings(max_examples=100)
@given(seed=st.integers(0, 2**16), low=st.floats(-8, 0), high=st.floats(0, 8), zeros=st.booleans())
def test_activations_are_rounded_as_torchs_own_fake_quantiser_does(
    seed: int, low: float, high: float, zeros: bool
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).uniform(low, high, (4, 5)).astype(np.float32))
    if zeros:
        x[0] = 0
    least, most = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = max((most - least) / 255, 1e-12)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, int(np.clip(round(-least / scale), 0, 255)), 0, 255)
    # A value half way between two levels may go to either.
    assert float((rounded_activations(x) - expected).abs().max()) <= scale * 1.001
    assert float((rounded_activations(x) - x).abs().max()) <= scale / 2 * 1.01
    assert (rounded_activations(x)[x == 0] == 0).all()


@settings(max_examples=100)
@given(seed=st.integers(0, 2**16), channels=st.integers(1, 6))
def test_weights_are_rounded_channel_by_channel(seed: int, channels: int) -> None:
    w = torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, 3, 3, 3)).astype(np.float32))
    w *= torch.logspace(-3, 2, channels)[:, None, None, None]
    found = rounded_weights(w)
    for channel in range(channels):
        scale = float(w[channel].abs().max()) / 127
        levels = found[channel] / scale
        np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
        assert float((found[channel] - w[channel]).abs().max()) <= scale / 2 * 1.001


def test_a_channel_of_zeros_and_a_constant_stay_finite() -> None:
    assert (rounded_weights(torch.zeros(2, 3)) == 0).all()
    assert (rounded_activations(torch.zeros(2, 3)) == 0).all()
    np.testing.assert_allclose(rounded_activations(torch.full((2, 3), 0.7)), 0.7, rtol=1e-2)


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(5, 6, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    (rounded_activations(x) @ rounded_weights(weight).T).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, rounded_weights(weight).detach().sum(0).expand(5, 6), rtol=1e-5)
    np.testing.assert_allclose(weight.grad, rounded_activations(x).detach().sum(0).expand(4, 6), rtol=1e-5)


def test_bfloat16_gets_all_its_levels() -> None:
    x = torch.linspace(0, 255, 256).bfloat16()
    assert len(rounded_activations(x).unique()) > 100
    assert rounded_activations(x).dtype is torch.float32


def test_every_product_rounds_and_the_state_has_no_new_key() -> None:
    spec = ModelSpec.named("vgg11_bn", width=0.0625, image_size=32, hidden=16, classes=4)
    plain, aware = new_vgg(spec, seed=1).eval(), new_vgg(spec, seed=1).eval()
    simulate_int8(aware)
    assert plain.state_dict().keys() == aware.state_dict().keys()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        away = (plain(x) - aware(x)).norm() / plain(x).norm()
    assert 1e-4 < float(away) < 0.2


def test_a_trained_network_is_a_plain_one(tmp_path: Path) -> None:
    recipe = Recipe(
        arch="vgg11_bn", width=0.0625, hidden=32, dropout=0.0, epochs=2, quantisation_aware=True, per_class=40
    )
    result = train(recipe, output=tmp_path / "ckpt")
    assert result.training.recipe.quantisation_aware
    model = load_model(tmp_path / "ckpt")
    assert not any("forward" in vars(module) for module in model.modules())
    # With one seed another network than without: the rounding was there.
    other = train(Recipe(**{**recipe_values(recipe), "quantisation_aware": False}), output=tmp_path / "plain")
    assert other.training.loss != pytest.approx(result.training.loss, abs=1e-9)


def recipe_values(recipe: Recipe) -> dict[str, object]:
    return {name: getattr(recipe, name) for name in recipe.__struct_fields__}
