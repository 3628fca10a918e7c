"""Image files as a graph takes them, for what is done beside the callers' path: decoded where the server decodes, too."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggdeploy.engine.isolation import IsolatedDecoders
from vggdeploy.preprocess import FORMATS, prepare, read_encoded
from vggdeploy.serve.settings import Settings
from vggdeploy.spec import PreprocessSpec


class Pictures:
    """One decoder. With ``--isolate`` it is a process of its own, as every other."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_pixels
        self._decoders = IsolatedDecoders(1, max_pixels=self._limit) if settings.isolate else None

    def prepared(self, data: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """``uint8 [H, W, C]``; errors of `vggdeploy.preprocess.prepare`."""
        if self._decoders is not None:
            return self._decoders.prepare(read_encoded(data, "the image", self._limit), spec)
        return prepare(data, spec, max_pixels=self._limit)

    def size(self, data: bytes) -> tuple[int, int] | None:
        """Width and height of the file. None with ``--isolate``, where nothing in this process reads a stranger's file."""
        if self._decoders is not None:
            return None
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size: Any = image.size
        return int(size[0]), int(size[1])

    def close(self) -> None:
        if self._decoders is not None:
            self._decoders.close()
