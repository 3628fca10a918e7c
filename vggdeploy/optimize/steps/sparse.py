"""Pruning to 2:4: of every four inputs the two with the smallest weights become 0, and the network keeps its structure.

By magnitude, then fine-tuned with the zeros held: Mishra et al. 2021 (arXiv:2104.08378), section 4.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from vggdeploy.model.formats.sparsity import FOUR, ZEROS, can_be_sparse, weighted_layers
from vggdeploy.model.vgg import VGG


def weights_of(model: VGG) -> dict[str, Tensor]:
    """Layer → weights ``[out, in, …]``."""
    return {name: model.get_parameter(f"{key}.weight") for name, key in weighted_layers(model.spec).items()}


def pruned_to_2_4(model: VGG) -> tuple[VGG, tuple[str, ...]]:
    """A copy of ``model`` with 2:4 weights in every layer whose inputs come in fours, and the names of those layers."""
    pruned = deepcopy(model)
    names = []
    with torch.no_grad():
        for name, weight in weights_of(pruned).items():
            if can_be_sparse(tuple(weight.shape)):
                weight.mul_(largest_two(weight))
                names.append(name)
    return pruned, tuple(names)


def largest_two(weight: Tensor) -> Tensor:
    """``[out, in, …]`` → 1 for the two largest magnitudes of every four consecutive inputs (of equals the first), else 0."""
    fours = weight.detach().abs().reshape(len(weight), -1, FOUR, *weight.shape[2:])
    order = fours.argsort(dim=2, descending=True, stable=True)
    mask = torch.ones_like(fours).scatter(2, order[:, :, FOUR - ZEROS :], 0.0)
    return mask.flatten(1, 2)
