"""Layers as products: nothing is lost at full rank, and below it exactly what the theorems say."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vggdeploy.errors import TargetError, UsageError
from vggdeploy.model.detection import backbone
from vggdeploy.model.foreign.initial import load_initial_weights
from vggdeploy.model.layers import summarise
from vggdeploy.model.vgg import VGG, fold_batch_norm, new_vgg
from vggdeploy.optimize.steps.activations import (
    blind_answers,
    matrix_of,
    measure_answers,
    product_layers,
    recalibrate,
    vertical_patches,
)
from vggdeploy.optimize.steps.low_rank import choose_ranks, factorise, full_rank
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.spec import CUSTOM, ModelSpec

SPEC = ModelSpec(
    arch=CUSTOM, blocks=((6,), (12, 10)), batch_norm=True, in_channels=1, classes=5, image_size=12, hidden=(30, 20)
)  # fmt: skip
PLAIN = msgspec.structs.replace(SPEC, batch_norm=False)
IMAGES = np.random.default_rng(0).normal(size=(64, 1, 12, 12)).astype(np.float32)
FULL = {"conv1_1": 3, "conv2_1": 18, "conv2_2": 30, "fc6": 30, "fc7": 20}


def lively(spec: ModelSpec) -> VGG:
    """No bias is 0, and no batch norm the identity, by chance."""
    found, random = new_vgg(spec, seed=3).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.uniform_(-0.5, 0.5, generator=random)
            elif isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.uniform_(0.3, 1.5, generator=random)
    return found


@pytest.fixture
def model() -> VGG:
    return lively(SPEC)


def logits(model: VGG) -> Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(IMAGES))


def matrix(model: VGG, name: str) -> Tensor:
    return matrix_of(model, product_layers(model)[name])[0].double()


@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["batch norm", "plain"])
@pytest.mark.parametrize("measured", [True, False])
def test_full_rank_computes_the_same_logits(spec: ModelSpec, measured: bool) -> None:
    model = lively(spec)
    assert {name: full_rank(layer) for name, layer in product_layers(model).items()} == FULL
    whole = factorise(model, FULL, measure_answers(model, [IMAGES]) if measured else None)
    assert (whole.spec.conv_ranks, whole.spec.ranks) == (((3,), (18, 30)), (30, 20))
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-5)
    before = logits(model)
    recalibrate(whole, [(IMAGES, np.zeros(len(IMAGES), np.int64))])
    assert model.spec == spec  # what was given is as it was, whatever becomes of the other
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 7, 17])
def test_without_data_the_error_is_eckart_and_youngs(rank: int) -> None:
    """‖W − W_r‖² is the sum of the squared singular values that were left out: no matrix of that rank is closer."""
    model = lively(PLAIN)
    small = factorise(model, dict.fromkeys(("conv2_1", "conv2_2", "fc6", "fc7"), rank))
    for name in ("conv2_1", "conv2_2", "fc6", "fc7"):
        full = matrix(model, name)
        left_out = torch.linalg.svdvals(full)[rank:].square().sum()
        assert (full - matrix(small, name)).square().sum().item() == pytest.approx(left_out.item(), rel=1e-4), name
        assert torch.linalg.matrix_rank(matrix(small, name), rtol=1e-5) == rank


def test_with_data_a_matrix_loses_the_variance_that_was_left_out(model: VGG) -> None:
    """Of what fc6 answers, less its mean: the sum of the smallest eigenvalues of the covariance."""
    answers = measure_answers(model, [IMAGES[:40], IMAGES[40:]])
    small = factorise(model, {"fc6": 4}, answers)
    with torch.inference_mode():
        x = model.features(torch.from_numpy(IMAGES)).flatten(1)
        exact, close = model.classifier[0](x).double(), small.classifier[0](x).double()
    left_out = torch.linalg.eigvalsh(torch.cov(exact.T, correction=0))[:-4].sum()
    assert (exact - close).square().sum(dim=1).mean().item() == pytest.approx(left_out.item(), rel=1e-4)
    torch.testing.assert_close(exact.mean(dim=0), close.mean(dim=0), rtol=1e-4, atol=1e-5)  # the mean is not moved


def test_a_convolution_is_its_matrix_on_vertical_patches(model: VGG) -> None:
    """y[o] at a pixel is the sum over the kernel's columns of M's answer to the patch there: so M's rank is what counts."""
    x = torch.from_numpy(IMAGES[:2])
    layer = product_layers(model)["conv1_1"]
    conv = model.features[0]
    parts = (matrix(model, "conv1_1").T @ vertical_patches(x).double()).reshape(layer.outputs, 3, 2, 12, 12)
    padded = torch.nn.functional.pad(parts, (1, 1))
    summed = sum(padded[:, k, :, :, k : k + 12] for k in range(3)) + conv.bias.double()[:, None, None, None]
    torch.testing.assert_close(summed.transpose(0, 1).float(), conv(x), rtol=1e-4, atol=1e-5)


