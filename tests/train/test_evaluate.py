"""Evaluation counts right, whatever the batch size, and leaves the network as it found it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.loaders import ImageSet
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.weights import load_model
from vggdeploy.train.step import evaluate

CPU = torch.device("cpu")


@pytest.fixture
def network(checkpoint: Path) -> Deployable:
    return Deployable(load_model(checkpoint), read_checkpoint(checkpoint).preprocess)


def test_loss_and_accuracy_are_those_of_all_logits_at_once(network: Deployable, digits_test: ImageSet) -> None:
    labels = torch.from_numpy(digits_test.labels)
    with torch.inference_mode():
        (logits,) = network.eval()(torch.from_numpy(digits_test.images))
    score = evaluate(network, digits_test, device=CPU, batch_size=100)  # 359 is no multiple of it
    assert score.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert score.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_mode_statistics_and_gradients_are_left_alone(
    network: Deployable, digits_test: ImageSet, training: bool
) -> None:
    network.train(training)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    evaluate(network, digits_test, device=CPU)
    assert network.training is training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
