"""The engine session: what it refuses, what it copies, and that it frees everything however it ends.

The GPU is a fake here (fault injection); the same session on a real one stands in ``test_tensorrt_gpu.py``.
"""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorrt_rtx
from attacks.swapping import SWAPS, swap_before
from fakes.gpu import ILLEGAL_ADDRESS, Library, expected, pixels

from vggdeploy.errors import BundleError, IncompatibleError, IntegrityError, VggdeployError
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession

ENGINE_BYTES = b"vtrt and what follows"  # of the `source` fixture


@pytest.mark.parametrize("kind", [EngineSession, RtxSession])
def test_every_batch_size_comes_back_right_and_old_answers_stay(gpu, source, kind):
    _, library = gpu()
    with kind(source) as session:
        kept = [(image, session.run({"image": image})["logits"]) for image in map(pixels, (4, 1, 1, 3, 2))]
    for image, logits in kept:
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, expected(image))
    again = [1] if kind is EngineSession else []  # the second batch of 1 gets a graph, and a context for it
    assert [shape[0] for shape in library.shapes] == [4, 1, *again, 3, 2]


def test_a_strided_input_is_copied_as_it_reads(gpu, source):
    gpu()
    image = pixels(4).transpose(0, 2, 1, 3)[::2]
    with EngineSession(source) as session:
        np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))


def test_buffers_are_allocated_once_and_all_is_freed(gpu, source):
    cudart, library = gpu()
    with RtxSession(source) as session:
        for batch in (1, 4, 2, 1, 3):
            session.run({"image": pixels(batch)})
        assert cudart.calls.count("cudaHostAlloc") == 2
        assert cudart.calls.count("cudaMalloc") == 2 + 1  # and what the context computes in
        kinds = sorted(kind for kind, _ in cudart.alive.values())
        assert kinds == ["device", "device", "device", "host", "host", "stream"]
        assert sorted(library.alive) == ["context", "engine", "runtime"]
    assert not cudart.alive
    assert not library.alive


def test_rtx_captures_graphs_and_specialises_kernels_at_once(gpu, source):
    _, library = gpu()
    with RtxSession(source):
        [config] = library.configs
    assert config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert (
        config.dynamic_shapes_kernel_specialization_strategy
        == tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    )


def test_nothing_is_allocated_before_the_with_block(gpu, source):
    cudart, library = gpu()
    RtxSession(source)
    assert not cudart.calls and not library.alive


@pytest.mark.parametrize("damage", [b"", ENGINE_BYTES[:-1], ENGINE_BYTES + b"\0", b"V" + ENGINE_BYTES[1:]])
def test_an_altered_engine_is_refused_before_cuda_or_the_library_see_it(gpu, source, damage):
    cudart, library = gpu()
    source.file.path.write_bytes(damage)
    with pytest.raises(IntegrityError, match="altered"), RtxSession(source):
        pass
    assert not library.seen and not library.alive and not cudart.calls


@pytest.mark.parametrize("swap", SWAPS)
def test_an_engine_that_is_swapped_after_its_hash_is_not_what_the_library_gets(gpu, source, swap, monkeypatch):
    _, library = gpu()
    calls = swap_before(monkeypatch, cuda, "use", lambda: SWAPS[swap](source.file.path))
    with RtxSession(source):
        assert library.seen == [ENGINE_BYTES]
    assert calls


def test_a_missing_engine_file_is_one_line(gpu, source):
    gpu()
    source.file.path.unlink()
    with pytest.raises(IntegrityError, match="is missing"), RtxSession(source):
        pass


def life(session: EngineSession) -> None:
    with session:
        session.run({"image": pixels(2)})
        session.run({"image": pixels(4)})