def test_with_data_a_convolution_loses_the_variance_that_was_left_out() -> None:
    """Of its matrix's answers to the patches that it sees, less their mean, for a plain network."""
    model = lively(PLAIN)
    answers = measure_answers(model, [IMAGES[:40], IMAGES[40:]], patches=64)
    small = factorise(model, {"conv2_2": 5}, answers)
    with torch.inference_mode():
        seen = vertical_patches(model.features[:5](torch.from_numpy(IMAGES))).double()
    seen = seen - seen.mean(dim=1, keepdim=True)
    lost = ((matrix(model, "conv2_2") - matrix(small, "conv2_2")).T @ seen).square().sum() / seen.shape[1]
    left_out = torch.linalg.eigvalsh(answers["conv2_2"].spread)[:-5].sum()
    assert lost.item() == pytest.approx(left_out.item(), rel=1e-3)


def test_what_a_convolution_loses_has_no_mean() -> None:
    model = lively(PLAIN)
    small = factorise(model, {"conv2_2": 3}, measure_answers(model, [IMAGES]))
    with torch.inference_mode():
        x = model.features[:5](torch.from_numpy(IMAGES))
        exact, close = model.features[5](x), small.features[5](x)
        without = close - (small.features[5][1].bias - model.features[5].bias)[:, None, None]
    inside = np.s_[:, :, :, 1:-1]  # at the border the kernel sees zeros, which are in no patch's mean
    moved, left = (
        (e[inside].mean(dim=(0, 2, 3)) - exact[inside].mean(dim=(0, 2, 3))).abs().max() for e in (without, close)
    )
    assert left < moved / 5


def test_real_answers_make_better_products_than_the_matrices_alone(model: VGG) -> None:
    ranks = {"conv2_1": 6, "conv2_2": 8, "fc6": 4, "fc7": 4}
    measured = (logits(factorise(model, ranks, measure_answers(model, [IMAGES]))) - logits(model)).square().sum()
    blind = (logits(factorise(model, ranks, blind_answers(model))) - logits(model)).square().sum()
    assert measured < blind / 1.5


def test_counts_and_keys_follow(model: VGG) -> None:
    small = factorise(model, {"conv2_1": 5, "fc6": 4})
    flat = SPEC.flat_features
    assert summarise(small.spec).parameters == sum(p.numel() for p in small.parameters())
    saved = 36 * (9 * 6 * 12 - 3 * 5 * (6 + 12)) + flat * 30 - 4 * (flat + 30)
    assert macs_of(SPEC) - macs_of(small.spec) == saved
    keys = [key for key in small.state_dict() if key.endswith(("weight", "bias"))]
    assert keys == [
        "features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias",
        "features.4.0.weight", "features.4.1.weight", "features.4.1.bias", "features.5.weight", "features.5.bias",
        "features.7.weight", "features.7.bias", "features.8.weight", "features.8.bias",
        "classifier.0.0.weight", "classifier.0.1.weight", "classifier.0.1.bias",
        "classifier.3.weight", "classifier.3.bias", "classifier.6.weight", "classifier.6.bias",
    ]  # fmt: skip
    assert [(r.name, r.rank) for r in summarise(small.spec).layers if r.rank] == [("conv2_1", 5), ("fc6", 4)]
    assert "fc6 of rank 4, 1 convolutions of low rank" in small.spec.title
    torch.testing.assert_close(logits(fold_batch_norm(small)), logits(small), rtol=1e-4, atol=1e-5)
    assert backbone(small, levels=(1, 2)).out_channels == [6, 10]


