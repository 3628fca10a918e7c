"""ONNX Runtime on devices: what is not here is an exit 5 with its reason, never a quiet CPU; options and graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fixtures.small import write_bundle, write_onnx

from vggdeploy.bundle import Bundle
from vggdeploy.errors import BundleError, IncompatibleError, UsageError, VggdeployError
from vggdeploy.runtime import GpuOptions, get_backend, open_session
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.onnxruntime import providers as onnxruntime_providers
from vggdeploy.runtime.onnxruntime import session as backend
from vggdeploy.runtime.onnxruntime.session import GraphRunner, OnnxRuntimeSession
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, Precision

ON_GPU = ["cuda", "cuda+tensorrt", "cuda+rtx"]
CPU_BUILD = "CUDAExecutionProvider" not in ort.get_available_providers()


def source(tmp_path: Path, device: str = "cpu", **changes: Any) -> Source:
    data = tiny.onnx_bytes(tiny.weights())
    path = tmp_path / "tiny.onnx"
    path.write_bytes(data)
    made = tiny.source(Device.parse(device), file=HashedFile.of(path))
    return Source(**{**{f: getattr(made, f) for f in made.__dataclass_fields__}, **changes})


def test_the_tiny_network_is_what_onnx_says_it_is() -> None:
    import onnx

    onnx.checker.check_model(onnx.load_from_string(tiny.onnx_bytes(tiny.weights())), full_check=True)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_tiny_network_computes_what_numpy_computes(tmp_path: Path, batch: int) -> None:
    image = tiny.images(batch)
    with OnnxRuntimeSession(source(tmp_path)) as session:
        logits = session.run({"image": image})["logits"]
    np.testing.assert_allclose(logits, tiny.reference(image, tiny.weights()), atol=1e-5)


@pytest.mark.skipif(not CPU_BUILD, reason="onnxruntime-gpu is installed here")
@pytest.mark.parametrize("device", ON_GPU)
def test_a_device_that_is_not_here_has_a_reason_and_a_fix(device: str) -> None:
    found = get_backend("onnxruntime").probe(Device.parse(device))
    assert not found.runs
    assert found.reason and "pip" in found.fix
    assert found.version == ort.__version__


@pytest.mark.skipif(not CPU_BUILD, reason="onnxruntime-gpu is installed here")
@pytest.mark.parametrize("device", ["cuda", "cuda+tensorrt"])
def test_a_session_on_a_gpu_that_is_not_here_is_never_one_on_the_cpu(tmp_path: Path, device: str) -> None:
    with pytest.raises(IncompatibleError) as caught, OnnxRuntimeSession(source(tmp_path, device)):
        pass
    assert caught.value.exit_code == 5
    assert caught.value.hint


@pytest.mark.parametrize(("installed", "runs"), [("11.4.0", False), (None, False), ("10.13.3", True)])
def test_the_tensorrt_provider_says_which_tensorrt_it_needs(monkeypatch, installed: str | None, runs: bool) -> None:
    """[gpu] brings TensorRT 11, and the provider links TensorRT 10: the remedy was to check nvidia-smi."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(onnxruntime_providers.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime_providers, "package_version", lambda name: installed)
    found = get_backend("onnxruntime").probe(Device("cuda+tensorrt"))
    told = "libnvinfer.so.10" in found.reason
    assert not found.runs and told is not runs  # what is missing then is the driver
    if told:
        assert (installed or "none") in found.reason and "tensorrt==10.*" in found.fix


def test_a_provider_that_the_session_has_not_got_is_a_fall_back(tmp_path: Path) -> None:
    session = ort.InferenceSession(source(tmp_path).file.path, providers=["CPUExecutionProvider"])
    with pytest.raises(IncompatibleError, match="fell back from cuda:0 to CPUExecutionProvider"):
        onnxruntime_providers.check_places(session, "CUDAExecutionProvider", Device("cuda"))


def test_layers_that_went_elsewhere_are_counted_and_named(tmp_path: Path) -> None:
    """The places are real ONNX Runtime's; only the provider's list pretends that there is a GPU beside the CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    real = ort.InferenceSession(source(tmp_path).file.path, options, providers=["CPUExecutionProvider"])
    session = SimpleNamespace(
        get_providers=lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=real.get_provider_graph_assignment_info,
    )
    with pytest.raises(IncompatibleError, match="runs 2 layers elsewhere, the first: Conv on CPUExecutionProvider"):
        onnxruntime_providers.check_places(session, "TensorrtExecutionProvider", Device("cuda+tensorrt"))
    onnxruntime_providers.check_places(real, "CPUExecutionProvider", Device("cpu"))


def test_the_cuda_options_are_those_that_matter_for_a_convolutional_net(tmp_path: Path) -> None:
    options = onnxruntime_providers.cuda_options(source(tmp_path, "cuda:1"), graphs=True)
    assert options == {
        "device_id": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "1",
    }
    half = onnxruntime_providers.cuda_options(source(tmp_path, "cuda", precision=Precision.FP16), graphs=False)
    assert (half["prefer_nhwc"], half["enable_cuda_graph"]) == ("1", "0")


def test_the_tensorrt_providers_get_the_batch_profile_and_no_engine_cache(tmp_path: Path) -> None:
    about = source(tmp_path, "cuda+tensorrt", batch=BatchRange(1, 8, 32), precision=Precision.FP16)
    options = onnxruntime_providers.tensorrt_options(about)
    assert options["trt_profile_min_shapes"] == "image:1x8x8x3"
    assert options["trt_profile_max_shapes"] == "image:32x8x8x3"
    assert options["trt_fp16_enable"] == "1"
    assert not any("cache" in name for name in options)
    assert onnxruntime_providers.rtx_options(about)["nv_profile_opt_shapes"] == "image:8x8x8x3"


class WithoutGraphs:
    """Stands for a provider that refuses CUDA graphs, and a real session behind it."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def __call__(self, source: Source, model: Any, options: Any, *, graphs: bool = False) -> Any:
        self.asked.append(graphs)
        if graphs:
            raise RuntimeError("This session cannot use the graph capture feature as requested")
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_a_graph_that_cannot_be_captured_is_noted_and_the_session_runs_without(tmp_path, monkeypatch) -> None:
    opener = WithoutGraphs()
    monkeypatch.setattr(backend, "open_on", opener)
    image = tiny.images(2)
    with OnnxRuntimeSession(source(tmp_path, "cuda")) as session:
        assert "graph capture" in session.graphs_refused
        np.testing.assert_allclose(
            session.run({"image": image})["logits"], tiny.reference(image, tiny.weights()), atol=1e-5
        )
    assert opener.asked == [True, False]


