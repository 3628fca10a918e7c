"""Engines on a real GPU. Opt in with ``pytest -m gpu``; nothing here counts as passed where it did not run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from fixtures.small import BATCH, write_bundle, write_onnx

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import IncompatibleError, InputError
from vggdeploy.runtime import GpuOptions, get_backend, open_session
from vggdeploy.runtime.gpu import cuda
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
    from vggdeploy.build.engines import build_into
    from vggdeploy.build.request import BuildPlan

    found = get_backend(request.param).probe(CUDA)
    if not found.runs:
        pytest.skip(f"{request.param} cannot run here: {found.reason}")
    root = tmp_path_factory.mktemp(request.param)
    precisions = (Precision.FP32, Precision.FP16)
    bundle = write_bundle(root / "bundle", {p: write_onnx(root / f"{p}.onnx", p) for p in precisions})
    targets = [cuda.find_gpu(CUDA).capability] if request.param == "tensorrt-rtx" else None
    for precision in precisions:
        bundle = build_into(bundle, BuildPlan(engine=request.param, precision=precision, targets=targets)).bundle
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


def test_graphs_change_no_answer(built):
    """TensorRT: captured by us at the second batch of a size; RTX: inside the library."""
    bundle, engine = built
    images = np.random.default_rng(3).integers(0, 256, (12, BATCH.max, 32, 32, 3), dtype=np.uint8)
    sizes = [1, 1, 1, BATCH.max, BATCH.max, 3, 1, BATCH.max, 3, 3, 1, 2]
    answers = []
    for graphs in (False, True):
        with open_session(bundle, variant_of(bundle, engine, "fp16"), gpu=GpuOptions(graphs=graphs)) as session:
            answers.append([session.run({"image": i[:n]})["logits"] for i, n in zip(images, sizes, strict=True)])
            lane = session.unchecked.pool.lanes[0]
            if graphs and lane.captures:
                assert lane.graphs.sizes == (1, 3, BATCH.max), lane.graphs.refused
    for plain, captured in zip(*answers, strict=True):
        np.testing.assert_allclose(captured, plain, rtol=2e-2, atol=2e-3)


def test_batches_under_way_together_come_back_each_with_its_own_answer(built):
    bundle, engine = built
    images = np.random.default_rng(4).integers(0, 256, (40, 2, 32, 32, 3), dtype=np.uint8)
    feeds = [{"image": image} for image in images]
    with open_session(bundle, variant_of(bundle, engine, "fp32"), gpu=GpuOptions(contexts=3)) as session:
        alone = [session.run(feed)["logits"] for feed in feeds]
        handles = [session.run_async(feed) for feed in feeds]
        later = [handle.result()["logits"] for handle in handles]
        streamed = [answer["logits"] for answer in session.stream(feeds, depth=3)]
        assert len(session.unchecked.pool.lanes) == 3
    for one, two, three in zip(alone, later, streamed, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(three, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["result", "out", "stream"])
def test_torch_s_arrays_go_in_and_out_without_a_copy(built, how):
    torch = pytest.importorskip("torch")
    bundle, engine = built
    with open_session(bundle, variant_of(bundle, engine, "fp32")) as session:
        for seed in range(20):
            image = np.random.default_rng(seed).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
            wanted = session.run({"image": image})["logits"]
            tensor = torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device="cuda")
            out = {"logits": torch.full(wanted.shape, -1.0, device="cuda")}
            torch.cuda._sleep(5_000_000)  # the image is not there yet when the session is called
            tensor += torch.from_numpy(image).cuda()
            if how == "result":
                found = torch.from_dlpack(session.run_on_device({"image": tensor})["logits"])
            else:
                stream = torch.cuda.current_stream().cuda_stream if how == "stream" else None
                found = session.run_on_device({"image": tensor}, out=out, stream=stream)["logits"]
                assert found is out["logits"]
            del tensor
            np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_rtx_s_kernels_are_kept_and_taken_again(built, tmp_path: Path):
    bundle, engine = built
    if engine != "tensorrt-rtx":
        pytest.skip("TensorRT compiles when it builds")
    variant, options = variant_of(bundle, engine, "fp16"), GpuOptions(cache=tmp_path)
    for _ in range(2):
        with open_session(bundle, variant, gpu=options) as session:
            session.run(bundle.golden()[0])
        [kept] = tmp_path.iterdir()
        assert kept.stat().st_size > 0


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
    from vggdeploy.build.engines import build_into
    from vggdeploy.build.request import BuildPlan

    here = cuda.find_gpu(CUDA).capability
    if not get_backend("tensorrt-rtx").probe(CUDA).runs:
        pytest.skip("TensorRT for RTX does not run on this GPU")
    source = write_onnx(tmp_path / "fp16.onnx", Precision.FP16)
    bundle = write_bundle(tmp_path / "bundle", {Precision.FP16: source})
    other = "sm75" if here != "sm75" else "sm89"
    built = build_into(bundle, BuildPlan(engine="tensorrt-rtx", targets=[other], profiles=(BatchRange(1, 1, 1),)))
    with pytest.raises(IncompatibleError, match=f"built by .* for {other}; here: .*holds no code for {here}"):
        open_session(built.bundle, built.variant)
