"""Threads that run at the same time, batches under way together, and a session that closes in the middle of it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event, Thread

import numpy as np
import pytest
from fakes.gpu import OUT_OF_MEMORY, Cudart, Library, expected, pixels

from vggdeploy.errors import IncompatibleError, InputError, VggdeployError
from vggdeploy.runtime import CheckedSession, GpuOptions
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import BatchRange


def check(image: np.ndarray, answer: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(answer["logits"], expected(image))


def test_one_thread_needs_one_lane(gpu, source):
    gpu()
    with EngineSession(source) as session:
        for seed in range(5):
            image = pixels(2, seed)
            check(image, session.run({"image": image}))
        assert len(session.pool.lanes) == 1


def test_threads_are_in_their_lanes_at_the_same_time(gpu, source):
    gpu()
    together = Barrier(3, timeout=10)
    with EngineSession(source) as session, ThreadPoolExecutor(3) as threads:

        def work() -> int:
            with session.lane() as lane:
                together.wait()
                return lane.stream

        streams = [f.result() for f in [threads.submit(work) for _ in range(3)]]
        assert len(set(streams)) == 3 == len(session.pool.lanes)


@pytest.mark.parametrize("contexts", [1, 2, 4])
def test_there_are_never_more_lanes_than_contexts_and_every_answer_is_its_own(gpu, source, contexts):
    cudart, library = gpu()
    images = [pixels(1 + seed % 4, seed) for seed in range(80)]
    with (
        EngineSession(replace(source, gpu=GpuOptions(contexts=contexts))) as session,
        ThreadPoolExecutor(8) as threads,
    ):
        for image, answer in zip(images, threads.map(lambda image: session.run({"image": image}), images), strict=True):
            check(image, answer)
        assert len(session.pool.lanes) <= contexts
    assert not cudart.alive and not library.alive


def test_a_lane_for_which_there_is_no_memory_is_done_without(gpu, source):
    cudart, _ = gpu()
    with EngineSession(source) as session:
        with session.lane():
            cudart.fail_at, cudart.error = "cudaHostAlloc", OUT_OF_MEMORY
            held = len(cudart.alive)
            other = Thread(target=lambda: session.run({"image": pixels(1)}))
            other.start()
            other.join(0.3)
            assert other.is_alive()  # it waits for the lane that there is
            assert len(cudart.alive) == held
        other.join(10)
        assert not other.is_alive()
        assert session.pool.limit == 1 and "cudaHostAlloc failed" in session.pool.refused


def test_a_lane_whose_context_the_library_does_not_make_is_done_without(gpu, source):
    """TensorRT for RTX says that there is no memory by making none."""
    library = Library()
    library.max_contexts = 1
    cudart, _ = gpu(library=library)
    image = pixels(2)
    with RtxSession(source) as session, ThreadPoolExecutor(1) as other:
        with session.lane():
            waiting = other.submit(session.run, {"image": image})
            while not session.pool.refused:
                assert not waiting.done()
        check(image, waiting.result())
        assert session.pool.limit == 1 and "GPU memory" in session.pool.refused
    assert not cudart.alive and not library.alive
    library.max_contexts = 0
    with pytest.raises(IncompatibleError, match="GPU memory"), RtxSession(source):
        pass


def test_more_batches_than_contexts_are_started_without_blocking(gpu, source):
    cudart, library = gpu()
    images = [pixels(1 + seed % 4, seed) for seed in range(12)]
    with EngineSession(replace(source, gpu=GpuOptions(contexts=2))) as session:
        handles = [session.run_async({"image": image}) for image in images]
        check(images[0], session.run({"image": images[0]}))  # and a batch in between does not wait for ever
        for image, handle in reversed(list(zip(images, handles, strict=True))):
            check(image, handle.result())
            assert handle.result() is handle.result()
    assert not cudart.alive and not library.alive


def test_a_feed_may_be_changed_as_soon_as_its_batch_is_started(gpu, source):
    gpu()
    image = pixels(2)
    with EngineSession(source) as session:
        kept = image.copy()
        handle = session.run_async({"image": image})
        image[:] = 0
        check(kept, handle.result())


def test_a_handle_that_is_dropped_gives_its_lane_back(gpu, source):
    cudart, _ = gpu()
    with EngineSession(replace(source, gpu=GpuOptions(contexts=1))) as session:
        for seed in range(5):
            session.run_async({"image": pixels(1, seed)})
            gc.collect()
        image = pixels(3)
        check(image, session.run({"image": image}))
        assert len(session.pool.lanes) == 1
    assert not cudart.alive


def test_a_handle_keeps_its_session_alive(gpu, source):
    gpu()
    image = pixels(2)
    session = EngineSession(source).__enter__()
    handle = session.run_async({"image": image})
    del session
    gc.collect()
    check(image, handle.result())


def test_a_batch_that_failed_fails_at_its_handle_every_time(gpu, source):
    cudart, _ = gpu()
    with EngineSession(source) as session:
        handle = session.run_async({"image": pixels(2)})
        cudart.fail_at = "cudaStreamSynchronize"
        for _ in range(2):
            with pytest.raises(VggdeployError, match="cudaStreamSynchronize failed"):
                handle.result()
        cudart.fail_at = None
        image = pixels(2, 3)
        check(image, session.run({"image": image}))


def test_a_result_after_the_end_says_that_the_session_is_closed(gpu, source):
    cudart, library = gpu()
    with EngineSession(source) as session:
        handle = session.run_async({"image": pixels(2)})
    with pytest.raises(VggdeployError, match="closed"):
        handle.result()
    for method in (session.run, session.run_async, session.run_on_device):
        with pytest.raises(VggdeployError, match="closed"):
            method({"image": pixels(2)})
    assert not cudart.alive and not library.alive


def test_closing_waits_for_the_batch_that_is_running_and_wakes_who_waits(gpu, source):
    cudart, library = gpu()
    inside, go_on, errors = Event(), Event(), []
    session = EngineSession(replace(source, gpu=GpuOptions(contexts=1))).__enter__()

    def hold() -> None:
        with session.lane() as lane:
            inside.set()
            go_on.wait(10)
            check(pixels(1), (lane.enqueue(lane.stage({"image": pixels(1)})), lane.results(1))[1])

    def waiting() -> None:
        try:
            session.run({"image": pixels(1)})
        except VggdeployError as error:
            errors.append(error.cause)

    holder, waiter = Thread(target=hold), Thread(target=waiting)
    holder.start()
    inside.wait(10)
    waiter.start()
    closer = Thread(target=session.__exit__, args=(None, None, None))
    closer.start()
    closer.join(0.2)
    assert closer.is_alive() and library.alive
    go_on.set()
    for thread in (closer, holder, waiter):
        thread.join(10)
        assert not thread.is_alive()
    assert errors == ["the session is closed"]
    assert not cudart.alive and not library.alive


def test_a_stream_of_batches_keeps_its_order_and_is_ahead_by_its_depth(gpu, source):
    gpu()
    images = [pixels(1 + seed % 4, seed) for seed in range(9)]
    asked: list[int] = []

    def batches():
        for number, image in enumerate(images):
            asked.append(number)
            yield {"image": image}

    with checked(source) as session:
        for number, answer in enumerate(session.stream(batches(), depth=3)):
            check(images[number], answer)
            assert asked[-1] == min(number + 2, len(images) - 1)
        assert len(session.unchecked.pool.lanes) == 3


def test_a_stream_that_is_left_early_leaves_nothing_under_way(gpu, source):
    cudart, _ = gpu()
    with checked(source) as session:
        stream = session.stream({"image": pixels(2, seed)} for seed in range(100))
        next(stream)
        stream.close()
        gc.collect()
        image = pixels(4)
        check(image, session.run({"image": image}))
    assert not cudart.alive


def test_a_stream_checks_every_batch(gpu, source):
    gpu()
    with checked(source) as session, pytest.raises(InputError, match="outside 1…4"):
        list(session.stream([{"image": pixels(2)}, {"image": pixels(5)}]))


def test_an_answer_that_is_not_finite_is_refused_at_the_handle(gpu, source, monkeypatch):
    gpu()
    with checked(source) as session:
        handle = session.run_async({"image": pixels(2)})
        answer = {"logits": np.full((2, 4), np.nan, np.float32)}
        monkeypatch.setattr("vggdeploy.runtime.gpu.pool.Pending.result", lambda self: answer)
        with pytest.raises(VggdeployError, match="NaN"):
            handle.result()


def test_no_thread_is_left_waiting_when_batches_of_many_are_never_asked_for(gpu, source):
    cudart = Cudart()
    gpu(cudart)
    with (
        EngineSession(replace(source, gpu=GpuOptions(contexts=2))) as session,
        ThreadPoolExecutor(6) as threads,
    ):
        handles = list(threads.map(lambda seed: session.run_async({"image": pixels(2, seed)}), range(40)))
        for seed, handle in enumerate(handles):
            check(pixels(2, seed), handle.result())
    assert not cudart.alive


def checked(source):
    return CheckedSession(EngineSession(source), name="tensorrt-fp16", batch=BatchRange(1, 2, 4))
