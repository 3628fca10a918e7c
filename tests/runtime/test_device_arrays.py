"""Arrays of other libraries, taken and given without a copy. The capsules are real: NumPy makes them and takes them.

GPU memory is host memory here (`fakes.gpu`), so a DLPack array of the CPU can stand for one of CUDA.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from fakes.gpu import CLASSES, OUT_OF_MEMORY, C, H, W, expected, pixels, view

from vggdeploy.errors import CudaError, GpuMemoryError, InputError
from vggdeploy.runtime.gpu import cuda, dlpack
from vggdeploy.runtime.gpu.device_arrays import DeviceArray, borrow
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import Device, TensorSpec

CUDA = Device("cuda")
SPEC = TensorSpec("image", "uint8", ("N", H, W, C))


def aligned(values: np.ndarray, offset: int = 0) -> np.ndarray:
    block = np.zeros(values.nbytes + 512, np.uint8)
    start = -block.ctypes.data % 256 + offset
    array = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[:] = values
    return array


class Torch:
    """An array with DLPack alone, as PyTorch's: NumPy's own capsule, with the device changed in it."""

    def __init__(self, values: np.ndarray, device: tuple[int, int] = (2, 0), error: Exception | None = None) -> None:
        self.values, self.device, self.error = values, device, error
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> object:
        self.streams.append(stream)
        if self.error:
            raise self.error
        capsule = self.values.__dlpack__()
        managed = ctypes.cast(dlpack._pointer(id(capsule), b"dltensor"), ctypes.POINTER(dlpack._Managed)).contents
        managed.tensor.device.type, managed.tensor.device.id = self.device
        return capsule


class Cupy:
    """An array with the CUDA array interface alone."""

    def __init__(self, values: np.ndarray, **changes: Any) -> None:
        self.values = values
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (values.ctypes.data, False),
            "version": 3,
            **changes,
        }


@pytest.mark.parametrize("kind", [Torch, Cupy])
def test_memory_is_taken_as_it_is(gpu, kind):
    gpu()
    values = aligned(pixels(3))
    taken = borrow(kind(values), SPEC, CUDA, stream=None)
    assert (taken.address, taken.shape) == (values.ctypes.data, values.shape)


def test_a_capsule_s_memory_lives_as_long_as_it_is_borrowed(gpu):
    gpu()
    values = aligned(pixels(2))
    taken = borrow(Torch(values), SPEC, CUDA, stream=None)
    address, copy = taken.address, values.copy()
    del values
    gc.collect()
    np.testing.assert_array_equal(view(address, copy.nbytes, np.uint8).reshape(copy.shape), copy)


@pytest.mark.parametrize(
    ("array", "cause", "hint"),
    [
        (pixels(2), "not in CUDA memory", "run()"),
        (Torch(aligned(pixels(2)), device=(2, 1)), "on cuda:1, the session on cuda:0", "move it"),
        (Torch(aligned(pixels(2))[:, ::-1]), "not contiguous", "contiguous()"),
        (Torch(aligned(pixels(2).astype(np.int16))), "is int16[2, 2, 2, 3]", "image: uint8"),
        (Torch(aligned(pixels(2))[:, :1]), "is uint8[2, 1, 2, 3]", "image: uint8"),
        (Torch(aligned(pixels(2), offset=16)), "no multiple of 256", "clone()"),
        (Torch(aligned(pixels(2)), error=RuntimeError("requires grad\nsecond line")), "requires grad", "detach()"),
        (Cupy(aligned(pixels(2)), strides=(1, 2, 3, 4)), "not contiguous", "ascontiguousarray"),
        (Cupy(aligned(pixels(2)).astype(np.float32)), "is float32[2, 2, 2, 3]", "image: uint8"),
        ([1, 2, 3], "is a list", "__dlpack__"),
    ],
)
def test_what_cannot_be_taken_over_is_said_and_never_copied(gpu, array, cause, hint):
    gpu()
    with pytest.raises(InputError) as caught:
        borrow(array, SPEC, CUDA, stream=None)
    assert cause in caught.value.cause and hint in caught.value.hint


def test_an_address_of_another_gpu_is_found_out(gpu):
    cudart, _ = gpu()
    values = aligned(pixels(2))
    cudart.device_of[values.ctypes.data] = 1
    with pytest.raises(InputError, match="on cuda:1"):
        borrow(Cupy(values), SPEC, CUDA, stream=None)


def test_the_producer_is_told_our_stream_and_its_own_is_waited_for(gpu):
    cudart, _ = gpu()
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        torch = Torch(aligned(pixels(2)))
        borrow(torch, SPEC, CUDA, stream=stream)
        borrow(torch, SPEC, CUDA, stream=None)
        assert torch.streams == [stream, dlpack.NO_SYNC]
        order: list[str] = []
        theirs = cuda.open_stream(stack)
        cudart.put(theirs, lambda: order.append("their work"))
        borrow(Cupy(aligned(pixels(2)), stream=theirs), SPEC, CUDA, stream=stream)
        cudart.put(stream, lambda: order.append("our work"))
        cuda.wait(stream)
        assert order == ["their work", "our work"]
        cuda.wait(theirs)


@pytest.mark.parametrize("kind", [Torch, Cupy])
def test_a_batch_between_arrays_on_the_gpu_moves_no_byte_over_the_bus(gpu, source, kind):
    cudart, library = gpu()
    image = pixels(3)
    with EngineSession(source) as session:
        logits = session.run_on_device({"image": kind(aligned(image))})["logits"]
        assert (logits.shape, logits.dtype, logits.device) == ((3, CLASSES), np.float32, CUDA)
        assert "cudaMemcpyAsync" not in cudart.calls
        np.testing.assert_array_equal(logits.numpy(), expected(image))
    np.testing.assert_array_equal(logits.numpy(), expected(image))  # it outlives its session
    del logits
    gc.collect()
    assert not cudart.alive and not library.alive


def test_arrays_to_write_to_are_written_to_and_given_back(gpu, source):
    cudart, _ = gpu()
    image, target = pixels(4), Torch(aligned(np.zeros((4, CLASSES), np.float32)))
    with EngineSession(source) as session:
        before = cudart.calls.count("cudaMalloc")
        out = session.run_on_device({"image": Torch(aligned(image))}, out={"logits": target})
        assert out["logits"] is target
        assert cudart.calls.count("cudaMalloc") == before
    np.testing.assert_array_equal(target.values, expected(image))


def test_the_caller_s_stream_orders_the_batch_and_the_cpu_waits_for_nothing(gpu, source):
    cudart, _ = gpu()
    values = aligned(np.zeros((2, H, W, C), np.uint8))
    image, target = pixels(2), Torch(aligned(np.zeros((2, CLASSES), np.float32)))
    seen: list[np.ndarray] = []
    with EngineSession(source) as session, ExitStack() as stack:
        stream = cuda.open_stream(stack)
        cudart.put(stream, lambda: np.copyto(values, image))  # the kernel that makes the image
        session.run_on_device({"image": Torch(values)}, out={"logits": target}, stream=stream)
        cudart.put(stream, lambda: seen.append(target.values.copy()))  # the kernel that uses the logits
        assert not target.values.any()
        assert not {"cudaStreamSynchronize", "cudaEventSynchronize"} & set(cudart.calls)
        cuda.wait(stream)
    np.testing.assert_array_equal(seen[0], expected(image))


def test_what_a_batch_reads_is_kept_until_it_is_done_and_not_for_ever(gpu, source):
    import weakref

    gpu()
    with EngineSession(source) as session:
        image = Torch(aligned(pixels(2)))
        gone = weakref.ref(image)
        result = session.run_on_device({"image": image})["logits"]
        del image
        gc.collect()
        assert gone() is not None
        result.numpy()
        session.run_on_device({"image": Torch(aligned(pixels(1)))})
        gc.collect()
        assert gone() is None


def test_batches_of_both_ways_take_turns_and_graphs_stay_right(gpu, source):
    gpu()
    with EngineSession(source) as session:
        for seed in range(8):
            image = pixels(2, seed)
            np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))
            result = session.run_on_device({"image": Torch(aligned(image))})["logits"]
            np.testing.assert_array_equal(result.numpy(), expected(image))


def test_batches_of_different_sizes_and_outside_the_profile_are_refused(gpu, source):
    cudart, _ = gpu()
    with EngineSession(source) as session:
        target = Torch(aligned(np.zeros((3, CLASSES), np.float32)))
        with pytest.raises(InputError, match="'image' has 2, 'logits' has 3"):
            session.run_on_device({"image": Torch(aligned(pixels(2)))}, out={"logits": target})
        with pytest.raises(InputError, match="outside 1…4"):
            session.run_on_device({"image": Torch(aligned(pixels(5)))})
        with pytest.raises(InputError, match="outputs \\['pool5'\\]"):
            session.run_on_device({"image": Torch(aligned(pixels(2)))}, out={"pool5": target})
        image = pixels(2)
        np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))
    assert not cudart.alive


def test_no_memory_for_the_outputs_starts_nothing_and_leaves_nothing(gpu, source):
    cudart, _ = gpu()
    with EngineSession(source) as session:
        held = len(cudart.alive)
        cudart.fail_at, cudart.error = "cudaMalloc", OUT_OF_MEMORY
        with pytest.raises(GpuMemoryError):
            session.run_on_device({"image": Torch(aligned(pixels(2)))})
        cudart.fail_at = None
        assert len(cudart.alive) == held


def given(values: np.ndarray) -> DeviceArray:
    array = DeviceArray(values.shape, values.dtype.name, CUDA)
    view(array.address, values.nbytes, values.dtype)[:] = values.reshape(-1)
    return array


class OnCpu:
    """A `DeviceArray` whose capsule says CPU, so that NumPy takes it."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(self, **how: Any) -> object:
        a = self._array
        return dlpack.export(a, a.address, a.shape, a.dtype.name, self.__dlpack_device__())