def test_graphs_are_not_asked_for_when_they_are_not_wanted(tmp_path, monkeypatch) -> None:
    opener = WithoutGraphs()
    monkeypatch.setattr(backend, "open_on", opener)
    with OnnxRuntimeSession(source(tmp_path, "cuda", gpu=GpuOptions(graphs=False))) as session:
        assert session.graphs_refused == ""
    assert opener.asked == [False]


def test_bound_buffers_are_made_once_a_size_and_give_the_right_answers(tmp_path, monkeypatch) -> None:
    """The same binding on the CPU: addresses stay, so a captured graph would stay right."""
    about = source(tmp_path)
    session = ort.InferenceSession(about.file.path, providers=["CPUExecutionProvider"])
    make = ort.OrtValue.ortvalue_from_shape_and_type
    made: list[Any] = []

    def on_cpu(shape: Any, kind: Any, device: str, index: int) -> Any:
        assert (device, index) == ("cuda", 0)
        made.append(make(shape, kind, "cpu", 0))
        return made[-1]

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", staticmethod(on_cpu))
    runner = GraphRunner(session, about)
    for seed, size in enumerate((2, 4, 2, 2)):
        image = tiny.images(size, seed)
        np.testing.assert_allclose(
            runner.run({"image": image})["logits"], tiny.reference(image, tiny.weights()), atol=1e-5
        )
    assert len(made) == 4
    assert [b.options.get_run_config_entry("gpu_graph_id") for b in runner._bound.values()] == ["2", "4"]


def test_a_damaged_file_is_the_bundle_s_fault_on_the_cpu(tmp_path: Path) -> None:
    about = source(tmp_path)
    about.file.path.write_bytes(b"not an ONNX file")
    about = replace(about, file=HashedFile.of(about.file.path))
    with pytest.raises(BundleError, match=r"cannot open tiny\.onnx"), OnnxRuntimeSession(about):
        pass


@pytest.mark.parametrize("device", ["cuda+tensorrt:1", "cuda+rtx", "cuda+trt"])
def test_devices_of_onnx_runtime_are_parsed_and_no_other_backend_takes_them(device: str) -> None:
    where = Device.parse(device)
    assert Device.parse(str(where)) == where
    found = get_backend("torch").probe(where)
    assert not found.runs
    assert "torch runs on cpu and cuda, not on cuda+" in found.reason


def test_a_device_is_no_part_of_an_engine_s_or_a_training_s() -> None:
    from vggdeploy.train.environment import pick_device

    with pytest.raises(UsageError, match="a device of ONNX Runtime"):
        pick_device(Device.parse("cuda+rtx"))
    with pytest.raises(UsageError, match="is unknown"):
        Device.parse("cuda+openvino")


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("small")
    return write_bundle(root / "bundle", {Precision.FP32: write_onnx(root / "fp32.onnx", Precision.FP32)})


def test_settings_of_a_gpu_are_not_ignored_on_the_cpu(small_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="settings of a GPU"):
        open_session(small_bundle, small_bundle.manifest.variant("onnx-fp32"), gpu=GpuOptions())


def test_what_a_backend_without_a_gpu_lacks_is_said(small_bundle: Bundle) -> None:
    bundle = small_bundle
    golden = bundle.golden()[0]
    with open_session(bundle, bundle.manifest.variant("onnx-fp32")) as session:
        with pytest.raises(IncompatibleError, match="no run_async"):
            session.run_async(golden)
        whole = [answer["logits"] for answer in session.stream([golden, golden])]
        np.testing.assert_array_equal(whole[0], session.run(golden)["logits"])
        assert len(whole) == 2
        with pytest.raises(UsageError):
            next(session.stream([golden], depth=0))
    with pytest.raises(VggdeployError, match="closed"):
        next(session.stream([golden]))


def test_options_of_a_gpu_are_checked() -> None:
    with pytest.raises(UsageError, match="number of contexts cannot be 0"):
        GpuOptions(contexts=0)
    with pytest.raises(UsageError, match="CUDA graphs"):
        GpuOptions(graph_batches=(0,))