def test_when_freeing_fails_too_the_first_error_is_the_one_that_comes_out(gpu, source):
    cudart, _ = gpu()
    with pytest.raises(ZeroDivisionError) as caught, RtxSession(source):
        cudart.fail_at, cudart.error = "cudaFree", ILLEGAL_ADDRESS
        raise ZeroDivisionError
    assert any("cudaFree failed" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("Runtime", IncompatibleError),
        ("deserialize_cuda_engine", IncompatibleError),
        ("create_execution_context", IncompatibleError),
        ("set_tensor_address", VggdeployError),
        ("set_input_shape", VggdeployError),
        ("execute_async_v3", VggdeployError),
    ],
)
def test_every_refusal_of_the_library_is_typed_and_leaves_nothing_behind(gpu, source, fault, kind):
    cudart, library = gpu(library=Library(fault))
    with pytest.raises(kind) as caught:
        life(RtxSession(source))
    assert caught.value.hint
    assert not cudart.alive and not library.alive


def test_an_engine_of_another_release_or_gpu_says_so_in_the_library_s_words(gpu, source):
    gpu(library=Library("deserialize_cuda_engine"))
    with pytest.raises(
        IncompatibleError, match=r"cannot load model\.engine: API Usage Error: built by 1\.6 for sm_86\.$"
    ):
        try:
            life(RtxSession(source))
        except IncompatibleError as error:
            assert error.exit_code == 5
            assert "vggdeploy build BUNDLE --engine tensorrt-rtx" in error.hint
            raise IncompatibleError(error.cause) from error


def test_a_refused_batch_does_not_spoil_the_next_one(gpu, source):
    _, library = gpu()
    with RtxSession(source) as session:
        session.run({"image": pixels(2)})
        library.fault = "execute_async_v3"
        with pytest.raises(VggdeployError):
            session.run({"image": pixels(4)})
        library.fault = None
        image = pixels(2, seed=5)
        np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))


def test_an_engine_with_other_tensors_or_a_smaller_profile_is_refused(gpu, source):
    library = Library()
    library.output_type = tensorrt_rtx.DataType.HALF
    cudart, _ = gpu(library=library)
    with pytest.raises(BundleError, match=r"not the inputs and outputs.*logits: float16"):
        life(RtxSession(source))
    library = Library()
    library.profiles = [(1, 1, 2)]
    gpu(cudart, library)
    with pytest.raises(BundleError, match="takes batches of 1…2; the manifest says 1:2:4"):
        life(RtxSession(source))
    assert not cudart.alive and not library.alive


def test_a_session_that_nobody_closes_is_freed_with_its_last_reference(gpu, source):
    cudart, library = gpu()
    session = RtxSession(source).__enter__()
    session.run({"image": pixels(1)})
    del session
    gc.collect()
    assert not cudart.alive and not library.alive


def test_a_session_can_be_opened_again(gpu, source):
    cudart, library = gpu()
    session = RtxSession(source)
    life(session)
    life(session)
    assert not cudart.alive and not library.alive
    with pytest.raises(VggdeployError, match="closed"):
        session.run({"image": pixels(1)})


def test_threads_get_their_own_answers(gpu, source):
    cudart, _ = gpu()
    images = [pixels(1 + seed % 4, seed) for seed in range(64)]
    with RtxSession(source) as session, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: session.run({"image": image})["logits"], images))
    for image, logits in zip(images, answers, strict=True):
        np.testing.assert_array_equal(logits, expected(image))
    assert not cudart.alive


@pytest.mark.parametrize("kind", [EngineSession, RtxSession])
def test_a_runtime_that_began_with_an_error_is_neither_used_nor_freed(gpu, source, kind):
    """The real bindings wrap a null pointer then, and both would end the process: see ``test_lean_runtime.py``."""
    cudart, library = gpu(library=Library("null"))
    cause = r"cannot start: .*CUDA initialization failure with error: 35"
    with pytest.raises(IncompatibleError, match=cause), kind(source):
        pass
    gc.collect()
    assert library.seen == [] and not cudart.alive
    assert library.alive == ["runtime"]
