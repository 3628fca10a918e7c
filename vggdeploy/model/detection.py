"""A VGG without its classifier, for detection and segmentation: feature maps at several strides, trainable."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Self

from torch import Tensor, nn

from vggdeploy.errors import InputError, UsageError
from vggdeploy.model.layers import layers_of
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.model.weights import load_model
from vggdeploy.spec import ModelSpec


class Backbone(nn.Module):
    """Normalised ``float [N, C, H, W]`` of any size → an `OrderedDict` of feature maps, finest first.

    Level k is the last ReLU of block k, before its pool, at a stride of 2^(k−1) pixels: ``relu3_3``, ``relu4_3`` and
    ``relu5_3`` of a VGG-16 at strides 4, 8 and 16. (The ResNet levels of the same numbers have twice the stride.) The
    maps are named ``"0"``, ``"1"``, … as torchvision's detectors expect.

    Attributes:
        out_channels: channels of the maps: a list, as `FeaturePyramidNetwork` takes it, or for a single level a number,
            as `FasterRCNN` takes it.
        return_layers: for torchvision's `BackboneWithFPN`: its children of these names give these maps.
        strides: pixels of the image that one pixel of each map covers.
    """

    out_channels: int | list[int]

    def __init__(self, model: VGG, levels: Sequence[int], *, frozen: int = 0) -> None:
        super().__init__()
        last = len(model.spec.blocks)
        if not levels or any(a >= b for a, b in pairwise(levels)) or not (levels[0] >= 1 and levels[-1] <= last):
            raise UsageError(
                f"the levels cannot be {tuple(levels)}",
                f"give some of 1…{last}, in rising order, for example (3, 4, 5)",
            )
        if not 0 <= frozen <= levels[-1]:
            raise UsageError(
                f"the number of frozen blocks cannot be {frozen}", f"give 0…{levels[-1]}, the blocks that there are"
            )
        start = 0
        for number, end in enumerate(_block_ends(model.spec)[: levels[-1]], 1):
            self.add_module(f"block{number}", deepcopy(model.features[start:end]))
            start = end
        channels = [model.spec.blocks[level - 1][-1] for level in levels]
        self.out_channels = channels[0] if len(channels) == 1 else channels
        self.return_layers = {f"block{level}": str(index) for index, level in enumerate(levels)}
        self.strides = tuple(2 ** (level - 1) for level in levels)
        self._frozen = frozen
        for block in list(self.children())[:frozen]:
            block.requires_grad_(False)
        self.train(model.training)

    def train(self, mode: bool = True) -> Self:
        """Frozen blocks stay in evaluation mode: their batch norms must not move either."""
        super().train(mode)
        for block in list(self.children())[: self._frozen]:
            block.eval()
        return self

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        if min(x.shape[-2:]) < self.strides[-1]:
            raise InputError(
                f"an image of {x.shape[-1]} × {x.shape[-2]} pixels", f"give at least {self.strides[-1]} a side"
            )
        found: OrderedDict[str, Tensor] = OrderedDict()
        for name, block in self.named_children():
            x = block(x)
            if name in self.return_layers:
                found[self.return_layers[name]] = x
        return found


def _block_ends(spec: ModelSpec) -> list[int]:
    """The index of each block's pool: there the next block starts."""
    return [layer.index for layer in layers_of(spec) if layer.kind == "pool" and layer.part == "features"]


def backbone(
    source: ModelSpec | VGG | str | os.PathLike[str],
    levels: Sequence[int] = (3, 4, 5),
    *,
    frozen: int = 0,
    seed: int = 0,
) -> Backbone:
    """The feature maps of a VGG as a torch module that torchvision's detectors accept, in training mode.

    Args:
        source: a checkpoint's directory (in a bundle: ``BUNDLE/checkpoint``), a model, or a spec for fresh weights.
            Weights are copied.
        levels: blocks whose last ReLU is given, rising. What lies behind the last is left out.
        frozen: blocks, from the first, that do not learn; Fast R-CNN froze 2 of a VGG-16 (Girshick 2015, section 4.5).
        seed: of fresh weights.

    Raises:
        UsageError: levels or frozen blocks that the network does not have.
        CheckpointError: no checkpoint, or a damaged one.
    """
    if isinstance(source, ModelSpec):
        model = new_vgg(source, seed=seed)
    else:
        model = source if isinstance(source, VGG) else load_model(source)
    return Backbone(model, levels, frozen=frozen).train()
