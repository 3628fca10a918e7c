"""fc6 and fc7 as products: nothing is lost at full rank, and below it exactly what the theorems say."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from vggdeploy.errors import UsageError
from vggdeploy.model.summary import summarise
from vggdeploy.model.vgg import VGG, fold_batch_norm, new_vgg
from vggdeploy.optimize.low_rank import factorise, measure_answers
from vggdeploy.spec import CUSTOM, ModelSpec

SPEC = ModelSpec(
    arch=CUSTOM, blocks=((6,), (12,)), batch_norm=True, in_channels=1, classes=5, image_size=12, hidden=(30, 20)
)  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(64, 1, 12, 12)).astype(np.float32)


@pytest.fixture
def model() -> VGG:
    found = new_vgg(SPEC, seed=3).eval()
    with torch.no_grad():
        for index in (0, 3):
            found.classifier[index].bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(index))
    return found


def logits(model: VGG) -> Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(IMAGES))


def weight(model: VGG, index: int) -> Tensor:
    first, second = model.classifier[index]
    return second.weight.detach().double() @ first.weight.detach().double()


@pytest.mark.parametrize("measured", [True, False])
def test_full_rank_computes_the_same_logits(model: VGG, measured: bool) -> None:
    answers = measure_answers(model, [IMAGES]) if measured else None
    whole = factorise(model, SPEC.full_ranks, answers)
    assert whole.spec.ranks == (30, 20)
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 7, 19])
def test_without_data_the_error_is_eckart_and_youngs(model: VGG, rank: int) -> None:
    """‖W − W_r‖² is the sum of the squared singular values that were left out: no matrix of that rank is closer."""
    small = factorise(model, (rank, rank))
    for index in (0, 3):
        full = model.classifier[index].weight.detach().double()
        left_out = torch.linalg.svdvals(full)[rank:].square().sum()
        assert (full - weight(small, index)).square().sum().item() == pytest.approx(left_out.item(), rel=1e-4)
        assert torch.linalg.matrix_rank(weight(small, index), rtol=1e-5) == rank


def test_with_data_the_error_is_the_variance_that_was_left_out(model: VGG) -> None:
    """Of what fc6 answers, less its mean: the sum of the smallest eigenvalues of the covariance."""
    answers = measure_answers(model, [IMAGES[:40], IMAGES[40:]])
    small = factorise(model, (4, 0), answers)
    with torch.inference_mode():
        x = model.features(torch.from_numpy(IMAGES)).flatten(1)
        exact, close = model.classifier[0](x).double(), small.classifier[0](x).double()
    left_out = torch.linalg.eigvalsh(torch.cov(exact.T, correction=0))[:-4].sum()
    assert (exact - close).square().sum(dim=1).mean().item() == pytest.approx(left_out.item(), rel=1e-4)
    torch.testing.assert_close(exact.mean(dim=0), close.mean(dim=0), rtol=1e-5, atol=1e-6)  # the mean is not moved


def test_real_answers_make_a_better_product_than_the_matrix_alone(model: VGG) -> None:
    answers = measure_answers(model, [IMAGES])
    measured = (logits(factorise(model, (4, 4), answers)) - logits(model)).square().sum()
    blind = (logits(factorise(model, (4, 4))) - logits(model)).square().sum()
    assert measured < blind / 2


def test_counts_and_keys_follow(model: VGG) -> None:
    small = factorise(model, (4, 0))
    flat = SPEC.flat_features
    assert summarise(small.spec).parameters == sum(p.numel() for p in small.parameters())
    assert summarise(SPEC).macs - summarise(small.spec).macs == flat * 30 - 4 * (flat + 30)
    keys = [key for key in small.state_dict() if key.startswith("classifier.")]
    assert keys == [
        "classifier.0.0.weight", "classifier.0.1.weight", "classifier.0.1.bias",
        "classifier.3.weight", "classifier.3.bias", "classifier.6.weight", "classifier.6.bias",
    ]  # fmt: skip
    assert [(r.name, r.rank) for r in summarise(small.spec).layers if r.rank] == [("fc6", 4)]
    assert "fc6 of rank 4" in small.spec.title
    folded = fold_batch_norm(small)
    torch.testing.assert_close(logits(folded), logits(small), rtol=1e-4, atol=1e-5)


def test_a_product_is_factorised_again_only_downwards(model: VGG) -> None:
    once = factorise(model, (10, 0))
    twice = factorise(once, (6, 8))
    assert twice.spec.ranks == (6, 8)
    direct = factorise(model, (6, 8))
    # The six best directions are the same; only the roundings differ.
    torch.testing.assert_close(weight(twice, 0), weight(direct, 0), rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="rank 11 of fc6 — its rank is 10"):
        factorise(once, (11, 0))


@pytest.mark.parametrize("ranks", [(31, 0), (0, 21), (-1, 0)])
def test_a_rank_that_the_matrix_does_not_have_is_refused(model: VGG, ranks: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"its full rank is (30|20): give 1 to"):
        factorise(model, ranks)
    with pytest.raises(UsageError, match="its full rank is"):
        msgspec.structs.replace(SPEC, ranks=ranks)


def test_an_older_spec_has_no_ranks() -> None:
    text = msgspec.json.encode(SPEC).replace(b',"ranks":[0,0]', b"")
    assert b"ranks" not in text
    assert msgspec.json.decode(text, type=ModelSpec) == SPEC
