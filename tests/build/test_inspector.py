"""What an engine's own inspector says about precision: TensorRT 10's JSON and 11's, and a real engine where a GPU is."""

from __future__ import annotations

import json
import types

import pytest

from vggdeploy.build import request
from vggdeploy.build.engines import build_into
from vggdeploy.build.readback import EngineFacts, inspect_engine, layers_by_type
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import Bundle
from vggdeploy.bundle.precision import check_engine
from vggdeploy.errors import BuildError, ParityError
from vggdeploy.runtime.base import Availability
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.runtime.tensorrt import rtx as backend
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Precision


def ten(name: str, kind: str, source: str, result: str, **more: str) -> dict:
    """A layer as TensorRT 10's inspector writes it."""
    tensor = "Channel major {} format where channel % 8 == 0"
    ends = {"Inputs": source, "Outputs": result}
    return {"Name": name, "LayerType": kind, **more} | {
        end: [{"Name": "x", "Dimensions": [8, 64, 224, 224], "Format/Datatype": tensor.format(text)}]
        for end, text in ends.items()
    }


def eleven(name: str, kind: str, source: str, result: str, **more: str) -> dict:
    """The same as TensorRT 11 does: format and type apart."""
    ends = {"Inputs": source, "Outputs": result}
    return {"Name": name, "LayerType": kind, **more} | {
        end: [{"Name": "x", "Shape": [8, 64, 224, 224], "Format": "NHWC8", "Datatype": text}]
        for end, text in ends.items()
    }


@pytest.mark.parametrize(("layer", "half", "full"), [(ten, "FP16", "FP32"), (eleven, "Half", "Float")])
def test_products_are_counted_and_what_moves_data_is_not(layer, half, full):
    layers = [
        layer("Reformatting CopyNode for Input Tensor 0 to node_conv2d", "Reformat", full, half),
        layer("node_conv2d + relu", "CaskConvolution", half, half, ParameterType="Convolution"),
        layer("__myl_ConvActi_myl0_3", "conv", half, half),
        layer("node_linear", "CaskGemmMatrixMultiply", half, full, ParameterType="MatrixMultiply"),  # cast at its end
        layer("__myl_MulAdd_myl0_1", "kgen", full, half, TacticName="__myl_MulAdd_0x1"),
        layer("node_conv2d_1", "CaskConvolution", "Int8", half, ParameterType="Convolution"),
    ]
    assert layers_by_type(json.dumps({"Layers": layers})) == {"fp16": 3, "int8": 1}
    wide = layer("node_conv2d_2", "CaskConvolution", full, full, ParameterType="Convolution")
    assert layers_by_type(json.dumps({"Layers": [*layers, wide]})) == {"fp16": 3, "fp32": 1, "int8": 1}


DYNAMIC = "N/A due to dynamic shapes"


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"Weights": {"Type": "Half", "Count": 1728}}, "fp16"),
        ({"Weights": {"Type": "Float", "Count": 1728}}, "fp32"),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nchw_tilesize128x128x32"}, "fp16"),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nchw"}, "fp32"),
        ({"TacticName": "ampere_scudnn_128x64_relu_small_nn_v1"}, "fp32"),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32"}, "int8"),
        ({"TacticName": "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32"}, "bf16"),
    ],
)
def test_of_a_dynamic_batch_the_weights_or_the_kernel_say_the_type(more: dict, kind: str) -> None:
    """TensorRT 10 says no format of a layer with a dynamic shape: an FP32 convolution was accepted as FP16."""
    layer = {"Name": "node_conv2d", "LayerType": "CaskConvolution", "ParameterType": "Convolution", **more}
    layer |= {
        end: [{"Name": "x", "Dimensions": [-1, 64, 224, 224], "Format/Datatype": DYNAMIC}]
        for end in ("Inputs", "Outputs")
    }
    assert layers_by_type(json.dumps({"Layers": [layer]})) == {kind: 1}


