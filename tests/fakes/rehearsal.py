"""A pytest plugin that makes the processor the GPU of ``-m gpu``: what prepares and counts on a real one is tried before there
is one. It proves nothing about a GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fakes import standin
from fakes.gpu import OK, OUT_OF_MEMORY, Cudart
from fakes.processor import Processor, compile_kernels

from vggdeploy.runtime.gpu import cuda

MEMORY = 64 * 2**20


class SmallGpu(Cudart):
    """A fake that has so much memory, and says what is left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def free(self) -> int:
        return MEMORY - sum(self.sizes.values())

    def cudaMalloc(self, size: int) -> Any:
        if size > self.free():
            return OUT_OF_MEMORY, None
        status, address = super().cudaMalloc(size)
        self.sizes[address] = size
        return status, address

    def cudaFree(self, address: int) -> Any:
        self.sizes.pop(int(address))
        return super().cudaFree(address)

    def cudaMemGetInfo(self) -> Any:
        return OK, self.free(), MEMORY


cudart = SmallGpu()
cuda.bindings = lambda: cudart
cuda.find_gpu = lambda device: cuda.Gpu(0, "a rehearsed GPU", "sm90", "13.0")
standin.Library.__init__.__kwdefaults__["loader"] = Processor(cudart, compile_kernels(Path(tempfile.mkdtemp())))
