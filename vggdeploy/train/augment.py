"""Augmentation: seeded changes of the training images that leave their class as it is.

Kernels are torchvision.transforms.v2's, applied to the uint8 batch. Its transform classes draw once for a whole batch;
here every image gets its own numbers, from a generator of the step's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

# Pixels that a crop may move by, for every 8 of the side: 4 of 32, as He et al. 2016 (section 4.2) train on CIFAR-10.
CROP_SHARE = 8
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
    return torch.where(mirrored[:, None, None, None], functional.horizontal_flip(batch), batch)


def _crop(batch: Tensor, generator: Generator) -> Tensor:
    side = batch.shape[-1]
    border = max(1, side // CROP_SHARE)
    padded = functional.pad(batch, [border])
    places = torch.randint(0, 2 * border + 1, (len(batch), 2), generator=generator).tolist()
    cut = [functional.crop(image, *place, side, side) for image, place in zip(padded, places, strict=True)]
    return torch.stack(cut)


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
    "crop": _crop,
    "rotate": _rotate,
    "colour": _colour,
}
