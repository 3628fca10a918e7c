"""An engine taken apart: which numbers there are, when they count, and what is null because nobody could measure it.

The GPU is a fake (`fakes.gpu`), so no number here means anything; on a real one: ``test_gpu_measured.py``.
"""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pynvml
import pytest
from fakes.gpu import CLASSES, C, Cudart, H, Library, W, pixels
from fakes.nvml import Nvml
from fixtures.small import write_bundle, write_onnx

from vggdeploy.bench.gpu import measure as gpu
from vggdeploy.bench.gpu import nvml
from vggdeploy.bench.gpu import roof as gemm
from vggdeploy.bench.gpu.nvml import GpuWatch
from vggdeploy.bench.run import BenchPlan
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run as run_cli
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.records import from_json, to_json
from vggdeploy.records.gpu import GpuReport, Roof, TrtexecTimes
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt import session as backend
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.machine import machine
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, Precision, TensorSpec

CUDA = Device("cuda")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    return write_bundle(root / "bundle", {Precision.FP32: write_onnx(root / "fp32.onnx", Precision.FP32)}).root


Measure = Callable[..., GpuReport]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvml], Nvml]:
    def put(fake: Nvml) -> Nvml:
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return put


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    fake = Cudart()
    monkeypatch.setattr(cuda, "bindings", lambda: fake)
    monkeypatch.setattr(cuda, "find_gpu", lambda device: cuda.Gpu(0, "Test GPU", "sm90", "13.0"))
    return fake


@pytest.fixture
def measure(cudart: Cudart, watched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """`measure_gpu` of an engine that is the fake's."""
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    here = machine()
    monkeypatch.setattr(gpu, "machine", lambda: here)  # it asks NVML, too
    watched(Nvml())
    path = tmp_path / "model.engine"
    path.write_bytes(b"engine")
    inputs, outputs = TensorSpec("image", "uint8", ("N", H, W, C)), TensorSpec("logits", "float32", ("N", CLASSES))
    spec = ModelSpec.named("vgg11", image_size=32)

    def run(kind: type[EngineSession] = EngineSession, precision: Precision = Precision.FP16, **how: Any) -> GpuReport:
        library = Library()
        library.cudart = cudart
        monkeypatch.setattr(backend, "backend_library", lambda *a, **k: library)

        def open_fake(bundle: Any, variant: Any, *, device: Device, gpu: Any) -> CheckedSession:
            source = Source(
                file=HashedFile.of(path), spec=spec, preprocess=PreprocessSpec(),
                inputs=(inputs,), outputs=(outputs,), batch=BatchRange(1, 2, 4), device=device, gpu=gpu,
            )  # fmt: skip
            return CheckedSession(kind(source), name="engine", batch=BatchRange(1, 2, 4))

        monkeypatch.setattr(gpu, "open_session", open_fake)
        variant: Any = SimpleNamespace(
            name="engine",
            format=kind.loader.engine_name,
            precision=precision,
            path="model.engine",
            batch=BatchRange(1, 2, 4),
        )
        manifest = SimpleNamespace(input=inputs, spec=spec, outputs=(SimpleNamespace(name="logits"),))
        bundle: Any = SimpleNamespace(manifest=manifest, root=tmp_path, sha256=lambda path: "0" * 64)
        options = {"batches": (1, 4), "streams": (1, 2), "seconds": 0.02, **how}
        report = gpu.measure_gpu(bundle, variant, pixels(16), **options)
        assert not cudart.alive and not library.alive
        return report

    return run


def roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu, "measure_roof", lambda device, precision: Roof(precision=precision, side=8192, products=9, tera_ops=800.0)
    )


def test_every_batch_is_measured_with_and_without_graphs_and_on_every_number_of_streams(measure, monkeypatch):
    roof(monkeypatch)
    report = measure()
    assert [(t.batch, t.graph) for t in report.times] == [(1, "session"), (4, "session"), (1, ""), (4, "")]
    loads = [(x.batch, x.streams, x.graph) for x in report.loads]
    assert loads == [(1, 1, True), (1, 2, True), (4, 1, True), (4, 2, True), (1, 1, False), (4, 1, False)]
    for row in report.times:
        assert row.h2d_ms == row.compute_ms == row.d2h_ms == 0.25  # the fake's clock
        assert row.tera_ops == pytest.approx(2 * report.macs * row.batch / 0.25e-3 / 1e12)
        assert row.roof_share == pytest.approx(row.tera_ops / 800)
        assert row.host_ms > 0 and row.calls >= gpu.MIN_CALLS


def test_graphs_of_rtx_are_the_library_s(measure, monkeypatch):
    roof(monkeypatch)
    assert [t.graph for t in measure(RtxSession).times] == ["library", "library", "", ""]


def test_the_report_is_json_both_ways(measure, monkeypatch):
    roof(monkeypatch)
    report = measure(batches=(1,), streams=(1,))
    assert from_json(to_json(report), GpuReport, what="report") == report
    assert (report.gpu, report.capability, report.driver) == ("Test GPU", "sm90", "13.0")
    assert report.context_bytes is None


