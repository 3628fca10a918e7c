"""Quantisation-aware training: products that round as an INT8 engine rounds, and learn as if they did not.

Jacob et al. 2018 (arXiv:1712.05877), section 3, with the straight-through gradient of Bengio et al. 2013 (arXiv:1308.3432).
Weights get 255 levels around zero and a scale for each output channel. A batch norm behind a convolution only scales its
channels, so what is rounded here is, channel by channel, what is rounded once it is folded. Activations get 256 levels
between the smallest and the largest value of the batch, zero among them: nothing has to be remembered between steps.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggdeploy.model.vgg import VGG

_WEIGHTS, _ACTIVATIONS = 127, 255
_LEAST = 1e-12  # of a scale: a channel of zeros stays one


def simulate_int8(model: VGG) -> None:
    """Make every convolution and linear layer of ``model`` round what it reads, in place. Its weights stay FP32."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = partial(_convolution, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Linear):
            module.forward = partial(_linear, module)  # type: ignore[method-assign]


def _convolution(module: nn.Conv2d, x: Tensor) -> Tensor:
    return module._conv_forward(rounded_activations(x), rounded_weights(module.weight), module.bias)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(rounded_activations(x), rounded_weights(module.weight), module.bias)


def rounded_weights(weight: Tensor) -> Tensor:
    """``[out, …]`` → the nearest of 255 levels, symmetric around zero, of each output channel; gradients pass through."""
    with torch.no_grad():
        largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        scale = (largest / _WEIGHTS).clamp_min(_LEAST)
        nearest = (weight / scale).round_().clamp_(-_WEIGHTS, _WEIGHTS).mul_(scale)
        off = nearest - weight
    return weight + off


def rounded_activations(x: Tensor) -> Tensor:
    """Any tensor → the nearest of 256 levels between its smallest and largest value; zero is one; gradients pass through."""
    with torch.no_grad():
        values = x.float()  # bfloat16 has no 256 levels
        low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
        scale = ((high - low) / _ACTIVATIONS).clamp_min(_LEAST)
        zero = (-low / scale).round()
        nearest = ((values / scale).round_() + zero).clamp_(0, _ACTIVATIONS).sub_(zero).mul_(scale)
        off = nearest - values
    return x.float() + off
