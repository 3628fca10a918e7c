"""Which held-out images the network had right that was trained, before any step changed it. Torch-free."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

from vggdeploy.records import Origin

Hits = NDArray[np.bool_]


def pack(hits: Hits) -> str:
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpack(text: str, count: int) -> Hits | None:
    """The reverse of `pack`; None where ``text`` is not of ``count`` images."""
    data = _bits(text)
    return data[:count] if data is not None and len(data) == 8 * -(-count // 8) else None


def first_hits(origin: Origin | None, dataset: str, split: str, count: int) -> Hits | None:
    """Of the first ``count`` images of a split; None where they are not known: no step changed the network, or other
    images."""
    if origin is None or origin.dataset != dataset:
        return None
    data = _bits(origin.hits.get(split, ""))
    return data[:count] if data is not None and len(data) >= count else None


def _bits(text: str) -> Hits | None:
    try:
        return np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8)).astype(bool)
    except ValueError:
        return None
