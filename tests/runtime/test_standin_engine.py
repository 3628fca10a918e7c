"""Sessions on an engine that needs no TensorRT, the same tests three times: on the fakes in memory; on the stand-in's kernels,
compiled by NVRTC and by g++, on the CPU (``late``); and on the stand-in's kernels on the GPU that is there (``-m gpu``).

What the third finds no fake can: a copy that is not waited for, memory that two streams compute in, a graph that replays
the wrong addresses. It has not run where it says why it was skipped.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.machines import Machine, in_memory, on_a_gpu, on_the_processor, source_of
from fakes.network import CLASSES, H, W, expected, pixels

from vggdeploy.errors import GpuMemoryError, IncompatibleError, InputError, VggdeployError
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.gpu import cuda, dlpack
from vggdeploy.runtime.tensorrt import session as backend
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import MAX_BATCH, BatchRange

SLOW = 2_000_000  # ns: what is not waited for is seen to be missing
FEW = 40  # batches


MACHINES = [
    pytest.param(in_memory, id="fakes"),
    pytest.param(on_the_processor, id="processor", marks=pytest.mark.late),
    pytest.param(on_a_gpu, id="gpu", marks=pytest.mark.gpu),
]


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """Each test leaves nothing behind on it."""
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    made = request.param(monkeypatch, tmp_path)
    monkeypatch.setattr(backend, "backend_library", lambda *a, **k: made.library)
    yield made
    assert made.left() == ""
    assert dlpack.exported() == 0


@pytest.fixture(params=[EngineSession, RtxSession])
def kind(request: pytest.FixtureRequest) -> type[EngineSession]:
    """Graphs captured by us, on scratch memory of ours; graphs left to the library, which brings its memory."""
    chosen: type[EngineSession] = request.param
    return chosen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.engine"


def check(image: np.ndarray, answer: dict[str, Any]) -> None:
    np.testing.assert_array_equal(answer["logits"], expected(image))


def test_every_batch_size_comes_back_right_by_its_graph_too(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    sizes = [1, 4, 1, 1, 2, 4, 4, 3, 1, 2, 2, 4]
    with kind(source_of(path)) as session:
        for seed, size in enumerate(sizes):
            image = pixels(size, seed)
            check(image, session.run({"image": image}))
        lane = session.pool.lanes[0]
        assert lane.graphs.sizes == ((1, 2, 4) if lane.captures else ()), lane.graphs.refused


def test_threads_get_their_own_answers_from_lanes_that_work_at_the_same_time(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    """Two lanes in one scratch memory, or an answer that is read too early, would be another image's."""
    machine.library.nanoseconds = SLOW // 10
    images = [pixels(1 + seed % 4, seed) for seed in range(4 * FEW)]
    with kind(source_of(path, contexts=3)) as session, ThreadPoolExecutor(6) as threads:
        first = session.run_async({"image": images[0]})  # it keeps its lane, in whatever turns the threads get
        answers = list(threads.map(lambda image: session.run({"image": image}), images[1:]))
        for image, answer in zip(images, [first.result(), *answers], strict=True):
            check(image, answer)
        assert 1 < len(session.pool.lanes) <= 3


