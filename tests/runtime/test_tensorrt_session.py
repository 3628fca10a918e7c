"""The engine session: what it refuses, what it copies, and that it frees everything however it ends.

The GPU is a fake here (fault injection); the same session on a real one stands in ``test_tensorrt_gpu.py``.
"""

from __future__ import annotations

import gc
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_gpu
import numpy as np
import pytest
import tensorrt_rtx
from fake_gpu import CLASSES, ILLEGAL_ADDRESS, OUT_OF_MEMORY, C, Cudart, H, Library, W

from vggdeploy.errors import BundleError, IncompatibleError, IntegrityError, VggdeployError
from vggdeploy.runtime import cuda
from vggdeploy.runtime import tensorrt as backend
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.tensorrt import EngineSession
from vggdeploy.runtime.tensorrt_rtx import RtxSession
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Device, TensorSpec

ENGINE_BYTES = b"vtrt and what follows"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "model.engine"
    path.write_bytes(ENGINE_BYTES)
    return Source(
        path=path,
        sha256=hashlib.sha256(ENGINE_BYTES).hexdigest(),
        spec=ModelSpec.named("vgg11", image_size=32),
        preprocess=PreprocessSpec(),
        inputs=(TensorSpec("image", "uint8", ("N", H, W, C)),),
        outputs=(TensorSpec("logits", "float32", ("N", CLASSES)),),
        batch=BatchRange(1, 2, 4),
        device=Device("cuda"),
    )


@pytest.fixture
def gpu(monkeypatch):
    """Puts a fake CUDA runtime and a fake library in place."""

    def put(cudart: Cudart | None = None, library: Library | None = None) -> tuple[Cudart, Library]:
        cudart, library = cudart or Cudart(), library or Library()
        monkeypatch.setattr(cuda, "bindings", lambda: cudart)
        monkeypatch.setattr(backend, "require", lambda *a, **k: library)
        return cudart, library

    return put


def pixels(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, H, W, C), dtype=np.uint8)


def expected(image: np.ndarray) -> np.ndarray:
    return image.reshape(len(image), -1).sum(axis=1, dtype=np.float32)[:, None] + np.arange(CLASSES, dtype=np.float32)


@pytest.mark.parametrize("kind", [EngineSession, RtxSession])
def test_every_batch_size_comes_back_right_and_old_answers_stay(gpu, source, kind):
    _, library = gpu()
    with kind(source) as session:
        kept = [(image, session.run({"image": image})["logits"]) for image in map(pixels, (4, 1, 1, 3, 2))]
    for image, logits in kept:
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, expected(image))
    assert [shape[0] for shape in library.shapes] == [4, 1, 3, 2]  # the second batch of 1 needs no new shape


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
        assert cudart.calls.count("cudaMalloc") == cudart.calls.count("cudaHostAlloc") == 2
        assert sorted(kind for kind, _ in cudart.alive.values()) == ["device", "device", "host", "host", "stream"]
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
    source.path.write_bytes(damage)
    with pytest.raises(IntegrityError, match="altered"), RtxSession(source):
        pass
    assert not library.seen and not library.alive and not cudart.calls


def test_a_missing_engine_file_is_one_line(gpu, source):
    gpu()
    source.path.unlink()
    with pytest.raises(BundleError, match="cannot be read"), RtxSession(source):
        pass


def life(session: EngineSession) -> None:
    with session:
        session.run({"image": pixels(2)})
        session.run({"image": pixels(4)})


def calls_of_a_life() -> list[str]:
    """The CUDA calls of opening, two batches and closing, in order; the list that the injection walks along."""
    return [
        "cudaSetDevice",
        "cudaStreamCreateWithFlags",
        *(["cudaHostAlloc", "cudaMalloc"] * 2),
        *(["cudaSetDevice", "cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"] * 2),
        "cudaStreamSynchronize",
        *(["cudaFree", "cudaFreeHost"] * 2),
        "cudaStreamDestroy",
    ]


def test_the_list_of_calls_is_complete(gpu, source):
    cudart, _ = gpu()
    life(RtxSession(source))
    assert cudart.calls == calls_of_a_life()


@pytest.mark.parametrize(("number", "name"), list(enumerate(calls_of_a_life())))
def test_every_cuda_call_that_fails_is_named_and_leaves_nothing_behind(gpu, source, number, name):
    cudart, library = gpu(Cudart(fail_at=number))
    with pytest.raises(cuda.CudaError, match=f"^{name} failed: .*cudaErrorIllegalAddress") as caught:
        life(RtxSession(source))
    assert (caught.value.call, caught.value.code) == (name, "cudaErrorIllegalAddress")
    left = 1 if name in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy") else 0  # what CUDA itself did not free
    assert len(cudart.alive) == left
    assert not library.alive


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_out_of_memory_releases_what_it_took(gpu, source, number):
    cudart, library = gpu(Cudart(fail_at=number, error=OUT_OF_MEMORY))
    with pytest.raises(cuda.GpuMemoryError, match="out of memory") as caught:
        life(RtxSession(source))
    assert "batch" in caught.value.hint
    assert not cudart.alive and not library.alive


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
    library.profile = (1, 1, 2)
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


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (fake_gpu.Engine, tensorrt_rtx.ICudaEngine),
        (fake_gpu.Context, tensorrt_rtx.IExecutionContext),
        (fake_gpu.Runtime, tensorrt_rtx.Runtime),
        (fake_gpu.Cudart, fake_gpu.real_cudart),
    ],
)
def test_the_fakes_have_no_method_that_the_real_library_lacks(fake, real):
    methods = [name for name in vars(fake) if not name.startswith("_") and name not in ("names",)]
    assert methods
    assert [name for name in methods if not hasattr(real, name)] == []
