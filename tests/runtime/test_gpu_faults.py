"""Every CUDA call of a session's life fails once, in turn: the error names it, and nothing stays behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from fakes.gpu import CLASSES, ILLEGAL_ADDRESS, ITEM, OUT_OF_MEMORY, C, Cudart, H, W, expected, pixels, view
from fakes.library import SUM_BYTES

from vggdeploy.errors import CudaError, GpuMemoryError, VggdeployError
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.device_arrays import DeviceArray
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import Device

CUDA = Device("cuda")
DESTROY = (
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
)
CAPTURE = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy")


def on_device(image: np.ndarray) -> DeviceArray:
    array = DeviceArray(image.shape, "uint8", CUDA)
    view(array.address, image.nbytes, np.uint8)[:] = image.reshape(-1)
    return array


def life(session: EngineSession) -> None:
    """All that a session can do: batches with and without a graph, some under way together, some between arrays."""
    images = [pixels(size, seed) for seed, size in enumerate((2, 4, 2, 2, 3))]
    with session:
        for image in images:
            np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))
        handles = [session.run_async({"image": image}) for image in images]
        for image, handle in zip(images, handles, strict=True):
            np.testing.assert_array_equal(handle.result()["logits"], expected(image))
        image = images[1]
        logits = session.run_on_device({"image": on_device(image)})["logits"]
        np.testing.assert_array_equal(logits.numpy(), expected(image))
        target = DeviceArray((4, CLASSES), "float32", CUDA)
        session.run_on_device({"image": on_device(image)}, out={"logits": target})
        np.testing.assert_array_equal(view(target.address, target.nbytes, np.float32).reshape(4, -1), expected(image))
        with ExitStack() as stack:
            stream = cuda.open_stream(stack)
            logits = session.run_on_device({"image": on_device(image)}, stream=stream)["logits"]
            cuda.wait(stream)
            np.testing.assert_array_equal(
                view(logits.address, logits.nbytes, np.float32).reshape(4, -1), expected(image)
            )


def attempt(session: EngineSession) -> tuple[type[BaseException] | None, str, str]:
    """The error of a life, without its traceback, which would keep alive what is counted afterwards."""
    try:
        life(session)
    except VggdeployError as error:
        return type(error), error.cause, getattr(error, "call", "")
    return None, "", ""


@pytest.fixture
def unraised(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Errors of finalizers, which Python can only print."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: found.append(about.exc_value))
    return found


@pytest.fixture(params=[EngineSession, RtxSession])
def kind(request: pytest.FixtureRequest) -> type[EngineSession]:
    chosen: type[EngineSession] = request.param
    return chosen


@pytest.fixture
def calls(gpu: Callable[..., Any], source: Any, kind: type[EngineSession]) -> list[str]:
    """Those of a life without failures, in order."""
    cudart, library = gpu()
    life(kind(source))
    gc.collect()
    assert not cudart.alive and not library.alive
    return list(cudart.calls)


def in_capture(calls: list[str]) -> set[int]:
    """The numbers of the calls that a capture is made of: one that fails costs the graph, and is no error."""
    inside, found = False, set()
    for number, name in enumerate(calls):
        inside = name in CAPTURE[:1] or (inside and name != "cudaStreamEndCapture")
        if inside or name in CAPTURE:
            found.add(number)
    return found


def test_the_life_makes_every_call_that_a_session_can_make(calls, kind):
    wanted = {
        "cudaSetDevice", "cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaMemcpyAsync",
        "cudaStreamSynchronize", "cudaEventCreateWithFlags", "cudaEventRecord", "cudaStreamWaitEvent",
        "cudaEventSynchronize", "cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy",
    }  # fmt: skip
    graphs = {*CAPTURE, "cudaGraphLaunch", "cudaGraphExecDestroy"} if kind is EngineSession else set()
    assert wanted | graphs <= set(calls)


def test_every_cuda_call_that_fails_is_named_and_leaves_nothing_behind(gpu, source, kind, calls, unraised):
    harmless = in_capture(calls)
    for number, name in enumerate(calls):
        cudart, library = gpu(Cudart(fail_at=number))
        error, cause, call = attempt(kind(source))
        gc.collect()
        where = f"call {number}, {name}"
        if number in harmless:
            assert error is None, f"{where}: {cause}"
        elif error is None:  # a finalizer's, or an event's that was asked for again
            assert unraised or name == "cudaEventQuery", where
        else:
            assert issubclass(error, CudaError), f"{where}: {cause}"
            assert (call, "cudaErrorIllegalAddress" in cause) == (name, True), f"{where}: {cause}"
        unraised.clear()
        assert len(cudart.alive) <= (1 if name in DESTROY else 0), f"{where}: {cudart.kinds()}"
        assert not library.alive, where


def test_every_allocation_that_fails_is_out_of_memory_and_releases_what_was_taken(gpu, source, kind, calls):
    for number, name in enumerate(calls):
        if name not in ("cudaMalloc", "cudaHostAlloc"):
            continue
        cudart, library = gpu(Cudart(fail_at=number, error=OUT_OF_MEMORY))
        error, cause, _ = attempt(kind(source))
        gc.collect()
        assert error is GpuMemoryError or error is None, cause  # None: a lane that the pool does without
        assert error is None or f"{name} failed: out of memory" in cause
        assert not cudart.alive and not library.alive


def test_the_first_lane_that_does_not_fit_is_the_caller_s_error(gpu, source, kind):
    for name in ("cudaMalloc", "cudaHostAlloc"):
        gpu(Cudart(fail_at=name, error=OUT_OF_MEMORY))
        with pytest.raises(GpuMemoryError) as caught:
            life(kind(source))
        assert "batch" in caught.value.hint


def test_an_error_between_two_batches_is_not_blamed_on_the_second(gpu, source, kind):
    cudart, _ = gpu()
    with kind(source) as session:
        cudart.fail_at = "cudaStreamSynchronize"
        with pytest.raises(CudaError):
            session.run({"image": pixels(2)})
        cudart.fail_at = None
        image = pixels(2, seed=9)
        np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))


def test_freeing_goes_on_after_a_failure(gpu, source, kind):
    cudart, _ = gpu()
    with pytest.raises(CudaError), kind(source) as session:
        session.run({"image": pixels(1)})
        cudart.fail_at, cudart.error = "cudaFreeHost", ILLEGAL_ADDRESS
    assert set(cudart.kinds()) == {"host"}


def test_the_sizes_are_those_of_the_largest_batch(gpu, source):
    cudart, _ = gpu()
    with RtxSession(source):
        sizes = [a[0] for name, a in zip(cudart.calls, cudart.arguments, strict=True) if name == "cudaMalloc"]
    assert sizes == [4 * SUM_BYTES, 4 * H * W * C, 4 * CLASSES * 4] == [4 * SUM_BYTES, 4 * ITEM, 4 * CLASSES * 4]
