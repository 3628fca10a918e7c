"""The GPU itself: what it says of itself, copies, memory that runs out, and the proofs of ``doctor --self-test``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

import numpy as np

from vggdeploy.bench.gpu.nvml import describe_gpu
from vggdeploy.doctor.doctor import Outcome, self_test
from vggdeploy.errors import GpuMemoryError, VggdeployError
from vggdeploy.records.gpu_day import Check, CopyRate, Fact
from vggdeploy.runtime.gpu import cuda
from vggdeploy.types import Device

_CUDA = Device("cuda")
_SIZES = (4 * 2**10, 64 * 2**10, 2**20, 16 * 2**20, 256 * 2**20)
_LEAST_COPIES = 10
_COPY_SECONDS = 0.3


def identity() -> Iterator[Fact]:
    for name, value in describe_gpu(_CUDA).items():
        yield Fact(name=name, value=value)


def tried() -> Iterator[Check]:
    for proof in self_test().proofs:
        yield Check(
            what=f"{proof.what} on {proof.device}",
            outcome=str(proof.outcome),
            detail=proof.detail,
            reason=proof.reason,
        )


def copies() -> Iterator[CopyRate]:
    """By the host's clock, each waited for: pageable memory is copied by the driver before the call returns."""
    cuda.use(_CUDA)
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        address = cuda.device_memory(stack, max(_SIZES))
        for pinned in (True, False):
            whole = (
                cuda.pinned_array(stack, (max(_SIZES),), "uint8") if pinned else np.empty(max(_SIZES), dtype=np.uint8)
            )
            whole[:] = 1  # pages that were never written are no memory yet
            for size in _SIZES:
                for to_gpu in (True, False):
                    seconds = _copy_seconds(whole[:size], address, stream, to_gpu=to_gpu)
                    yield CopyRate(to_gpu=to_gpu, pinned=pinned, bytes=size, gigabytes_per_second=size / seconds / 1e9)


def _copy_seconds(host: np.ndarray, address: int, stream: int, *, to_gpu: bool) -> float:
    times: list[float] = []
    end = time.perf_counter() + _COPY_SECONDS
    while len(times) < _LEAST_COPIES or time.perf_counter() < end:
        start = time.perf_counter()
        if to_gpu:
            cuda.upload(address, host, stream)
        else:
            cuda.download(host, address, stream)
        cuda.wait(stream)
        times.append(time.perf_counter() - start)
    return median(times)


def exhausted() -> Iterator[Check]:
    """Memory that runs out is an error of its own kind, and the GPU goes on after it."""
    cuda.use(_CUDA)
    cuda.call("cudaFree", 0)
    before, total = cuda.memory()
    with ExitStack() as stack:
        taken = 0
        try:
            while taken <= total:
                cuda.device_memory(stack, 2**30)
                taken += 2**30
            raise VggdeployError(f"{taken:,} bytes were given, of {total:,}", "report this")
        except GpuMemoryError as error:
            yield Check(
                what="memory runs out", outcome=str(Outcome.PASSED), detail=f"{taken:,} bytes, then: {error.cause}"
            )
    after = cuda.memory()[0]
    lost = before - after
    fine = lost < 64 * 2**20
    yield Check(
        what="memory comes back",
        outcome=str(Outcome.PASSED if fine else Outcome.FAILED),
        detail=f"{lost:,} bytes fewer are free than before",
    )
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        host, back = (cuda.pinned_array(stack, (2**20,), "uint8") for _ in range(2))
        host[:] = np.random.default_rng(0).integers(0, 256, host.size, dtype=np.uint8)
        address = cuda.device_memory(stack, host.nbytes)
        cuda.upload(address, host, stream)
        cuda.download(back, address, stream)
        cuda.wait(stream)
        same = bool((host == back).all())
    yield Check(what="the GPU computes after it", outcome=str(Outcome.PASSED if same else Outcome.FAILED))
