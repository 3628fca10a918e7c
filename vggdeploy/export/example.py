"""The input that exporters trace with: only its dtype and shape matter."""

from __future__ import annotations

import torch
from torch import Tensor

from vggdeploy.spec import ModelSpec
from vggdeploy.types import TensorSpec

INPUT = "image"


def input_spec(spec: ModelSpec, dtype: str = "uint8") -> TensorSpec:
    """The graph's one input: ``uint8 [N, H, W, C]`` pixels, or normalised ``float32 [N, C, H, W]``."""
    size, channels = spec.image_size, spec.in_channels
    shape = (size, size, channels) if dtype == "uint8" else (channels, size, size)
    return TensorSpec(INPUT, dtype, ("N", *shape))


def example_input(spec: TensorSpec, samples: int) -> Tensor:
    """Zeros of the input's dtype and shape."""
    return torch.zeros(samples, *spec.item_shape, dtype=getattr(torch, spec.dtype))
