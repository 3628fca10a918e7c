"""Engines on a real GPU. Opt in with ``pytest -m gpu``; nothing here counts as passed where it did not run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from builders.small import BATCH, write_bundle, write_onnx

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import IncompatibleError, InputError
from vggdeploy.runtime import cuda, get_backend, open_session
from vggdeploy.types import BatchRange, Device, Precision

pytestmark = pytest.mark.gpu
CUDA = Device("cuda")


@pytest.fixture(scope="module", autouse=True)
def gpu() -> cuda.Gpu:
    try:
        return cuda.find_gpu(CUDA)
    except IncompatibleError as error:
        pytest.skip(error.cause)


@pytest.fixture(scope="module", params=["tensorrt-rtx", "tensorrt"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    """A bundle with an FP16 and an FP32 engine, built for the GPU of this machine."""
    from vggdeploy.builders.engines import build_into

    found = get_backend(request.param).probe(CUDA)
    if not found.runs:
        pytest.skip(f"{request.param} cannot run here: {found.reason}")
    root = tmp_path_factory.mktemp(request.param)
    precisions = (Precision.FP32, Precision.FP16)
    bundle = write_bundle(root / "bundle", {p: write_onnx(root / f"{p}.onnx", p) for p in precisions})
    targets = [cuda.find_gpu(CUDA).capability] if request.param == "tensorrt-rtx" else None
    for precision in precisions:
        bundle = build_into(bundle, engine=request.param, precision=precision, targets=targets).bundle
    return Bundle.open(bundle.root), request.param


def variant_of(bundle: Bundle, engine: str, precision: str) -> Variant:
    """The engine of that precision; its name ends with this machine's GPU."""
    return next(v for v in bundle.manifest.variants if v.format == engine and v.precision == precision)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("fp16", 1e-2)])
def test_the_golden_pair_is_reproduced(built, precision, limit):
    bundle, engine = built
    inputs, outputs = bundle.golden()
    with open_session(bundle, variant_of(bundle, engine, precision)) as session:
        logits = session.run(inputs)["logits"]
    reference = outputs["logits"]
    assert np.linalg.norm(logits - reference) <= limit * np.linalg.norm(reference)


def test_every_batch_size_of_the_profile_gives_each_image_its_own_answer(built):
    bundle, engine = built
    images = np.random.default_rng(1).integers(0, 256, (BATCH.max, 32, 32, 3), dtype=np.uint8)
    with open_session(bundle, variant_of(bundle, engine, "fp32")) as session:
        whole = session.run({"image": images})["logits"]
        for size in (1, 3, BATCH.opt, BATCH.max):
            part = session.run({"image": images[:size]})["logits"]
            np.testing.assert_allclose(part, whole[:size], rtol=1e-3, atol=1e-4)
        with pytest.raises(InputError):
            session.run({"image": np.concatenate([images, images])})


def test_threads_that_share_a_session_get_their_own_answers(built):
    bundle, engine = built
    images = np.random.default_rng(2).integers(0, 256, (32, 1, 32, 32, 3), dtype=np.uint8)
    with open_session(bundle, variant_of(bundle, engine, "fp16")) as session:
        alone = [session.run({"image": image})["logits"] for image in images]
        with ThreadPoolExecutor(4) as pool:
            shared = list(pool.map(lambda image: session.run({"image": image})["logits"], images))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fifty_loads_leave_the_gpu_s_memory_as_it_was(built):
    bundle, engine = built
    variant = variant_of(bundle, engine, "fp16")

    def once() -> int:
        with open_session(bundle, variant) as session:
            session.run(bundle.golden()[0])
        return int(cuda.call("cudaMemGetInfo")[0])

    for _ in range(3):
        settled = once()
    free = [once() for _ in range(50)]
    assert settled - free[-1] < 32 * 2**20


def test_what_goes_up_comes_down_again_and_all_is_freed():
    cuda.use(CUDA)
    cuda.call("cudaFree", 0)  # the context itself takes memory, once
    before = cuda.call("cudaMemGetInfo")[0]
    with ExitStack() as stack:
        stream = cuda.open_stream(stack)
        there, back = (cuda.pinned_array(stack, (64, 2**16), "float32") for _ in range(2))
        there[:] = np.random.default_rng(0).random(there.shape, dtype=np.float32)
        back[:] = 0
        address = cuda.device_memory(stack, there.nbytes)
        cuda.upload(address, there[:48], stream)
        cuda.download(back[:48], address, stream)
        cuda.wait(stream)
        np.testing.assert_array_equal(back[:48], there[:48])
        assert not back[48:].any()
    assert abs(cuda.call("cudaMemGetInfo")[0] - before) < 4 * 2**20


def test_memory_that_the_gpu_does_not_have_is_a_typed_error():
    cuda.use(CUDA)
    with ExitStack() as stack, pytest.raises(cuda.GpuMemoryError, match="cudaMalloc failed"):
        cuda.device_memory(stack, 2**50)


def test_an_engine_for_another_gpu_is_refused_in_words(tmp_path: Path):
    from vggdeploy.builders.engines import build_into

    here = cuda.find_gpu(CUDA).capability
    if not get_backend("tensorrt-rtx").probe(CUDA).runs:
        pytest.skip("TensorRT for RTX does not run on this GPU")
    source = write_onnx(tmp_path / "fp16.onnx", Precision.FP16)
    bundle = write_bundle(tmp_path / "bundle", {Precision.FP16: source})
    other = "sm75" if here != "sm75" else "sm89"
    built = build_into(bundle, engine="tensorrt-rtx", targets=[other], batch=BatchRange(1, 1, 1))
    with pytest.raises(IncompatibleError, match=f"built by .* for {other}; here: .*holds no code for {here}"):
        open_session(built.bundle, built.variant)