@pytest.mark.parametrize("shape", [(3, 4), (2, 1, 5, 3), (1,)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "float16", "int64"])
def test_numpy_reads_our_capsule_without_a_copy_and_frees_it(gpu, shape, dtype):
    cudart, _ = gpu()
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    array = given(values)
    taken = np.from_dlpack(OnCpu(array))
    assert (taken.ctypes.data, taken.dtype, taken.shape) == (array.address, values.dtype, shape)
    del array
    gc.collect()
    np.testing.assert_array_equal(taken, values)  # the memory belongs to it now
    assert len(cudart.alive) == 1
    del taken
    gc.collect()
    assert not cudart.alive and dlpack.exported() == 0


def test_pytorch_makes_and_takes_the_same_capsules(gpu):
    import torch

    cudart, _ = gpu()
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    read = dlpack.read(tensor.__dlpack__())
    assert read == dlpack.Tensor(tensor.data_ptr(), (2, 3), "float32", True, (dlpack.CPU, 0))
    assert not dlpack.read(tensor.T.__dlpack__()).contiguous
    assert dlpack.read(tensor[1:].__dlpack__()).address == tensor.data_ptr() + 12
    assert dlpack.read(tensor.bfloat16().__dlpack__()).dtype == "dlpack4x16"
    array = given(tensor.numpy())
    taken = torch.from_dlpack(OnCpu(array))
    assert taken.data_ptr() == array.address and taken.equal(tensor)
    del array, taken
    gc.collect()
    assert not cudart.alive and dlpack.exported() == 0


