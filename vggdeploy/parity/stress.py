"""Images at the ends of the pixels' range, which no data set holds: where a graph overflows, saturates or forgets a corner.

They are made by formula, so only the reference's outputs for them travel in a bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle, Manifest
from vggdeploy.errors import counted
from vggdeploy.parity.reference import Reference
from vggdeploy.preprocess import normalise
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import ImageSource

_PERIODS = (1, 2, 8)  # of checkerboards, in pixels
_SEED = 0


def stress_images(spec: PreprocessSpec, count: int | None = None) -> NDArray[np.uint8]:
    """``uint8 [K, crop, crop, channels]``, the first ``count`` of: black, white, noise, black and white noise,
    checkerboards, gradients along both axes, a white point, a black point, grey, each mixture of full and empty channels.

    The order is fixed, so that a bundle with large feature maps can keep the reference's outputs for the first of them.
    """
    return np.stack(list(islice(_patterns(spec.crop, spec.channels), count)))


def _patterns(side: int, channels: int) -> Iterator[NDArray[np.uint8]]:
    shape = (side, side, channels)
    yield np.zeros(shape, np.uint8)
    yield np.full(shape, 255, np.uint8)
    random = np.random.Generator(np.random.PCG64(_SEED))  # the stream of PCG64 is fixed by NumPy's policy
    yield random.integers(0, 256, shape, dtype=np.uint8)
    yield random.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255)
    rows, columns = np.indices((side, side), dtype=np.int32)
    ramp = columns * 255 // max(side - 1, 1)
    point = ((rows == side // 2) & (columns == side // 2)) * 255
    boards = [(rows // period + columns // period) % 2 * 255 for period in _PERIODS]
    for plane in (*boards, ramp, ramp.T, point, 255 - point, np.full((side, side), 128)):
        yield np.repeat(plane.astype(np.uint8)[..., None], channels, axis=2)
    for mixture in product((0, 255), repeat=channels):
        if 0 < sum(mixture) < 255 * channels:
            yield np.broadcast_to(np.array(mixture, np.uint8), shape)


def stress_input(manifest: Manifest, count: int | None = None) -> NDArray[np.generic]:
    """The first ``count`` stress images as the graph wants them."""
    images = stress_images(manifest.preprocess, count)
    return images if manifest.input.dtype == "uint8" else normalise(images, manifest.preprocess)


def stress_reference(bundle: Bundle) -> Reference | None:
    """The stress images and the reference's outputs for them; None for a bundle that was made without."""
    outputs = bundle.stress()
    if not outputs:
        return None
    images = stress_input(bundle.manifest, len(next(iter(outputs.values()))))
    return Reference(images, dict(outputs), f"stress set ({counted(len(images), 'image')})", source=ImageSource.STRESS)