def test_a_roof_that_cannot_be_measured_is_null_with_its_reason(measure, monkeypatch):
    monkeypatch.setattr(
        gemm, "load_cublas", lambda: (_ for _ in ()).throw(IncompatibleError("cuBLAS is not here", "x"))
    )
    report = measure(batches=(1,), streams=(1,))
    assert (report.roof, report.roof_missing) == (None, "cuBLAS is not here")
    assert report.times[0].roof_share is None


def test_energy_is_the_counter_s_and_valid_means_alone_and_not_slowed_down(measure, monkeypatch, watched):
    roof(monkeypatch)
    [load] = measure(batches=(1,), streams=(1,)).loads[:1]
    assert load.valid and load.seen.joules == 5.0 and load.seen.joules_from == "counter"
    assert load.joules_per_image == pytest.approx(5 / load.images)
    assert load.images_per_second == pytest.approx(load.images / load.seconds)
    watched(Nvml(reasons=0x48, others=2))
    [load] = measure(batches=(1,), streams=(1,)).loads[:1]
    assert not load.valid
    assert load.reasons == (
        "the GPU was slowed down: hardware slowdown, hardware thermal slowdown",
        "2 other process(es) on the GPU",
    )


def test_an_idle_gpu_and_chosen_clocks_are_no_throttling(cudart, watched):
    watched(Nvml(reasons=0x01 | 0x02))
    with GpuWatch(CUDA) as watch:
        pass
    assert watch.result().throttled == ()
    assert gpu.doubts(watch.result()) == ()


def test_the_power_limit_is_a_steady_state_and_no_slowdown(cudart, watched, measure, monkeypatch):
    """An H200 under FP16 convolutions stands at its 700 W: every row of it was invalid."""
    roof(monkeypatch)
    watched(Nvml(reasons=0x04))
    [load] = measure(batches=(1,), streams=(1,)).loads[:1]
    assert load.valid and load.seen.power_limited and load.seen.throttled == ()


def test_in_a_container_our_own_process_under_the_host_s_number_is_not_another_s(cudart, watched, monkeypatch):
    fake = watched(Nvml())
    monkeypatch.setattr(
        fake, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [SimpleNamespace(pid=4_000_001)], raising=False
    )
    with GpuWatch(CUDA) as watch:
        pass
    seen = watch.result()
    assert (seen.other_processes, seen.others_use) == (None, None)
    assert gpu.doubts(seen) == ()


def test_what_a_gpu_does_not_tell_is_null_and_energy_comes_from_power(cudart, watched):
    fake = watched(Nvml(lacks=("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature")))
    with GpuWatch(CUDA, seconds=0.005) as watch:
        time.sleep(0.05)
    seen = watch.result()
    assert fake.open == 0 and fake.address == b"0000:01:00.0"
    assert seen.samples >= 4 and seen.temperature_c_max is None
    assert seen.joules_from == "power" and seen.joules == pytest.approx(400 * seen.seconds)
    assert (seen.sm_clock_mhz_min, seen.memory_clock_mhz_max, seen.other_processes) == (1980, 2619, 0)
    assert seen.memory_total_bytes == 80 << 30


def test_the_older_name_of_the_reasons_is_asked_for(cudart, watched):
    watched(Nvml(lacks=("nvmlDeviceGetCurrentClocksEventReasons",), reasons=0x08))
    with GpuWatch(CUDA) as watch:
        pass
    assert watch.result().throttled == ("hardware slowdown",)


