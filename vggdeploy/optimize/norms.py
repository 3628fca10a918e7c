"""The statistics of batch norms, measured anew behind layers that were changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from vggdeploy.model.vgg import VGG

# Batches of normalised images `float32 [N, C, S, S]` with their classes `int64 [N]`.
Batches = Iterable[tuple[NDArray[Any], NDArray[Any]]]


def recalibrate(model: VGG, batches: Batches) -> None:
    """Measure the statistics of every batch norm, in place: what stands before it is no longer what it was.

    Li et al. 2020, "EagleEye", section 3.2: without it the accuracy of a smaller network says little about what it can be
    fine-tuned to.

    Args:
        batches: of training images; all of them count alike.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the mean over all batches
        norm.train()
    with torch.no_grad():
        for images, _ in batches:
            model.features(torch.from_numpy(images))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.train(was_training)
