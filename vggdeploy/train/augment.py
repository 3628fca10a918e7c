"""Augmentation: seeded changes of the training images that leave their class as it is.

Kernels are torchvision.transforms.v2's, applied to the uint8 batch. Its transform classes draw once for a whole batch;
here every image gets its own numbers, from a generator of the step's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

# Of the side, what an image may move by: 4 pixels of 32, as He et al. 2016 (section 4.2) train on CIFAR-10, and for short
# trainings 2, as Jordan 2024 (arXiv:2404.00498).
CROP_SHARE, SHIFT_SHARE = 8, 16
MAX_ANGLE = 15.0  # degrees
JITTER = 0.2  # brightness and contrast are multiplied by 1 ± this


def augment(images: Tensor, kinds: Sequence[str], seed: int) -> Tensor:
    """``uint8 [N, H, W, C]`` → the same, changed; the same seed changes the same images in the same way."""
    generator = torch.Generator().manual_seed(seed)
    batch = images.permute(0, 3, 1, 2)
    for kind in kinds:
        batch = _KINDS[kind](batch, generator)
    return batch.permute(0, 2, 3, 1).contiguous()


def _flip(batch: Tensor, generator: Generator) -> Tensor:
    mirrored = torch.rand(len(batch), generator=generator) < 0.5
    # NumPy, in the thread that prepares batches: torch's threads are at work on the network.
    images, places = batch.numpy().copy(), mirrored.numpy()
    images[places] = images[places][..., ::-1]
    return torch.from_numpy(images)


def _moved(batch: Tensor, generator: Generator, *, share: int) -> Tensor:
    side = batch.shape[-1]
    border = max(1, side // share)
    places = torch.randint(0, 2 * border + 1, (len(batch), 2), generator=generator).tolist()
    before, (count, channels) = batch.numpy(), batch.shape[:2]
    padded = np.zeros((count, channels, side + 2 * border, side + 2 * border), np.uint8)
    padded[:, :, border:-border, border:-border] = before
    cut = np.empty_like(before)
    for image, (top, left) in enumerate(places):
        cut[image] = padded[image, :, top : top + side, left : left + side]
    return torch.from_numpy(cut)


def _rotate(batch: Tensor, generator: Generator) -> Tensor:
    angles = _between(-MAX_ANGLE, MAX_ANGLE, len(batch), generator)
    turned = [
        functional.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        for image, angle in zip(batch, angles, strict=True)
    ]
    return torch.stack(turned)


def _colour(batch: Tensor, generator: Generator) -> Tensor:
    brightness = _between(1 - JITTER, 1 + JITTER, len(batch), generator)
    contrast = _between(1 - JITTER, 1 + JITTER, len(batch), generator)
    changed = [
        functional.adjust_contrast(functional.adjust_brightness(image, light), strength)
        for image, light, strength in zip(batch, brightness, contrast, strict=True)
    ]
    return torch.stack(changed)


def _between(low: float, high: float, count: int, generator: Generator) -> list[float]:
    return (low + (high - low) * torch.rand(count, generator=generator)).tolist()


_KINDS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "flip": _flip,
    "crop": partial(_moved, share=CROP_SHARE),
    "shift": partial(_moved, share=SHIFT_SHARE),
    "rotate": _rotate,
    "colour": _colour,
}
