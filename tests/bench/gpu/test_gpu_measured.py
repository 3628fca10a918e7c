"""The roof and an engine's parts on a real GPU. Opt in with ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.small import BATCH, write_bundle, write_onnx

from vggdeploy.bench.gpu.measure import measure_gpu
from vggdeploy.bench.gpu.roof import measure_roof
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime import get_backend
from vggdeploy.runtime.gpu import cuda
from vggdeploy.types import Device, Precision

pytestmark = pytest.mark.gpu
CUDA = Device("cuda")


@pytest.fixture(scope="module", autouse=True)
def here() -> cuda.Gpu:
    try:
        return cuda.find_gpu(CUDA)
    except IncompatibleError as error:
        pytest.skip(error.cause)


def test_the_roof_rises_with_falling_precision_and_is_a_believable_number() -> None:
    roofs = {p: measure_roof(CUDA, p) for p in (Precision.FP32, Precision.FP16, Precision.INT8)}
    assert all(0.5 < r.tera_ops < 10_000 and r.products >= 3 for r in roofs.values())
    assert roofs[Precision.FP16].tera_ops > 2 * roofs[Precision.FP32].tera_ops
    assert roofs[Precision.INT8].tera_ops > roofs[Precision.FP16].tera_ops


def test_the_fp16_roof_is_torch_s() -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    times = []
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    theirs = 2 * 8192**3 / (min(times) * 1e-3) / 1e12
    assert measure_roof(CUDA, Precision.FP16).tera_ops == pytest.approx(theirs, rel=0.15)


def test_the_roof_leaves_the_memory_as_it_was() -> None:
    measure_roof(CUDA, Precision.FP16, seconds=0.05)
    before = cuda.memory()[0]
    for _ in range(3):
        measure_roof(CUDA, Precision.FP16, seconds=0.05)
    assert abs(cuda.memory()[0] - before) < 64 * 2**20


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_an_engine_is_taken_apart(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    from vggdeploy.build.engines import build_into
    from vggdeploy.build.request import BuildPlan

    found = get_backend(engine).probe(CUDA)
    if not found.runs:
        pytest.skip(f"{engine} cannot run here: {found.reason}")
    root = tmp_path_factory.mktemp(engine)
    bundle = write_bundle(root / "bundle", {Precision.FP16: write_onnx(root / "fp16.onnx", Precision.FP16)})
    targets = [cuda.find_gpu(CUDA).capability] if engine == "tensorrt-rtx" else None
    bundle = build_into(bundle, BuildPlan(engine=engine, precision=Precision.FP16, targets=targets)).bundle
    variant = next(v for v in bundle.manifest.variants if v.format == engine)
    spec = bundle.manifest.input
    images = np.random.default_rng(0).integers(0, 256, (64, *spec.item_shape), dtype=np.uint8)
    report = measure_gpu(bundle, variant, images, batches=(1, BATCH.max), streams=(1, 2), seconds=0.2)
    for row in report.times:
        assert 0 < row.compute_ms <= row.host_ms
        assert row.roof_share is not None and 0 < row.roof_share < 1
    assert all(load.images_per_second > 0 for load in report.loads)
