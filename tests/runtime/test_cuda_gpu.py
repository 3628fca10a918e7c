"""CUDA, torch, CuPy, ONNX Runtime and NVML on a real GPU, without TensorRT. Opt in with ``pytest -m gpu``.

Written to run where only torch, cuda-bindings and nvidia-ml-py are; what else is missing skips its own test. None of it
counts as passed where it did not run.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from vggdeploy.errors import CudaError, GpuMemoryError, IncompatibleError, InputError
from vggdeploy.runtime import get_backend
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.gpu import cuda, dlpack
from vggdeploy.runtime.gpu.context import Context
from vggdeploy.runtime.gpu.device_arrays import DeviceArray, borrow
from vggdeploy.runtime.gpu.graphs import Graphs
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Device, TensorSpec

pytestmark = pytest.mark.gpu
CUDA = Device("cuda")
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def gpu() -> cuda.Gpu:
    try:
        found = cuda.find_gpu(CUDA)
    except IncompatibleError as error:
        pytest.skip(error.cause)
    cuda.use(CUDA)
    cuda.call("cudaFree", 0)  # the context itself takes memory, once
    return found


def settled() -> int:
    gc.collect()
    return cuda.memory()[0]


def test_the_gpu_says_what_it_is(gpu: cuda.Gpu) -> None:
    assert gpu.name and gpu.capability.startswith("sm")
    assert int(gpu.driver.split(".")[0]) >= 12


def test_an_index_that_there_is_not_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="there is no cuda:99"):
        cuda.find_gpu(Device("cuda", 99))


def test_hundreds_of_buffers_streams_and_events_leave_the_memory_as_it_was() -> None:
    before = settled()
    for _ in range(300):
        with ExitStack() as stack:
            stream = cuda.open_stream(stack)
            cuda.device_memory(stack, 8 * MIB)
            cuda.pinned_array(stack, (MIB,), "uint8")
            event = cuda.Event()
            event.record(stream)
            event.wait()
    assert abs(settled() - before) < 8 * MIB


def test_events_measure_a_copy_and_order_two_streams() -> None:
    with ExitStack() as stack:
        one, other = cuda.open_stream(stack), cuda.open_stream(stack)
        host, back = (cuda.pinned_array(stack, (64 * MIB,), "uint8") for _ in range(2))
        host[:] = np.random.default_rng(0).integers(0, 256, host.shape, dtype=np.uint8)
        back[:] = 0
        address = cuda.device_memory(stack, host.nbytes)
        start, end = cuda.Event(timing=True), cuda.Event(timing=True)
        start.record(one)
        cuda.upload(address, host, one)
        end.record(one)
        end.hold(other)
        cuda.download(back, address, other)
        cuda.wait(other)
        np.testing.assert_array_equal(back, host)
        assert end.happened()
        assert 0 < end.since(start) < 1000


def test_a_captured_copy_is_replayed_with_what_the_buffers_hold_then() -> None:
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        host, back = (cuda.pinned_array(stack, (4096,), "uint8") for _ in range(2))
        address = cuda.device_memory(stack, host.nbytes)
        graphs = Graphs(stack.enter_context(ExitStack()), stream, enabled=True)
        stack.callback(cuda.wait, stream)

        def work(context: object) -> None:
            cuda.upload(address, host, stream)
            cuda.download(back, address, stream)

        assert not graphs.wanted(1)
        assert graphs.wanted(1)
        assert graphs.capture(1, lambda stack: cast(Context, None), work)
        assert graphs.sizes == (1,), graphs.refused
        for value in (3, 7, 250):
            cuda.wait(stream)
            host[:], back[:] = value, 0
            assert graphs.replay(1)
            cuda.wait(stream)
            assert (back == value).all()


def test_a_capture_that_breaks_is_refused_and_the_stream_goes_on() -> None:
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        graphs = Graphs(stack.enter_context(ExitStack()), stream, enabled=True, batches=(1,))
        times = []

        def work(context: object) -> None:
            times.append(1)
            if len(times) == 2:
                cuda.wait(stream)  # CUDA does not allow that in a capture

        assert graphs.capture(1, lambda stack: cast(Context, None), work)
        assert graphs.sizes == () and "cudaStreamSynchronize" in graphs.refused[1]
        cuda.wait(stream)
        event = cuda.Event()
        event.record(stream)
        event.wait()


def test_too_much_memory_is_a_typed_error_and_the_next_call_is_well() -> None:
    with ExitStack() as stack:
        for take in (lambda: cuda.device_memory(stack, 2**50), lambda: DeviceArray((2**50,), "uint8", CUDA)):
            with pytest.raises(GpuMemoryError, match="cudaMalloc failed"):
                take()
        cuda.device_memory(stack, 1024)


def test_a_wrong_call_names_itself() -> None:
    with pytest.raises(CudaError, match=r"cudaSetDevice failed.*cudaErrorInvalidDevice"):
        cuda.use(Device("cuda", 999))
    cuda.use(CUDA)


def test_copies_of_several_threads_overlap_and_stay_right() -> None:
    def work(seed: int) -> bool:
        cuda.use(CUDA)
        with ExitStack() as stack:
            stream = cuda.open_stream(stack)
            host, back = (cuda.pinned_array(stack, (MIB,), "uint8") for _ in range(2))
            host[:] = seed
            address = cuda.device_memory(stack, host.nbytes)
            for _ in range(20):
                cuda.upload(address, host, stream)
                cuda.download(back, address, stream)
            cuda.wait(stream)
            return bool((back == seed).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(32)))


# Arrays of other libraries

SPEC = TensorSpec("image", "float32", ("N", 3))


def test_torch_gives_its_memory_and_its_stream_is_waited_for() -> None:
    torch = pytest.importorskip("torch")
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        back = cuda.pinned_array(stack, (1000, 3), "float32")
        for round_ in range(20):
            tensor = torch.zeros(1000, 3, device="cuda")
            torch.cuda._sleep(20_000_000)  # some milliseconds in torch's stream, before the values are there
            tensor += round_ + 1
            taken = borrow(tensor, SPEC, CUDA, stream=stream)
            assert taken.address == tensor.data_ptr()
            cuda.download(back, taken.address, stream)
            cuda.wait(stream)
            assert (back == round_ + 1).all()


def test_torch_takes_our_memory_without_a_copy_waits_for_it_and_frees_it() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).random((1000, 3), dtype=np.float32)
    torch.zeros(1, device="cuda")
    before = settled()
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        host = cuda.pinned_array(stack, values.shape, "float32")
        host[:] = values
        array = DeviceArray(values.shape, "float32", CUDA)
        cuda.upload(array.address, host, stream)
        array.ready = cuda.Event()
        array.ready.record(stream)
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == array.address and tensor.device.type == "cuda"
        del array
        gc.collect()
        np.testing.assert_array_equal(tensor.cpu().numpy(), values)
        view = tensor[10:]
        del tensor
        gc.collect()
        np.testing.assert_array_equal(view.cpu().numpy(), values[10:])
        del view
    gc.collect()
    assert dlpack.exported() == 0
    assert abs(settled() - before) < 4 * MIB


def test_cupy_gives_and_takes_through_both_protocols() -> None:
    cupy = pytest.importorskip("cupy")
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        array = cupy.arange(12, dtype=cupy.float32).reshape(4, 3)
        plain = type("Plain", (), {"__cuda_array_interface__": array.__cuda_array_interface__})()
        for given in (array, plain):
            assert borrow(given, SPEC, CUDA, stream=stream).address == array.data.ptr
        ours = DeviceArray((4, 3), "float32", CUDA)
        cuda.call(
            "cudaMemcpy",
            ours.address,
            array.data.ptr,
            ours.nbytes,
            cuda.bindings().cudaMemcpyKind.cudaMemcpyDeviceToDevice,
        )
        for taken in (cupy.from_dlpack(ours), cupy.asarray(ours)):
            assert taken.data.ptr == ours.address
            np.testing.assert_array_equal(cupy.asnumpy(taken), cupy.asnumpy(array))
        np.testing.assert_array_equal(ours.numpy(), cupy.asnumpy(array))


def test_slices_that_are_not_aligned_or_not_contiguous_are_refused() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(100, 3, device="cuda")
    for wrong, cause in ((tensor[1:], "multiple of 256"), (torch.zeros(3, 100, device="cuda").T, "not contiguous")):
        with pytest.raises(InputError, match=cause):
            borrow(wrong, SPEC, CUDA, stream=None)
    with pytest.raises(InputError, match="not in CUDA memory"):
        borrow(torch.zeros(2, 3), SPEC, CUDA, stream=None)


# Backends that need no TensorRT


def run_backend(name: str, device: Device, path: Path) -> np.ndarray:
    found = get_backend(name).probe(device)
    if not found.runs:
        pytest.skip(f"{name} cannot run on {device}: {found.reason}")
    data = tiny.onnx_bytes(tiny.weights())
    path.write_bytes(data)
    source = tiny.source(device, file=HashedFile.of(path))
    with get_backend(name).load().SESSION(source) as session:
        answers: list[Any] = [session.run({"image": tiny.images(3)})["logits"] for _ in range(4)]
        other = session.run({"image": tiny.images(2)})["logits"]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])  # eager, captured and replayed are the same work
    np.testing.assert_allclose(other, tiny.reference(tiny.images(2), tiny.weights()), atol=2e-2)
    return np.asarray(answers[0])


@pytest.mark.parametrize("device", ["cuda", "cuda+tensorrt", "cuda+rtx"])
def test_onnx_runtime_computes_on_the_gpu_what_numpy_computes(device: str, tmp_path: Path) -> None:
    logits = run_backend("onnxruntime", Device.parse(device), tmp_path / "tiny.onnx")
    np.testing.assert_allclose(logits, tiny.reference(tiny.images(3), tiny.weights()), atol=1e-3)


def test_an_fp32_session_is_fp32_and_not_tf32(tmp_path: Path) -> None:
    logits = run_backend("onnxruntime", CUDA, tmp_path / "tiny.onnx")
    np.testing.assert_allclose(logits, tiny.reference(tiny.images(3), tiny.weights()), atol=2e-5)


def test_torch_on_cuda_is_exact_fp32() -> None:
    torch = pytest.importorskip("torch")
    from vggdeploy.doctor.doctor import torch_logits

    logits = torch_logits(torch, tiny.images(3), tiny.weights(), "cuda:0")
    np.testing.assert_allclose(logits, tiny.reference(tiny.images(3), tiny.weights()), atol=2e-5)


def test_nvml_watches_a_busy_gpu() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("pynvml")
    from vggdeploy.bench.gpu.nvml import GpuWatch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    with GpuWatch(CUDA, seconds=0.05) as watch:
        end = time.perf_counter() + 1.5
        while time.perf_counter() < end:
            a @ a
            torch.cuda.synchronize()
    seen = watch.result()
    assert seen.samples >= 10
    assert seen.power_watts_mean is None or seen.power_watts_mean > 50
    assert seen.joules is None or seen.joules > 50
    assert seen.sm_clock_mhz_max and seen.memory_total_bytes > seen.memory_used_bytes_max > a.nbytes
