"""An SSD of torchvision with its preprocessing in front and its heads' raw numbers behind: the module that is exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vggdeploy.spec import PreprocessSpec


class DetectorGraph(nn.Module):
    """``image``, ``uint8 [N, side, side, C]`` → ``offsets [N, A, 4]`` and ``logits [N, A, classes]``, ``float32``.

    Resizing stays outside, and so do softmax, decoding and suppression: what they do depends on the image.
    """

    scale: Tensor
    shift: Tensor
    names = ("offsets", "logits")

    def __init__(self, detector: Any, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.head
        shape = (1, preprocess.channels, 1, 1)
        self.register_buffer("scale", torch.tensor(preprocess.scale).reshape(shape), persistent=False)
        self.register_buffer("shift", torch.tensor(preprocess.shift).reshape(shape), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.backbone.parameters()).dtype

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image.float().permute(0, 3, 1, 2) * self.scale + self.shift
        answers = self.head(list(self.backbone(x).values()))
        return answers["bbox_regression"], answers["cls_logits"]


def default_boxes(detector: Any, preprocess: PreprocessSpec) -> Tensor:
    """The boxes ``[A, 4]`` that offsets are counted from, corners in pixels, as torchvision's own generator gives them."""
    from torchvision.models.detection.image_list import ImageList

    side = preprocess.crop
    image = torch.zeros(1, preprocess.channels, side, side)
    with torch.inference_mode():
        maps = list(detector.backbone(image).values())
        (boxes,) = detector.anchor_generator(ImageList(image, [(side, side)]), maps)
    return boxes.float().clone()
