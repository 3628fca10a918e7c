"""A CUDA driver that runs the stand-in's kernels on the CPU, compiled from the same source by g++: for what is around them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

from fakes.gpu import Cudart
from fakes.standin import KERNELS, SOURCE, THREADS

_HEAD = """
#include <cstddef>
struct Index { long long x = 0; };
static thread_local Index blockIdx, threadIdx, blockDim;
#define __device__ static inline
#define __global__
"""
# Every argument is 64 bits wide, and stands in an array of them.
_CALLER = """
extern "C" void run_{name}(void** a, long long blocks, long long threads) {{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            {name}(({first})a[0], (float*)a[1], (long long)a[2], (long long)a[3], (long long)a[4]);
}}
"""


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """The kernels as a library of the host."""
    firsts = {"add_up": "const unsigned char*", "spread": "const float*"}
    callers = "".join(_CALLER.format(name=name, first=firsts[name]) for name in KERNELS)
    target = folder / "kernels.so"
    command = ["g++", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(target)]
    subprocess.run(command, input=_HEAD + SOURCE.read_text() + callers, text=True, check=True)
    return ctypes.CDLL(str(target))


class Processor:
    """``cuda.bindings.driver``, as far as the stand-in uses it. Work waits in the streams of a fake CUDA runtime."""

    def __init__(self, cudart: Cudart, kernels: ctypes.CDLL) -> None:
        self._cudart = cudart
        self._kernels = kernels
        self.images: list[bytes] = []

    def cuModuleLoadData(self, image: bytes) -> tuple[int, int]:
        self.images.append(image)
        return 0, len(self.images)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[int, str]:
        assert name in self.images[module - 1]
        return 0, name.decode()

    def cuLaunchKernel(
        self, f: str, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: int, kernelParams: int, extra: int,
    ) -> tuple[int]:  # fmt: skip
        assert (gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ) == (1, 1, THREADS, 1, 1)
        pointers = (ctypes.c_void_p * 5).from_address(kernelParams)
        values = (ctypes.c_void_p * 5)(*(ctypes.c_uint64.from_address(p).value for p in pointers))
        run: Any = getattr(self._kernels, f"run_{f}")

        def work() -> None:
            run(values, ctypes.c_longlong(gridDimX), ctypes.c_longlong(blockDimX))

        self._cudart.put(hStream, work)
        return (0,)
