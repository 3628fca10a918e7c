"""A device's roof: how fast cuBLAS multiplies two large matrices of a precision here and now. Torch-free, by ctypes."""

from __future__ import annotations

import ctypes
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from vggdeploy.errors import CudaError, IncompatibleError, first_line
from vggdeploy.records.gpu import Roof
from vggdeploy.runtime.gpu import cuda
from vggdeploy.system.optional import installed
from vggdeploy.types import Device, Precision

SIDE = 8192
_SMALL_SIDE = 4096  # where two matrices and their product would not leave half of the free memory
_WARMUP = 3
_SECONDS = 0.5

# cublas_api.h and library_types.h
_OP_N, _OP_T = 0, 1
_COMPUTE_32F, _COMPUTE_32F_PEDANTIC, _COMPUTE_32I = 68, 69, 72
_GEMM_DEFAULT = -1


@dataclass(frozen=True)
class _Kind:
    """The types of a product: of its factors, its result and its sum; PEDANTIC is FP32 without TF32."""

    factor: str
    result: str
    numpy: str
    result_bytes: int
    compute: int


_KINDS = {
    Precision.FP32: _Kind("CUDA_R_32F", "CUDA_R_32F", "float32", 4, _COMPUTE_32F_PEDANTIC),
    Precision.FP16: _Kind("CUDA_R_16F", "CUDA_R_16F", "float16", 2, _COMPUTE_32F),
    Precision.INT8: _Kind("CUDA_R_8I", "CUDA_R_32I", "int8", 4, _COMPUTE_32I),
}


def measure_roof(device: Device, precision: Precision, *, seconds: float = _SECONDS) -> Roof:
    """Multiply random matrices for ``seconds``, timed by CUDA events.

    Raises:
        IncompatibleError: cuBLAS is not here, or has no such product.
    """
    kind = _KINDS.get(precision)
    if kind is None:
        raise IncompatibleError(f"no matrix product is measured for {precision}", "compare with another precision")
    try:
        cuda.use(device)
        with ExitStack() as stack:
            return _measure(stack, load_cublas(), kind, precision, seconds)
    except CudaError as error:
        raise IncompatibleError(f"the roof of {device} cannot be measured: {error.cause}", error.hint) from error


def load_cublas() -> Any:
    """The library, from the ``nvidia-cublas`` package or the system.

    Raises:
        IncompatibleError: it is not there.
    """
    try:
        if installed("cuda.pathfinder"):
            from cuda import pathfinder

            return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
        return ctypes.CDLL("libcublas.so")
    except Exception as error:  # pathfinder's own kinds of "not found", and OSError
        raise IncompatibleError(f"cuBLAS is not here: {first_line(error)}", "pip install nvidia-cublas") from error


def _measure(stack: ExitStack, cublas: Any, kind: _Kind, precision: Precision, seconds: float) -> Roof:
    size = np.dtype(kind.numpy).itemsize
    side = SIDE if SIDE * SIDE * (2 * size + kind.result_bytes) < cuda.memory()[0] // 2 else _SMALL_SIDE
    stream = cuda.open_stream(stack)
    handle = ctypes.c_void_p()
    _check(cublas, "cublasCreate_v2", ctypes.byref(handle))
    stack.callback(_check, cublas, "cublasDestroy_v2", handle)
    _check(cublas, "cublasSetStream_v2", handle, ctypes.c_void_p(stream))
    factors = [cuda.device_memory(stack, side * side * size) for _ in range(2)]
    result = cuda.device_memory(stack, side * side * kind.result_bytes)
    stack.callback(cuda.wait, stream)
    for seed, address in enumerate(factors):  # zeros draw less power, and run at higher clocks than any real work
        cuda.upload(address, _random(side, kind.numpy, seed), stream)
        cuda.wait(stream)
    scalar = ctypes.c_int32 if kind.compute == _COMPUTE_32I else ctypes.c_float
    one, zero = scalar(1), scalar(0)
    types = cuda.bindings().cudaDataType
    factor, product = (int(getattr(types, name)) for name in (kind.factor, kind.result))
    n = ctypes.c_int(side)

    def multiply() -> None:
        _check(
            cublas, "cublasGemmEx", handle, _OP_T, _OP_N, n, n, n, ctypes.byref(one),
            ctypes.c_void_p(factors[0]), factor, n, ctypes.c_void_p(factors[1]), factor, n, ctypes.byref(zero),
            ctypes.c_void_p(result), product, n, kind.compute, _GEMM_DEFAULT,
        )  # fmt: skip

    for _ in range(_WARMUP):
        multiply()
    cuda.wait(stream)
    best, count = float("inf"), 0
    start, end = cuda.Event(timing=True), cuda.Event(timing=True)
    stop = time.perf_counter() + seconds
    while count < _WARMUP or time.perf_counter() < stop:
        start.record(stream)
        multiply()
        end.record(stream)
        end.wait()
        best = min(best, end.since(start))
        count += 1
    return Roof(precision=precision, side=side, products=count, tera_ops=2 * side**3 / (best * 1e-3) / 1e12)


def _random(side: int, dtype: str, seed: int) -> Any:
    random = np.random.default_rng(seed)
    if dtype == "int8":
        return random.integers(-127, 128, (side, side), dtype=np.int8)
    return random.standard_normal((side, side), dtype=np.float32).astype(dtype)


def _check(cublas: Any, name: str, *arguments: Any) -> None:
    status = getattr(cublas, name)(*arguments)
    if status:
        cublas.cublasGetStatusString.restype = ctypes.c_char_p
        raise IncompatibleError(
            f"{name} failed: {cublas.cublasGetStatusString(status).decode()}", "see: vggdeploy doctor --self-test"
        )
