"""A CUDA runtime (`fakes.cudart`) and a TensorRT in memory, to inject faults: they count what is alive, and fail on demand.

Enumerations, classes and constants are the real modules'; "GPU memory" is host memory, and the "engine" adds up pixels.
Work in a stream is done late, when somebody waits for it: code that forgets to wait, or touches a buffer too early, gets
wrong numbers here too. What CUDA leaves undefined (a shape changed under a captured graph, scratch memory shared by two
streams, pinned memory freed under a copy) is an assertion.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorrt_rtx
from cuda.bindings import runtime as real_cudart
from fakes import library
from fakes.cudart import ILLEGAL_ADDRESS, OUT_OF_MEMORY, Cudart, Work
from fakes.network import CLASSES, ITEM, C, H, W, expected, pixels, view

__all__ = [
    "CLASSES", "ILLEGAL_ADDRESS", "ITEM", "OUT_OF_MEMORY", "C", "Cudart", "H", "Library", "W", "expected", "pixels",
    "real_cudart", "view",
]  # fmt: skip


class Library(library.Library):
    """``tensorrt_rtx``, whose engine computes on the host when its stream is waited for."""

    def __init__(self, fault: str | None = None) -> None:
        super().__init__(tensorrt_rtx, fault)
        self.cudart = Cudart()

    def holds(self, address: int, size: int) -> bool:
        return size <= self.cudart.sizes[address]

    def is_capturing(self, stream: int) -> bool:
        return stream in self.cudart.capturing

    def launch(self, stream: int, addresses: Mapping[str, int], batch: int, scratch: int) -> bool:
        if scratch:
            assert self.cudart.scratch.setdefault(scratch, stream) == stream, "scratch of two streams"

        def work() -> None:
            image = view(addresses["image"], batch * ITEM, np.uint8).reshape(batch, -1)
            logits = view(addresses["logits"], batch * CLASSES * 4, np.float32).reshape(batch, -1)
            logits[:] = image.sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)

        self.cudart.put(stream, work)
        return True

    def launch_without_weights(self, stream: int, addresses: Mapping[str, int], batch: int, scratch: int) -> bool:
        def work() -> None:
            view(addresses["logits"], batch * CLASSES * 4, np.float32)[:] = 0

        self.cudart.put(stream, work)
        return True

    def wait(self, stream: int) -> None:
        self.cudart.drain(stream)

    def after(self, stream: int, work: Work) -> None:
        self.cudart.put(stream, work)
