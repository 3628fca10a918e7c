"""Which batches are captured and replayed, which are not, and that a graph never changes an answer."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from fakes.gpu import OUT_OF_MEMORY, Cudart, Library, expected, pixels

from vggdeploy.errors import VggdeployError
from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.gpu.graphs import MAX_GRAPHS
from vggdeploy.runtime.gpu.lane import Lane
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import BatchRange


def run(session: EngineSession, *sizes: int) -> None:
    for seed, size in enumerate(sizes):
        image = pixels(size, seed)
        np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))


def test_a_size_is_run_then_captured_then_replayed(gpu, source):
    cudart, library = gpu()
    with EngineSession(source) as session:
        run(session, 2)
        assert "cudaStreamBeginCapture" not in cudart.calls
        run(session, 2)
        assert cudart.calls.count("cudaStreamBeginCapture") == 1
        assert "cudaGraphLaunch" not in cudart.calls
        before = len(library.shapes)
        run(session, 2, 2, 2)
        assert cudart.calls.count("cudaGraphLaunch") == 3
        assert len(library.shapes) == before
        assert session.pool.lanes[0].graphs.sizes == (2,)
    assert not cudart.alive and not library.alive


def test_other_sizes_go_on_without_a_graph_and_do_not_spoil_those_there_are(gpu, source):
    cudart, _ = gpu()
    with EngineSession(source) as session:
        run(session, 2, 2, 2, 4, 1, 2, 3, 2, 1, 1, 2)
        assert session.pool.lanes[0].graphs.sizes == (1, 2)
        assert cudart.calls.count("cudaGraphLaunch") == 5


def test_the_sizes_that_were_asked_for_are_captured_at_once_and_no_others(gpu, source):
    cudart, _ = gpu()
    with EngineSession(replace(source, gpu=GpuOptions(graph_batches=(4,)))) as session:
        run(session, 2, 2, 2, 4, 4)
        assert session.pool.lanes[0].graphs.sizes == (4,)
    assert cudart.calls.count("cudaStreamBeginCapture") == cudart.calls.count("cudaGraphLaunch") == 1


def test_an_engine_that_was_built_for_graphs_of_some_sizes_captures_those(gpu, source):
    gpu()
    build: Any = type("Record", (), {"graph_batches": (3,), "profiles": (), "options": {}})()
    with EngineSession(replace(source, build=build)) as session:
        run(session, 2, 2, 3, 3)
        assert session.pool.lanes[0].graphs.sizes == (3,)


def test_without_graphs_nothing_is_captured(gpu, source):
    cudart, _ = gpu()
    with EngineSession(replace(source, gpu=GpuOptions(graphs=False))) as session:
        run(session, 2, 2, 2)
    assert "cudaStreamBeginCapture" not in cudart.calls


def test_there_are_never_more_graphs_than_the_limit(gpu, source):
    library = Library()
    library.profiles = [(1, 2, 20)]
    gpu(library=library)
    with EngineSession(replace(source, batch=BatchRange(1, 2, 20))) as session:
        run(session, *[size for size in range(1, 21) for _ in range(3)])
        assert len(session.pool.lanes[0].graphs.sizes) == MAX_GRAPHS


@pytest.mark.parametrize("what", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_graph_that_cuda_refuses_is_done_without_and_the_reason_is_kept(gpu, source, what):
    cudart, library = gpu(Cudart(fail_at=what, error=OUT_OF_MEMORY))
    with EngineSession(source) as session:
        run(session, 2, 2, 2, 2)
        graphs = session.pool.lanes[0].graphs
        assert graphs.sizes == () and what in graphs.refused[2]
        assert cudart.calls.count(what) == 1  # a refused size is not tried again
    assert not cudart.alive and not library.alive


def test_a_library_that_cannot_be_captured_is_run_as_it_is(gpu, source):
    cudart, library = gpu(library=Library("capture"))
    with EngineSession(source) as session:
        run(session, 2, 2, 2)
        assert "did not run" in session.pool.lanes[0].graphs.refused[2]
        assert not cudart.capturing and "graph" not in cudart.kinds()
    assert not cudart.alive and not library.alive


def test_a_warm_up_that_fails_before_its_capture_keeps_no_context(gpu, source):
    cudart, library = gpu()
    with EngineSession(source) as session:
        run(session, 2)
        library.fault = "execute_async_v3"
        for _ in range(4):
            with pytest.raises(VggdeployError, match="did not run"):
                session.run({"image": pixels(2)})
            gc.collect()
            assert library.alive.count("context") == 1
        library.fault = None
        run(session, 2, 2)  # and the size is captured all the same
        assert session.pool.lanes[0].graphs.sizes == (2,)
    assert not cudart.alive and not library.alive


def test_a_capture_that_is_refused_keeps_no_context(gpu, source):
    _, library = gpu(library=Library("capture"))
    with EngineSession(source) as session:
        run(session, 1, 1, 2, 2, 3, 3, 4, 4, 4)
        assert set(session.pool.lanes[0].graphs.refused) == {1, 2, 3, 4}
        assert library.alive.count("context") == 1


def test_a_context_is_freed_after_the_work_that_it_put_into_the_stream(gpu, source, monkeypatch):
    """The copy out fails once the batch is in the stream; the fake notices a context that goes under its work."""
    cudart, library = gpu()
    with EngineSession(source) as session:
        run(session, 2)
        with monkeypatch.context() as patch:

            def fail(lane: Lane, batch: int) -> None:
                raise VggdeployError("no copy")

            patch.setattr(Lane, "copy_out", fail)
            with pytest.raises(VggdeployError, match="no copy"):
                session.run({"image": pixels(2)})
            gc.collect()
        assert library.alive.count("context") == 1
        run(session, 2, 2)
    assert not cudart.alive and not library.alive


def test_no_memory_for_one_more_context_costs_the_graph_and_not_the_batch(gpu, source):
    library = Library()
    library.max_contexts = 1
    cudart, _ = gpu(library=library)
    with EngineSession(source) as session:
        run(session, 2, 2, 2)
        assert "GPU memory" in session.pool.lanes[0].graphs.refused[2]
    assert not cudart.alive and not library.alive


def test_a_replay_that_fails_is_the_batch_s_error(gpu, source):
    cudart, _ = gpu()
    with EngineSession(source) as session:
        run(session, 2, 2, 2)
        cudart.fail_at = "cudaGraphLaunch"
        with pytest.raises(VggdeployError, match="cudaGraphLaunch failed"):
            session.run({"image": pixels(2)})
        cudart.fail_at = None
        run(session, 2)


def test_contexts_of_one_lane_share_its_scratch_memory(gpu, source):
    cudart, library = gpu()
    with EngineSession(source) as session:
        run(session, 2, 2, 4, 4, 2, 4)
        assert library.alive.count("context") == 3
        assert cudart.calls.count("cudaMalloc") == 3  # image, logits, and scratch once
        assert len(cudart.scratch) == 1
        strategy = tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        assert library.configs == [strategy] * 3


def test_rtx_leaves_graphs_to_the_library(gpu, source):
    cudart, library = gpu()
    with RtxSession(source) as session:
        run(session, 2, 2, 2)
    assert "cudaStreamBeginCapture" not in cudart.calls
    with RtxSession(replace(source, gpu=GpuOptions(graphs=False))):
        pass
    strategies = tensorrt_rtx.CudaGraphStrategy
    assert [c.cuda_graph_strategy for c in library.configs] == [strategies.WHOLE_GRAPH_CAPTURE, strategies.DISABLED]