def test_batches_under_way_together_come_back_in_any_order(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    machine.library.nanoseconds = SLOW
    images = [pixels(1 + seed % 4, seed) for seed in range(12)]
    with kind(source_of(path, contexts=3)) as session:
        handles = []
        for image in images:
            given = image.copy()
            handles.append(session.run_async({"image": given}))
            given[:] = 0  # it may be changed as soon as its batch is started
        for image, handle in reversed(list(zip(images, handles, strict=True))):
            check(image, handle.result())


def test_a_stream_keeps_its_order(machine: Machine, kind: type[EngineSession], path: Path) -> None:
    machine.library.nanoseconds = SLOW // 10
    images = [pixels(1 + seed % 4, seed) for seed in range(FEW)]
    session = CheckedSession(kind(source_of(path)), name="standin", batch=BatchRange(1, 2, 4))
    with session:
        answers = session.stream(({"image": image} for image in images), depth=3)
        for image, answer in zip(images, answers, strict=True):
            check(image, answer)


def test_arrays_on_the_gpu_go_in_and_out_between_batches_of_the_host(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    machine.library.nanoseconds = SLOW // 10
    with kind(source_of(path)) as session:
        target = machine.array(np.full((3, CLASSES), -1, np.float32))
        for seed in range(FEW):
            image = pixels(3, seed)
            made = session.run_on_device({"image": machine.array(image)})["logits"]
            session.run_on_device({"image": machine.array(image)}, out={"logits": target})
            check(image, {"logits": target.numpy()})
            check(image, session.run({"image": image}))
            check(image, {"logits": made.numpy()})


def test_the_caller_s_stream_orders_a_batch_and_what_comes_after_it(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    machine.library.nanoseconds = SLOW
    with kind(source_of(path)) as session, ExitStack() as stack:
        stream = cuda.open_stream(stack)
        given, back = cuda.pinned_array(stack, (2, H, W, 3), "uint8"), cuda.pinned_array(stack, (2, CLASSES), "float32")
        on_gpu = machine.array(np.zeros_like(given))
        target = machine.array(np.zeros_like(back))
        for seed in range(8):
            given[:], back[:] = pixels(2, seed), -1
            cuda.upload(on_gpu.address, given, stream)  # what makes the image, in the caller's stream
            session.run_on_device({"image": on_gpu}, out={"logits": target}, stream=stream)
            cuda.download(back, target.address, stream)  # and what uses the answer
            cuda.wait(stream)
            check(given, {"logits": back})


def test_no_memory_is_a_typed_error_and_the_session_opens_once_there_is_some(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    large = BatchRange(1, 2, MAX_BATCH)  # buffers that do not fit into what is left: see `full`
    machine.library.profiles = [(1, 2, large.max)]
    with machine.full():
        # Predicted, by its size; by CUDA's name; by the library's None where its context brings its own memory.
        with pytest.raises(
            (GpuMemoryError, IncompatibleError), match=r"cudaErrorMemoryAllocation|of GPU memory|GPU memory\?"
        ):
            kind(source_of(path, large)).__enter__()
        gc.collect()
        assert not machine.library.alive
    image = pixels(4)
    with kind(source_of(path, large, contexts=2)) as session, ThreadPoolExecutor(1) as other:
        with machine.full():
            with session.lane():
                waiting = other.submit(session.run, {"image": image})
                while not session.pool.refused:
                    assert not waiting.done()
                    time.sleep(0.001)
            check(image, waiting.result())  # in the lane that there is
            assert "emory" in session.pool.refused and session.pool.limit == 1
        check(image, session.run({"image": image}))


def test_work_that_nobody_waits_for_is_ended_with_its_session(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    machine.library.nanoseconds = SLOW
    image = pixels(4)
    session = kind(source_of(path, contexts=2)).__enter__()
    session.run_async({"image": image})  # dropped at once
    gc.collect()
    checked = CheckedSession(session, name="standin", batch=BatchRange(1, 2, 4))
    checked._open = True
    stream = checked.stream([{"image": image}] * 100, depth=2)
    check(image, next(stream))
    stream.close()
    check(image, session.run({"image": image}))
    handle = session.run_async({"image": image})
    arrays = session.run_on_device({"image": machine.array(image)})
    session.__exit__(None, None, None)  # both are under way
    with pytest.raises(VggdeployError, match="closed"):
        handle.result()
    check(image, {"logits": arrays["logits"].numpy()})  # its memory is its own


def test_a_capture_that_the_library_refuses_costs_the_graph_and_no_answer(machine: Machine, path: Path) -> None:
    machine.library.fault = "capture"
    with EngineSession(source_of(path)) as session:
        for seed in range(5):
            image = pixels(2, seed)
            check(image, session.run({"image": image}))
        assert session.pool.lanes[0].graphs.sizes == ()
        assert "did not run" in session.pool.lanes[0].graphs.refused[2]


def test_a_batch_that_the_library_refuses_is_an_error_and_the_next_is_well(
    machine: Machine, kind: type[EngineSession], path: Path
) -> None:
    image = pixels(2)
    with kind(source_of(path)) as session:
        machine.library.fault = "execute_async_v3"
        with pytest.raises(VggdeployError, match="TensorRT did not run the batch"):
            session.run({"image": image})
        machine.library.fault = None
        for _ in range(4):
            check(image, session.run({"image": image}))
        with pytest.raises(InputError, match="'image' has 2, 'logits' has 3"):
            target = machine.array(np.zeros((3, CLASSES), np.float32))
            session.run_on_device({"image": machine.array(image)}, out={"logits": target})


def test_fifty_sessions_leave_the_memory_as_it_was(machine: Machine, kind: type[EngineSession], path: Path) -> None:
    image = pixels(4)
    for _ in range(50):
        with kind(source_of(path)) as session:
            for _ in range(3):
                check(image, session.run({"image": image}))
    assert machine.left() == ""


# On a GPU alone


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    made = on_a_gpu(monkeypatch, tmp_path)
    monkeypatch.setattr(backend, "backend_library", lambda *a, **k: made.library)
    yield made


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["result", "out", "stream"])
def test_torch_s_arrays_go_in_and_out_without_a_copy(gpu_machine: Machine, path: Path, how: str) -> None:
    torch = pytest.importorskip("torch", reason="it waits for PyTorch for CUDA")
    gpu_machine.library.nanoseconds = SLOW // 10
    with EngineSession(source_of(path)) as session:
        for seed in range(20):
            image = pixels(2, seed)
            tensor = torch.zeros(image.shape, dtype=torch.uint8, device="cuda")
            out = {"logits": torch.full((2, CLASSES), -1.0, device="cuda")}
            torch.cuda._sleep(5_000_000)  # the image is not there yet when the session is called
            tensor += torch.from_numpy(image).cuda()
            if how == "result":
                found = torch.from_dlpack(session.run_on_device({"image": tensor})["logits"])
            else:
                stream = torch.cuda.current_stream().cuda_stream if how == "stream" else None
                found = session.run_on_device({"image": tensor}, out=out, stream=stream)["logits"]
                assert found is out["logits"]
            del tensor
            check(image, {"logits": found.cpu().numpy()})


@pytest.mark.gpu
def test_an_illegal_address_is_named_and_the_process_ends_well(gpu_machine: Machine, tmp_path: Path) -> None:
    """CUDA does not recover from it, so it happens in a process of its own."""
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from fakes.network import pixels
        from fakes.standin import Library
        from test_standin_engine import backend, source_of, EngineSession
        from vggdeploy.errors import CudaError
        library = Library("illegal")
        backend.backend_library = lambda *a, **k: library
        try:
            with EngineSession(source_of(Path({str(tmp_path / "e.engine")!r}))) as session:
                session.run({{"image": pixels(2)}})
        except CudaError as error:
            print(error.call, error.code)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["cudaStreamSynchronize", "cudaErrorIllegalAddress"]), done


@pytest.mark.late
def test_what_runs_on_a_gpu_is_rehearsed_without_one() -> None:
    """Every test of this file that waits for a GPU, but for PyTorch's and the one whose process dies, and what prepares it."""
    tests = Path(__file__).parents[1]
    words = [
        "-p",
        "fakes.rehearsal",
        "-p",
        "no:cacheprovider",
        "-q",
        "-m",
        "gpu",
        "-k",
        "gpu and not torch and not illegal",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", *words, __file__]
    done = subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^(\d+) passed, \d+ deselected", done.stdout, re.MULTILINE), done.stdout


# The kernels


@pytest.mark.late
def test_nvrtc_compiles_the_kernels_for_every_gpu_it_knows_and_for_later_ones() -> None:
    from fakes.standin import KERNELS, architectures, compiled

    known = architectures()
    assert 90 in known
    for number in known:
        image = compiled(f"sm{number}")
        assert image.startswith(b"\x7fELF")
        assert all(name.encode() in image for name in KERNELS)
    later = compiled("sm999")
    assert f".target sm_{known[-1]}".encode() in later
    assert all(f".entry {name}".encode() in later for name in KERNELS)


def test_the_real_driver_s_bindings_take_the_arguments_of_a_launch() -> None:
    """Without a driver they refuse for want of one, and not for the type of an argument."""
    from cuda.bindings import driver
    from cuda.pathfinder import DynamicLibNotFoundError
    from fakes.standin import KERNELS, Library

    try:
        cuda.check_driver()
    except IncompatibleError:
        pass
    else:
        pytest.skip("on a machine with a driver this would launch something")
    library = Library()
    library._functions = {name: driver.CUfunction(1) for name in KERNELS}
    addresses = {"image": 2**40, "logits": 2**41}
    with pytest.raises(DynamicLibNotFoundError):
        library.launch(2**42, addresses, 4, 2**43)
    library._functions = dict.fromkeys(KERNELS, "no function")
    with pytest.raises(TypeError):
        library.launch(2**42, addresses, 4, 2**43)
