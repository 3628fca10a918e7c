"""Inputs for a model of which no data set is known: images with edges, gradients and texture, the same everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggdeploy.spec import PreprocessSpec


def synthetic_images(count: int, spec: PreprocessSpec, *, seed: int = 0) -> NDArray[np.uint8]:
    """``uint8 [count, crop, crop, channels]``: coarse random colours, smoothly enlarged, with fine noise on top.

    Plain noise would do as input, and excites few of the channels that pictures excite.
    """
    random = np.random.Generator(np.random.PCG64(seed))  # the stream of PCG64 is fixed by NumPy's policy
    size, channels = spec.crop, spec.channels
    images = np.empty((count, size, size, channels), np.uint8)
    for image in images:
        cells = int(random.integers(2, 9))
        for channel in range(channels):
            coarse = Image.fromarray(random.integers(0, 256, (cells, cells), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
            noise = random.integers(-16, 17, (size, size), dtype=np.int16)
            image[..., channel] = np.clip(smooth + noise, 0, 255)
    return images
