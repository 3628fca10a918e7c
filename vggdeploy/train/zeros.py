"""Weights that are 0 when a run begins stay 0: what was pruned to 2:4 stays so while the others learn."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from vggdeploy.model.vgg import VGG


def hold_zeros(model: VGG) -> None:
    """Give the zeros among the weights of convolutions and linear layers no gradient from now on.

    Without one every optimiser of a recipe leaves a 0 where it is: momentum and AdamW's moments stay 0, and decay takes a share
    of 0.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.register_hook(partial(_masked, (module.weight.detach() != 0).to(module.weight.dtype)))


def _masked(mask: Tensor, gradient: Tensor) -> Tensor:
    return gradient * mask
