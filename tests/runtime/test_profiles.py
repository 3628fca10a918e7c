"""An engine of several profiles: every batch runs on its own, each context stays on one, and memory comes with the batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from fakes.gpu import ITEM, Cudart, Library, expected, pixels
from fakes.library import SUM_BYTES

from vggdeploy.bundle import BuildRecord
from vggdeploy.errors import BundleError, GpuMemoryError, IncompatibleError, UsageError, VggdeployError
from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import BatchRange

PROFILES = [(1, 1, 1), (2, 4, 4), (5, 16, 16)]
BUFFERS = 16 * (ITEM + 4 * 4)  # of a lane: 16 images, and 16 rows of four logits
KINDS = pytest.mark.parametrize("kind", [EngineSession, RtxSession])


def several(source: Source, profiles=PROFILES, **gpu) -> Source:
    build = BuildRecord(
        library="tensorrt", version="11.4.0", source="onnx-fp16", source_sha256="0" * 64, targets=("sm89",), options={},
        seconds=1.0, profiles=tuple(BatchRange(*p) for p in profiles),
    )  # fmt: skip
    whole = BatchRange(profiles[0][0], profiles[-1][1], profiles[-1][2])
    return replace(source, build=build, batch=whole, gpu=GpuOptions(**gpu))


@pytest.fixture
def engine(gpu):
    """A fake library with an engine of three profiles; it refuses a shape outside the one a context is on."""

    def put(**cuda) -> tuple[Cudart, Library]:
        library = Library()
        library.profiles = list(PROFILES)
        cudart = Cudart()
        for name, value in cuda.items():
            setattr(cudart, name, value)
        return gpu(cudart, library)

    return put


def run(session: EngineSession, *sizes: int) -> None:
    for seed, size in enumerate(sizes):
        image = pixels(size, seed)
        np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))


@KINDS
def test_every_size_is_run_on_the_profile_that_takes_it(engine, source, kind):
    cudart, library = engine()
    with kind(several(source, graphs=False)) as session:
        run(session, *range(1, 17), 1, 16, 2, 5, 4, 1)
        assert library.switches == [1, 2]  # once for each context that is not on the first one
        assert library.alive.count("context") == 3
    assert not cudart.alive and not library.alive


def test_a_captured_graph_has_a_context_of_its_own_on_its_profile(engine, source):
    """The fake asserts that no profile, shape or address changes under a captured graph, or while one is captured."""
    cudart, library = engine()
    with EngineSession(several(source)) as session:
        run(session, 1, 1, 4, 4, 16, 16, 3, 1, 4, 16, 3, 2, 5, 1)
        lane = session.pool.lanes[0]
        assert lane.graphs.sizes == (1, 3, 4, 16)
        assert library.alive.count("context") == 3 + 4
        assert not lane.graphs.refused
    assert not cudart.alive and not library.alive


def test_memory_comes_with_the_batches_and_contexts_of_a_lane_share_it(engine, source):
    cudart, _ = engine()
    with EngineSession(several(source)) as session:
        run(session, 1, 1)
        assert 6 * 2**30 - cudart.free == BUFFERS + SUM_BYTES
        run(session, 4, 4, 3)
        assert 6 * 2**30 - cudart.free == BUFFERS + SUM_BYTES * (1 + 4)
        run(session, 16, 16, 9)
        assert 6 * 2**30 - cudart.free == BUFFERS + SUM_BYTES * (1 + 4 + 16)
        run(session, 2, 1, 16, 5, 8)  # nothing more, whatever comes
        assert 6 * 2**30 - cudart.free == BUFFERS + SUM_BYTES * (1 + 4 + 16)


def test_who_starts_with_the_largest_batch_takes_no_memory_for_the_smaller_ones(engine, source):
    cudart, _ = engine()
    with EngineSession(several(source, profiles=PROFILES, contexts=1)) as session:
        run(session, 16)
        before = cudart.free
        run(session, 2, 4, 3, 5)
        assert cudart.free == before


@KINDS
def test_threads_on_several_profiles_get_their_own_answers(engine, source, kind):
    cudart, library = engine()
    images = [pixels(1 + seed * 7 % 16, seed) for seed in range(96)]
    with kind(several(source, contexts=3)) as session, ThreadPoolExecutor(6) as threads:
        for image, answer in zip(
            images, threads.map(lambda i: session.run({"image": i})["logits"], images), strict=True
        ):
            np.testing.assert_array_equal(answer, expected(image))
        assert len(session.pool.lanes) <= 3
    assert not cudart.alive and not library.alive


@KINDS
def test_a_refused_profile_is_one_line_and_leaves_nothing_behind(engine, source, kind):
    cudart, library = engine()
    library.fault = "set_optimization_profile_async"
    with kind(several(source)) as session:
        run(session, 1)
        with pytest.raises(VggdeployError, match=r"refused profile 1 of model\.engine"):
            session.run({"image": pixels(3)})
        assert library.alive.count("context") == 1
        run(session, 1)
    assert not cudart.alive and not library.alive


@pytest.mark.parametrize(
    ("profiles", "cause"),
    [
        ([(1, 4, 16)], "has 1 optimisation profiles; the manifest says 3"),
        ([*PROFILES, (17, 32, 32)], "has 4 optimisation profiles; the manifest says 3"),
        (
            [(1, 1, 1), (2, 3, 3), (5, 16, 16)],
            r"profile 1 of model\.engine takes batches of 2…3; the manifest says 2:4:4",
        ),
        ([(1, 1, 1), (2, 4, 4), (6, 16, 16)], r"profile 2 of model\.engine takes batches of 6…16"),
        ([(5, 16, 16), (2, 4, 4), (1, 1, 1)], r"profile 0 of model\.engine takes batches of 5…16"),
    ],
)
def test_every_profile_is_compared_with_the_manifest(engine, source, profiles, cause):
    cudart, library = engine()
    library.profiles = profiles
    with pytest.raises(BundleError, match=cause), EngineSession(several(source)):
        pass
    assert not cudart.alive and not library.alive


# Memory


def test_what_does_not_fit_at_all_is_said_before_anything_is_taken(engine, source):
    cudart, library = engine(free=BUFFERS + SUM_BYTES - 1)
    needed = BUFFERS + SUM_BYTES
    wanted = rf"model\.engine for batches up to 1 needs {needed} bytes of GPU memory, and {needed - 1} bytes is free"
    with pytest.raises(GpuMemoryError, match=wanted) as caught:
        EngineSession(several(source)).__enter__()
    assert "--batch" in caught.value.hint
    assert "cudaMalloc" not in cudart.calls and "cudaHostAlloc" not in cudart.calls
    assert not cudart.alive and not library.alive


def test_weights_that_do_not_fit_are_refused_before_the_library_sees_a_byte(engine, source):
    cudart, library = engine(free=20)
    with pytest.raises(
        GpuMemoryError, match=r"the file of model\.engine, .* needs 21 bytes .*20 bytes is free"
    ) as caught:
        EngineSession(several(source)).__enter__()
    assert "--weight-streaming" in caught.value.hint
    assert not library.seen and not cudart.alive


def test_only_as_many_contexts_are_made_as_can_all_take_the_largest_batch(engine, source, caplog):
    """Else a thread would get a context that has no room for its batch, beside one that has."""
    each = BUFFERS + SUM_BYTES * (1 + 4 + 16)
    cudart, _ = engine(free=2 * each + each // 2)
    images = [pixels(1 + seed * 5 % 16, seed) for seed in range(60)]
    with EngineSession(several(source, contexts=4)) as session, ThreadPoolExecutor(4) as threads:
        assert [record.getMessage() for record in caplog.records] == [session.pool.refused]
        assert "2 of 4 contexts fit" in session.pool.refused and "fewer contexts" in session.pool.refused
        for image, answer in zip(
            images, threads.map(lambda i: session.run({"image": i})["logits"], images), strict=True
        ):
            np.testing.assert_array_equal(answer, expected(image))
        assert session.pool.limit == 2
    assert not cudart.alive


def test_a_largest_batch_that_does_not_fit_is_named_and_the_others_run(engine, source, caplog):
    cudart, _ = engine(free=BUFFERS + SUM_BYTES * (1 + 4) + 10)
    with EngineSession(several(source, contexts=1)) as session:
        [record] = caplog.records
        assert "batches above 4 do not fit" in record.getMessage() and "--batch" in record.getMessage()
        run(session, 1, 4, 1, 3)
        with pytest.raises(
            GpuMemoryError, match=rf"a context for batches up to 16 needs {16 * SUM_BYTES} bytes .*10 bytes is free"
        ):
            session.run({"image": pixels(16)})
        run(session, 4, 2)
    assert not cudart.alive


def test_all_that_fits_is_said_with_no_word(engine, source, caplog):
    engine()
    with EngineSession(several(source, contexts=4)) as session:
        assert session.pool.limit == 4 and not session.pool.refused
    assert not caplog.records


def test_on_an_integrated_gpu_what_is_not_free_may_be_a_cache(engine, source):
    engine(free=BUFFERS + SUM_BYTES * 21, integrated=True)
    with EngineSession(several(source, contexts=4)) as session:
        assert session.pool.limit == 4


# Weight streaming


@KINDS
def test_a_weight_budget_is_set_before_any_context_and_no_graph_is_captured(engine, source, kind):
    cudart, library = engine()
    library.streamable = 1000
    with kind(several(source, weight_budget=300)) as session:
        run(session, 2, 2, 2, 16, 16)
        assert "cudaStreamBeginCapture" not in cudart.calls
        lane = session.pool.lanes[0]
        assert lane.graphs.sizes == () and not lane.captures
        if kind is RtxSession:
            assert library.configs[-1].cuda_graph_strategy == library.CudaGraphStrategy.DISABLED
    assert not cudart.alive and not library.alive


def test_a_budget_for_all_weights_streams_none(engine, source):
    _, library = engine()
    library.streamable = 1000
    with EngineSession(several(source, weight_budget=10**12)) as session:
        run(session, 2, 2, 2)
        assert session.pool.lanes[0].graphs.sizes == (2,)


def test_a_budget_that_cannot_be_heeded_is_refused(engine, source):
    cudart, library = engine()
    with pytest.raises(IncompatibleError, match="was not built for weight streaming") as caught:
        EngineSession(several(source, weight_budget=0)).__enter__()
    assert "--weight-streaming" in caught.value.hint
    library.streamable, library.fault = 1000, "weight_streaming_budget_v2"
    with pytest.raises(VggdeployError, match="did not take a weight budget of 300 bytes"):
        EngineSession(several(source, weight_budget=300)).__enter__()
    assert not cudart.alive and not library.alive
    with pytest.raises(UsageError, match="-1 bytes"):
        GpuOptions(weight_budget=-1)