def test_a_capsule_that_nobody_takes_is_freed(gpu):
    cudart, _ = gpu()
    array = given(np.zeros((2, 3), np.float32))
    capsule = array.__dlpack__(stream=dlpack.NO_SYNC)
    assert dlpack.read(capsule) == dlpack.Tensor(array.address, (2, 3), "float32", True, (dlpack.CUDA, 0))
    del array
    gc.collect()
    assert len(cudart.alive) == dlpack.exported() == 1
    del capsule
    gc.collect()
    assert not cudart.alive and dlpack.exported() == 0


@pytest.mark.parametrize("stream", [None, 1, 2, 0x1000])
def test_the_consumer_s_stream_waits_for_the_values(gpu, stream):
    cudart, _ = gpu()
    array = given(np.zeros((2, 3), np.float32))
    array.ready = cuda.Event()
    array.__dlpack__(stream=stream)
    name, arguments = cudart.calls[-1], cudart.arguments[-1]
    assert (name, arguments[0]) == ("cudaStreamWaitEvent", stream or dlpack.LEGACY_STREAM)
    before = len(cudart.calls)
    array.__dlpack__(stream=dlpack.NO_SYNC)
    assert len(cudart.calls) == before


def test_the_cuda_array_interface_waits_and_names_no_stream(gpu):
    cudart, _ = gpu()
    array = given(np.zeros((2, 3), np.float32))
    array.ready = cuda.Event()
    described = array.__cuda_array_interface__
    assert cudart.calls[-1] == "cudaEventSynchronize"
    assert described == {
        "shape": (2, 3), "typestr": "<f4", "data": (array.address, False), "strides": None, "stream": None, "version": 3,
    }  # fmt: skip
    assert "float32[2, 3] on cuda:0" in repr(array)


@pytest.mark.parametrize("how", [{"copy": True}, {"dl_device": (1, 0)}])
def test_a_copy_or_another_device_is_refused_as_the_protocol_says(gpu, how):
    gpu()
    with pytest.raises(BufferError):
        given(np.zeros((1, 1), np.float32)).__dlpack__(stream=-1, **how)


def test_a_used_or_foreign_capsule_is_an_error_and_no_crash():
    capsule = np.zeros((2, 3), np.float32).__dlpack__()
    np.from_dlpack(type("Once", (), {"__dlpack__": lambda *a, **k: capsule, "__dlpack_device__": lambda s: (1, 0)})())
    for wrong in (capsule, object(), None):
        with pytest.raises(ValueError, match="DLPack capsule"):
            dlpack.read(wrong)


def test_an_event_tells_whether_it_happened(gpu):
    cudart, _ = gpu()
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        start, end = cuda.Event(timing=True), cuda.Event(timing=True)
        start.record(stream)
        end.record(stream)
        assert not end.happened()
        cuda.wait(stream)
        assert end.happened() and end.since(start) == 0.25
        cudart.fail_at = "cudaEventQuery"
        with pytest.raises(CudaError, match="cudaEventQuery failed"):
            end.happened()
        cudart.fail_at = None
        del start, end
        gc.collect()
    assert not cudart.alive