def test_described_layers_that_say_no_type_prove_nothing_and_are_refused() -> None:
    silent = {"Name": "node_conv2d", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": DYNAMIC}]}
    with pytest.raises(BuildError, match="names no type of any convolution"):
        layers_by_type(json.dumps({"Layers": [silent]}))


def test_a_conversion_is_no_convolution() -> None:
    layers = [ten("Convert_3", "Convert", "FP32", "FP16"), ten("node_conv2d", "CaskConvolution", "FP16", "FP16")]
    assert layers_by_type(json.dumps({"Layers": layers})) == {"fp16": 1}


def test_an_int8_file_may_keep_layers_in_fp32_but_not_all() -> None:
    """What `optimize --max-accuracy-drop` makes: it built without a GPU, and was refused with one."""
    check_engine({"int8": 14, "fp32": 2}, Precision.INT8, source="m.onnx")
    with pytest.raises(ParityError, match="16 convolutions or matrix products in fp32"):
        check_engine({"fp32": 16}, Precision.INT8, source="m.onnx")


def test_an_engine_without_details_proves_nothing_and_refuses_nothing():
    assert layers_by_type(json.dumps({"Layers": ["node_conv2d", "node_linear"]})) == {}
    check_engine({}, Precision.FP16, source="m.onnx")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"Layers"'])
def test_an_answer_that_is_none_is_one_clear_line(text):
    with pytest.raises(BuildError, match="no list of layers"):
        layers_by_type(text)


def test_fp32_in_an_fp16_engine_is_exit_code_3():
    with pytest.raises(ParityError, match="1 convolutions or matrix products in fp32") as caught:
        check_engine({"fp16": 15, "fp32": 1}, Precision.FP16, source="m.onnx")
    assert caught.value.exit_code == 3
    check_engine({"fp32": 16}, Precision.FP32, source="m.onnx")


def test_an_engine_that_does_not_load_is_told_with_the_library_s_cause(library, bundle):
    """Here, without a GPU, the real library refuses even its own engine."""
    built = build_into(bundle, BuildPlan(engine="rtx", targets=["ada"]))
    file = built.bundle.path(built.variant.path)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda data: None)
    fake = types.SimpleNamespace(
        ILogger=library.ILogger, Runtime=lambda logger: runtime, __name__="tensorrt_rtx", __version__="1.7.1"
    )
    with pytest.raises(BuildError, match=r"TensorRT for RTX 1\.7\.1 cannot load the engine that it built"):
        inspect_engine(fake, HashedFile.of(file))


def test_where_the_gpu_is_the_engine_s_own_answer_is_in_the_manifest(bundle, monkeypatch, library):
    gpu = Gpu(0, "NVIDIA GeForce RTX 4090", "sm89", "13.0")
    monkeypatch.setattr(backend, "probe", lambda device: Availability(True, "cuda:0", version=library.__version__))
    monkeypatch.setattr(request, "find_gpu", lambda device: gpu)
    monkeypatch.setattr(request, "use", lambda device: None)
    monkeypatch.setattr(request, "inspect_engine", lambda library, engine: EngineFacts({"fp16": 11}, (64, 256)))
    built = build_into(bundle, BuildPlan(engine="rtx", targets=["ada"]))
    assert built.variant.proof.engine == {"fp16": 11}
    assert Bundle.open(bundle.root).manifest.variant(built.variant.name).build.scratch == (64, 256)
    other = build_into(
        built.bundle, BuildPlan(engine="rtx", targets=["sm120"])
    )  # not for this GPU: it cannot be loaded
    assert other.variant.proof.engine == {} and other.variant.build.scratch == ()
    monkeypatch.setattr(request, "inspect_engine", lambda library, engine: EngineFacts({"fp32": 11}, ()))
    before = (bundle.root / "manifest.json").read_bytes()
    with pytest.raises(ParityError, match="11 convolutions or matrix products in fp32"):
        build_into(other.bundle, BuildPlan(engine="rtx", targets=["ada"]))
    assert (bundle.root / "manifest.json").read_bytes() == before


@pytest.mark.gpu
def test_a_real_engine_is_inspected_on_a_real_gpu(request):
    """With TensorRT for RTX where it knows the GPU; with TensorRT otherwise."""
    from vggdeploy.runtime import get_backend
    from vggdeploy.types import Device

    name = next((n for n in ("tensorrt-rtx", "tensorrt") if get_backend(n).probe(Device("cuda")).runs), None)
    if name is None:
        pytest.skip("no TensorRT runs here")
    variant = build_into(request.getfixturevalue("bundle"), BuildPlan(engine=name)).variant
    assert "fp32" not in variant.proof.engine
