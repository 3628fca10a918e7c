"""Which layers a library's kernels compute: by the real libraries here, and by the names that TensorRT gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fakes.gpu import Library, expected, pixels
from fakes.library import LAYERS
from fixtures.small import SPEC, write_bundle

from vggdeploy.bundle import Bundle
from vggdeploy.errors import UsageError, VggdeployError
from vggdeploy.model.formats.chain import Step
from vggdeploy.model.layers import layers_of
from vggdeploy.runtime import open_session, runnable
from vggdeploy.runtime.base import Kernel, Source
from vggdeploy.runtime.kernels import LayerMap, layer_map
from vggdeploy.runtime.onnxruntime.profile import read_calls
from vggdeploy.runtime.sessions import open_profiled
from vggdeploy.runtime.tensorrt.profile import inspected, onnx_nodes
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import Precision

PRODUCTS = [layer.name for layer in layers_of(SPEC) if layer.kind in ("conv", "linear")]
ALL = ["preprocess", *(layer.name for layer in layers_of(SPEC) if layer.kind not in ("batch_norm", "dropout"))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, onnx_files: dict[Precision, Path]) -> Bundle:
    files = {p: onnx_files[p] for p in (Precision.FP32, Precision.FP16, Precision.INT8)}
    return write_bundle(tmp_path_factory.mktemp("tiny") / "bundle", files)


def timed(bundle: Bundle, name: str, backend: str = "onnx", calls: int = 3) -> list[tuple[Kernel, ...]]:
    from msgspec.structs import replace

    variant = replace(bundle.manifest.variant(name), format=backend)
    if not (
        here := runnable(variant)
    ).runs:  # OpenVINO has FP16 and unproven INT8 only where the CPU has instructions for it
        pytest.skip(here.reason)
    with open_profiled(bundle, variant, threads=1) as session:
        for _ in range(calls):
            session.run({"image": np.zeros((1, 32, 32, 3), np.uint8)})
        return session.profiled.kernels()


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16", "onnx-int8"])
def test_every_layer_is_in_a_kernel_of_the_real_library_and_products_in_one_each(
    tiny: Bundle, name: str, backend: str
) -> None:
    calls = timed(tiny, name, backend)
    assert len(calls) == 3
    kernels = calls[-1]
    layers = layer_map(tiny, tiny.manifest.variant(name)).layers([kernel.nodes for kernel in kernels])
    named = [layer for found in layers for layer in found]
    assert list(dict.fromkeys(named)) == ALL  # each of them, in the order of the network
    heavy = [
        found
        for kernel, found in zip(kernels, layers, strict=True)
        if any(word in kernel.kind for word in ("Conv", "Gemm", "FullyConnected", "MatMul"))
        and "Convert" not in kernel.kind
    ]
    assert [next(layer for layer in found if layer in PRODUCTS) for found in heavy] == PRODUCTS
    assert all(kernel.ms >= 0 for kernel in kernels)
    assert any(kernel.ms > 0 for kernel in kernels)


def test_a_session_that_is_not_timed_has_the_same_answers_and_leaves_nothing(tiny: Bundle, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for backend in ("onnx", "openvino"):
        from msgspec.structs import replace

        variant = replace(tiny.manifest.variant("onnx-fp32"), format=backend)
        with (
            open_session(tiny, variant, threads=1) as plain,
            open_profiled(tiny, variant, threads=1) as slow,
        ):
            np.testing.assert_array_equal(plain.run({"image": image})["logits"], slow.run({"image": image})["logits"])


def test_onnx_runtime_s_file_is_gone_with_the_session(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_profiled(tiny, tiny.manifest.variant("onnx-fp32")) as session:
        session.run({"image": np.zeros((1, 32, 32, 3), np.uint8)})
        assert any(tmp_path.rglob("calls*.json"))
    assert not list(tmp_path.iterdir())


def test_a_backend_that_cannot_time_its_layers_names_those_that_can(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="torchscript does not time its layers on cpu") as caught:
        open_profiled(bundle, bundle.manifest.variant("torchscript-fp32"))
    assert "onnxruntime on cpu" in caught.value.hint


STEPS = tuple(
    Step(kind, layer, ())  # type: ignore[arg-type]
    for kind, layer in (
        ("scale", "preprocess"), ("conv", "conv1_1"), ("relu", "relu1_1"), ("pool", "pool1"),
        ("flatten", "fc6"), ("linear", "fc6"), ("relu", "relu6"), ("linear", "fc7"), ("relu", "relu7"), ("linear", "fc8"),
    )
)  # fmt: skip
NAMES = ("mul", "conv", "relu", "pool", "flat", "fc6", "relu6", "fc7", "relu7", "fc8")
MAP = LayerMap(STEPS, {name: range(i, i + 1) for i, name in enumerate(NAMES)} | {"cast": range(2, 2)})


@pytest.mark.parametrize(
    ("kernels", "layers"),
    [
        # Named after its last operator: the convolution before it is in it.
        ([["mul"], ["relu"], ["pool"]],
         [("preprocess",), ("conv1_1", "relu1_1"), ("pool1", "fc6", "relu6", "fc7", "relu7", "fc8")]),
        # Named after its first: the ReLU behind it is in it, and not in the next product.
        ([["mul"], ["conv"], ["pool"], ["fc6"], ["fc7"], ["fc8"]],
         [("preprocess",), ("conv1_1", "relu1_1"), ("pool1",), ("fc6", "relu6"), ("fc7", "relu7"), ("fc8",)]),
        # What moves data has no layer, and takes none from its neighbours.
        ([["mul"], ["copy"], ["conv", "relu"], [], ["pool"], ["fc6"], ["fc8"]],
         [("preprocess",), (), ("conv1_1", "relu1_1"), (), ("pool1",), ("fc6", "relu6"), ("fc7", "relu7", "fc8")]),
        # From the first operator to the last.
        ([["mul", "fc8"]], [("preprocess", "conv1_1", "relu1_1", "pool1", "fc6", "relu6", "fc7", "relu7", "fc8")]),
        # A cast belongs to the layer whose values it converts, and computes no step.
        ([["mul"], ["conv"], ["cast"], ["relu"], ["pool"], ["fc6"], ["relu6"], ["fc7"], ["fc8"]],
         [("preprocess",), ("conv1_1",), ("conv1_1",), ("relu1_1",), ("pool1",), ("fc6",), ("relu6",),
          ("fc7", "relu7"), ("fc8",)]),
        ([["unknown"]], [()]),
        ([], []),
    ],
)  # fmt: skip
def test_a_fused_kernel_lists_all_its_members(kernels: list[list[str]], layers: list[tuple[str, ...]]) -> None:
    assert MAP.layers(kernels) == layers


@pytest.mark.parametrize(
    ("name", "metadata", "nodes"),
    [
        ("node_conv2d + node_relu", "", ("node_conv2d", "node_relu")),
        ("__myl_ConvActi_myl0_3", "[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_relu]", ("node_conv2d", "node_relu")),
        ("__myl_Fc", "[ONNX Layer: node_linear]\x1e[ONNX Layer: node_linear]", ("node_linear",)),
        ("{ForeignNode[node_permute...node_linear_2]}", "", ("node_permute", "node_linear_2")),
        ("Reformatting CopyNode for Input Tensor 0 to node_conv2d", "[ONNX Layer: node_conv2d]", ()),
        ("12", "", ("12",)),
    ],
)
def test_the_names_of_tensorrt_s_layers(name: str, metadata: str, nodes: tuple[str, ...]) -> None:
    assert onnx_nodes(name, metadata) == nodes


Gpu = Callable[..., tuple[Any, Library]]


@pytest.mark.parametrize("kind", [EngineSession, RtxSession])
def test_an_engine_reports_each_call_s_layers_after_it_is_over(
    gpu: Gpu, source: Source, kind: type[EngineSession]
) -> None:
    from dataclasses import replace

    cudart, library = gpu()
    with kind(replace(source, profile=True)) as session:
        for seed in range(3):
            image = pixels(2, seed)
            np.testing.assert_array_equal(session.run({"image": image})["logits"], expected(image))
        calls = session.kernels()
    assert [[(k.name, k.ms) for k in call] for call in calls] == [
        [(layer["Name"], number) for number, layer in enumerate(LAYERS, 1)]
    ] * 3
    assert [k.nodes for k in calls[0]] == [(), ("node_conv2d", "node_relu"), ("node_linear", "node_relu_8")]
    assert [k.kind for k in calls[0]] == ["Reformat", "CaskConvolution", "gemm"]
    assert not cudart.alive
    assert not library.alive


def test_an_engine_that_reports_no_times_is_an_error_and_no_zero(gpu: Gpu, source: Source) -> None:
    from dataclasses import replace

    cudart, library = gpu(library=Library("report_to_profiler"))
    with (
        pytest.raises(VggdeployError, match="did not report the times"),
        EngineSession(replace(source, profile=True)) as session,
    ):
        session.run({"image": pixels(1)})
    assert not cudart.alive
    assert not library.alive


def test_a_plain_session_of_an_engine_has_no_profiler(gpu: Gpu, source: Source) -> None:
    _, library = gpu(library=Library("report_to_profiler"))
    with EngineSession(source) as session:
        session.run({"image": pixels(1)})
        assert session.kernels() == []
    assert not library.alive


@pytest.mark.parametrize("text", ["", "{}", "null", '{"Layers": [{"LayerType": "x"}]}'])
def test_an_inspector_that_lists_no_layers_is_one_clear_line(text: str) -> None:
    class Engine:
        def create_engine_inspector(self) -> Any:
            return type("I", (), {"get_engine_information": lambda *_: text})()

    class Format:
        JSON = 0

    library: Any = ModuleType("library")
    library.LayerInformationFormat = Format
    with pytest.raises(VggdeployError, match="no list of layers"):
        inspected(library, Engine())


def test_calls_of_onnx_runtime_are_told_apart() -> None:
    def event(name: str, dur: int, cat: str = "Node") -> dict[str, Any]:
        return {"cat": cat, "name": name, "dur": dur, "args": {"op_name": "Conv"}}

    def names(events: Sequence[dict[str, Any]]) -> list[list[tuple[str, float]]]:
        import json

        return [[(k.name, k.ms) for k in call] for call in read_calls(json.dumps(events).encode())]

    run = event("model_run", 9, "Session")
    assert names([event("a_kernel_time", 1500), run, event("a_kernel_time", 3), event("a_fence_before", 1), run]) == [
        [("a", 1.5)],
        [("a", 0.003)],
    ]
    assert names([event("a_kernel_time", 1)]) == []  # a call that did not end
