"""The network of the fake engines: it adds up the pixels of an image, and class k gets the sum plus k."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

H, W, C, CLASSES = 2, 2, 3, 4
ITEM = H * W * C


def pixels(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, H, W, C), dtype=np.uint8)


def expected(image: np.ndarray) -> np.ndarray:
    """What the "engine" computes."""
    return image.reshape(len(image), -1).sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)


def view(address: int, size: int, dtype: Any) -> np.ndarray:
    """Memory of the host as an array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)
