"""Which held-out images the network had right that was trained, before any step changed it. Torch-free."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vggdeploy.parity.metrics import top1
from vggdeploy.parity.spool import Array
from vggdeploy.records import Origin
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.batches import run_batch

Hits = NDArray[np.bool_]


def hits_of(session: CheckedSession, batches: Iterable[tuple[Array, NDArray[np.int64]]]) -> Hits:
    """Which images an open classifier has right, of batches as the graph wants them with their labels."""
    found = []
    for images, labels in batches:
        chosen = top1(run_batch(session, images))
        assert chosen is not None  # noqa: S101  # a classifier that we exported has logits
        found.append(chosen == labels)
    return np.concatenate(found)


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