@pytest.mark.parametrize("lacks", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId"])
def test_a_gpu_that_is_not_watched_says_so_and_voids_the_row(cudart, watched, lacks):
    fake = watched(Nvml(lacks=(lacks,)))
    with GpuWatch(CUDA) as watch:
        pass
    seen = watch.result()
    assert fake.open == 0 and seen.samples == 0 and seen.joules is None
    assert "NVML" in seen.missing
    assert gpu.doubts(seen)[0].startswith("the GPU was not watched")


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"batches": (8,)}, UsageError, "outside 1…4"),
        ({"batches": ()}, UsageError, "at least one"),
        ({"streams": (0,)}, UsageError, "at least one"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_opened(measure, how, error, words):
    with pytest.raises(error) as caught:
        measure(**how)
    assert words in str(caught.value)


def test_the_tables_show_what_counts_and_why_the_rest_does_not(measure, monkeypatch, watched, capsys):

    from vggdeploy.cli.bench import show_gpu

    roof(monkeypatch)
    watched(Nvml(reasons=0x20))
    show_gpu(measure())
    shown = capsys.readouterr().out
    for words in ("Test GPU (sm90)", "roof 800 TOP/s", "session", "invalid", "slowed down: software thermal slowdown"):
        assert words in shown


def test_a_row_by_trtexec_stands_beside_ours_and_one_that_failed_says_why(measure, monkeypatch, capsys):
    from vggdeploy.cli.bench import show_gpu

    roof(monkeypatch)
    report = measure()
    assert report.trtexec == ()
    show_gpu(report)
    assert "trtexec" not in capsys.readouterr().out  # it is not here, and nothing is said
    row = TrtexecTimes(
        batch=1, h2d_ms=0.1, compute_ms=7.5, d2h_ms=0.1, device_ms=7.7, images_per_second=130.0, version="10.13.3",
        command="trtexec --loadEngine=[x]", warnings=("it is unstable",),
    )  # fmt: skip
    failed = TrtexecTimes(batch=4, missing="trtexec failed: no memory")
    report = msgspec.structs.replace(report, trtexec=(row, failed))
    assert from_json(to_json(report), GpuReport, what="report") == report
    show_gpu(report)
    shown = capsys.readouterr().out
    for words in (
        "the same engine by trtexec of TensorRT 10.13.3", "trtexec --loadEngine=[x]", "7.50", "it is unstable",
        "no trtexec row for batch 4: trtexec failed: no memory",
    ):  # fmt: skip
        assert words in shown


@pytest.mark.parametrize("asked", [False, True])
def test_trtexec_is_looked_for_before_and_run_after_what_we_measure(small, measure, monkeypatch, asked):
    roof(monkeypatch)
    order: list[str] = []
    report, row = measure(batches=(1,), streams=(1,)), TrtexecTimes(batch=1, missing="it failed")
    bundle, plan = Bundle.open(small), BenchPlan(batches=(1, 4), seconds=0.1)
    monkeypatch.setattr(gpu, "_choose", lambda *a: "chosen")
    monkeypatch.setattr(gpu, "find_trtexec", lambda variant, *, asked: order.append(f"{variant} {asked}") or "tool")
    monkeypatch.setattr(gpu, "measure_gpu", lambda *a, **k: order.append("ours") or report)
    monkeypatch.setattr(gpu, "trtexec_rows", lambda *a, **k: order.append(f"{a[0]} {a[2]} {a[3]}") or (row,))
    assert gpu.bench_gpu(bundle, plan, trtexec=asked).trtexec == (row,)
    assert order == [f"chosen {asked}", "ours", "tool chosen (1, 4)"]


@pytest.mark.parametrize("extra", [["--scenario", "offline"], ["--record"], ["--threads", "2"]])
def test_options_that_mean_nothing_here_are_not_ignored(small, extra):
    assert run_cli(["bench", str(small), "--gpu-detail", *extra]) == 2


def test_without_an_engine_that_runs_it_is_exit_5_with_the_reason(small, capsys):
    assert run_cli(["bench", str(small), "--gpu-detail"]) == 5
    told = capsys.readouterr().err
    assert "no variant for tensorrt" in told and "vggdeploy build" in told


def test_an_onnx_file_has_no_parts_to_measure():
    variant: Any = SimpleNamespace(name="onnx-fp32", format="onnx", batch=BatchRange(1, 2, 4))
    with pytest.raises(IncompatibleError, match="no TensorRT engine"):
        gpu.measure_gpu(SimpleNamespace(), variant, np.zeros((4, 2, 2, 3), np.uint8))


def test_every_name_of_nvml_that_our_source_uses_is_in_the_real_one():
    tree = ast.parse(Path(nvml.__file__).read_text())
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    names = {text for text in texts if text.startswith("nvml") and text != "nvml"}
    names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.lower().startswith("nvml")}
    names -= {"_nvml"}
    assert {"nvmlDeviceGetPowerUsage", "NVML_CLOCK_SM", "nvmlDeviceGetHandleByPciBusId"} <= names
    assert sorted(n for n in names if not hasattr(pynvml, n)) == []
    bits = {getattr(pynvml, n) for n in dir(pynvml) if n.startswith("nvmlClocksThrottleReason")}
    assert set(nvml._SLOWDOWNS) <= bits


def test_the_constants_of_cublas_are_those_of_its_header():
    names = ("cublasCreate_v2", "cublasDestroy_v2", "cublasSetStream_v2", "cublasGemmEx", "cublasGetStatusString")
    try:
        cublas = gemm.load_cublas()
    except IncompatibleError as error:
        pytest.skip(error.cause)
    assert [n for n in names if not hasattr(cublas, n)] == []
    header = next(Path(sys.prefix).rglob("cublas_api.h"), None)
    if header is None:
        return
    text = header.read_text()
    for name, value in (("32F", 68), ("32F_PEDANTIC", 69), ("32I", 72)):
        assert f"CUBLAS_COMPUTE_{name} = {value}" in text
        assert getattr(gemm, f"_COMPUTE_{name}") == value
    types = cuda.bindings().cudaDataType
    assert [int(types.CUDA_R_32F), int(types.CUDA_R_16F), int(types.CUDA_R_8I), int(types.CUDA_R_32I)] == [0, 2, 3, 10]


def test_no_roof_is_invented_for_a_precision_that_is_not_measured():
    with pytest.raises(IncompatibleError, match="bf16"):
        gemm.measure_roof(CUDA, Precision.BF16)