def test_a_product_is_factorised_again_only_downwards(model: VGG) -> None:
    once = factorise(model, {"fc6": 10, "conv2_1": 9})
    twice = factorise(once, {"fc6": 6, "fc7": 8, "conv2_1": 4})
    assert (twice.spec.ranks, twice.spec.conv_ranks) == ((6, 8), ((0,), (4, 0)))
    direct = factorise(model, {"fc6": 6, "fc7": 8, "conv2_1": 4})
    for name in ("fc6", "conv2_1"):  # the best directions are the same; only the roundings differ
        torch.testing.assert_close(matrix(twice, name), matrix(direct, name), rtol=1e-3, atol=1e-5)
    with pytest.raises(UsageError, match="fc6 cannot have rank 11 — its rank is 10"):
        factorise(once, {"fc6": 11})


@pytest.mark.parametrize("ranks", [{"fc6": 31}, {"fc7": 21}, {"fc6": -1}, {"conv2_1": 19}, {"conv1_1": 4}])
def test_a_rank_that_the_matrix_does_not_have_is_refused(model: VGG, ranks: Mapping[str, int]) -> None:
    with pytest.raises(UsageError, match=r"its full rank is \d+: give 1 to"):
        factorise(model, ranks)


@pytest.mark.parametrize(
    "change",
    [{"ranks": (31, 0)}, {"conv_ranks": ((4,), (0, 0))}, {"conv_ranks": ((1,),)}, {"conv_ranks": ((0,), (-1, 0))}],
)
def test_a_spec_has_only_ranks_that_its_layers_can_have(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="rank"):
        msgspec.structs.replace(SPEC, **change)


def test_an_unknown_layer_is_named(model: VGG) -> None:
    with pytest.raises(UsageError, match="layer with a rank 'conv3_1' is unknown"):
        factorise(model, {"conv3_1": 2})


def test_weights_of_a_product_start_a_product(model: VGG, tmp_path) -> None:
    from vggdeploy.bundle.checkpoint import Checkpoint
    from vggdeploy.model.weights import save_checkpoint
    from vggdeploy.spec import PreprocessSpec

    small = factorise(model, {"conv2_1": 5, "fc7": 4})
    about = Checkpoint(spec=small.spec, preprocess=PreprocessSpec(mode="L", mean=(0.5,), std=(0.5,)), labels=())
    save_checkpoint(tmp_path / "small", small, about)
    fresh = new_vgg(small.spec, seed=9)
    report = load_initial_weights(str(tmp_path / "small"), fresh)
    assert (report.fresh, report.unused) == ((), ())
    torch.testing.assert_close(logits(fresh.eval()), logits(small), rtol=0, atol=0)
    headless = new_vgg(msgspec.structs.replace(small.spec, classes=3), seed=9)
    report = load_initial_weights(str(tmp_path / "small"), headless, allow_head_mismatch=True)
    assert report.fresh == ("classifier.6.weight", "classifier.6.bias")


def test_ranks_that_are_chosen_keep_the_target_and_the_layers_that_matter(model: VGG) -> None:
    answers = measure_answers(model, [IMAGES])
    spectra = {name: torch.linalg.eigvalsh(found.spread).numpy() for name, found in answers.items()}
    for keep in (0.9, 0.5, 0.3):
        ranks = choose_ranks(SPEC, spectra, keep)
        assert macs_of(factorise(model, ranks, answers).spec) <= keep * macs_of(SPEC)
    assert choose_ranks(SPEC, spectra, 1.0) == {}
    flat = {**spectra, "conv2_1": np.ones(36)}  # answers in all directions alike: nothing can be left out cheaply
    steep = {**spectra, "conv2_1": np.append(np.zeros(35), 1.0)}  # one direction says it all
    assert choose_ranks(SPEC, steep, 0.6)["conv2_1"] == 1
    assert choose_ranks(SPEC, flat, 0.6).get("conv2_1", 99) > choose_ranks(SPEC, spectra, 0.6)["conv2_1"]
    with pytest.raises(TargetError, match=r"with ranks of 1 the network still has .* — keep more: 0\."):
        choose_ranks(SPEC, spectra, 0.01)
    with pytest.raises(UsageError, match="give a number above 0"):
        choose_ranks(SPEC, spectra, 0)


def test_an_older_spec_has_no_ranks() -> None:
    text = msgspec.json.encode(SPEC).replace(b',"ranks":[0,0],"conv_ranks":[]', b"")
    assert b"ranks" not in text
    assert msgspec.json.decode(text, type=ModelSpec) == SPEC
