"""The exported ONNX files, opened with the real checker and the real runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from vggdeploy.bundle import Bundle
from vggdeploy.errors import BuildError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.export.onnx import export_onnx
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.outputs import input_spec
from vggdeploy.model.vgg import VGG, fold_batch_norm, new_vgg
from vggdeploy.model.weights import load_model
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Verdict
from vggdeploy.verify.localise import localise
from vggdeploy.verify.readback import wrong_precisions

SPEC = ModelSpec.named("vgg11_bn", width=0.0625, in_channels=3, classes=7, image_size=64, hidden=16)
PREPROCESS = PreprocessSpec(resize=64, crop=64)
BATCH = BatchRange(1, 2, 16)


def tiny(seed: int = 1) -> VGG:
    """A VGG whose batch norms have seen data, so that folding them is not the identity."""
    model = new_vgg(SPEC, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(3):
        model(torch.randn(8, 3, 64, 64, generator=generator) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="module")
def bf16_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = ExportOptions(formats=["onnx-fp16", "onnx-bf16", "onnx-fp32"], samples=20)
    return export_bundle(checkpoint, tmp_path_factory.mktemp("narrow") / "bundle", options)


def test_bf16_holds_the_fp32_weights_rounded_once_whatever_else_is_exported(bf16_bundle: Bundle) -> None:
    def weights(name: str) -> dict[str, np.ndarray]:
        graph = onnx.load(bf16_bundle.path(bf16_bundle.manifest.variant(name).path)).graph
        keys = [key for node in graph.node if node.op_type in ("Conv", "Gemm") for key in node.input[1:]]
        return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in keys}

    whole, half, narrow = (weights(f"onnx-{name}") for name in ("fp32", "fp16", "bf16"))
    assert len(whole) == 22
    for key, array in whole.items():
        assert half[key].dtype == np.float16
        assert (narrow[key] == array.astype(narrow[key].dtype)).all(), key
        assert str(narrow[key].dtype) == "bfloat16"


def test_bf16_is_valid_onnx_and_unproven_where_nothing_runs_it(bf16_bundle: Bundle) -> None:
    variant = bf16_bundle.manifest.variant("onnx-bf16")
    onnx.checker.check_model(str(bf16_bundle.path(variant.path)), full_check=True)
    assert variant.proof is not None and variant.proof.layers == {"bf16": 11}
    assert variant.verdict is Verdict.UNPROVEN
    assert variant.parity is not None and "ONNX Runtime has no bf16 arithmetic" in variant.parity.reasons[0]
    assert bf16_bundle.manifest.variant("onnx-fp16").verdict is not Verdict.UNPROVEN
    assert wrong_precisions(bf16_bundle) == {}


def test_the_layers_of_a_bf16_file_are_not_accused_because_nothing_runs_them(bf16_bundle: Bundle) -> None:
    with pytest.raises(BuildError, match="no bf16 arithmetic"):
        localise(bf16_bundle, "onnx-bf16")


def test_the_cpu_really_has_no_bf16_convolution_in_onnx_runtime(bf16_bundle: Bundle) -> None:
    """When this fails ONNX Runtime has learned it, and the variant can be proven."""
    path = bf16_bundle.path(bf16_bundle.manifest.variant("onnx-bf16").path)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def exported(path: Path, module: Deployable, dtype: str = "uint8") -> onnx.ModelProto:
    export_onnx(module, path, image=input_spec(SPEC, dtype), batch=BATCH)
    return onnx.load(path)


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16"])
def test_a_bundles_onnx_passes_the_checker_with_full_shape_inference(bundle: Bundle, name: str) -> None:
    onnx.checker.check_model(str(bundle.path(bundle.manifest.variant(name).path)), full_check=True)


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16"])
def test_nothing_of_training_is_left(bundle: Bundle, name: str) -> None:
    graph = onnx.load(bundle.path(bundle.manifest.variant(name).path)).graph
    found = {node.op_type for node in graph.node}
    assert found <= {"Cast", "Transpose", "Mul", "Add", "Conv", "Relu", "MaxPool", "Reshape", "Gemm"}


def test_the_input_is_uint8_nhwc_with_a_dynamic_batch_and_cast_first(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path(bundle.manifest.variant("onnx-fp32").path)).graph
    (image,) = graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = image.type.tensor_type.shape.dim
    assert dims[0].dim_param
    assert [d.dim_value for d in dims[1:]] == [32, 32, 1]
    first = next(node for node in graph.node if "image" in node.input)
    assert first.op_type == "Cast"


def test_the_precision_proof_is_what_the_file_holds(bundle: Bundle) -> None:
    for name, dtype in (("onnx-fp32", np.float32), ("onnx-fp16", np.float16)):
        variant = bundle.manifest.variant(name)
        graph = onnx.load(bundle.path(variant.path)).graph
        types = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        weights = [types[n.input[1]].dtype for n in graph.node if n.op_type in ("Conv", "Gemm")]
        assert weights == [dtype] * 11
        assert variant.proof is not None
        assert variant.proof.layers == {variant.precision: 11}
        named = [types[n] for node in graph.node if node.op_type in ("Conv", "Gemm") for n in node.input[1:]]
        stored = sum(a.nbytes for a in named if a.nbytes > 1024)
        assert variant.proof.weight_bytes == {variant.precision: stored}


def test_weights_are_the_checkpoints_bit_for_bit(bundle: Bundle) -> None:
    model = fold_batch_norm(load_model(bundle.path("checkpoint")))
    graph = onnx.load(bundle.path("variants/onnx-fp32/model.onnx")).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(stored[key], tensor.numpy())


def test_fp16_weights_are_the_fp32_weights_rounded_once(bundle: Bundle) -> None:
    def weights(name: str) -> dict[str, np.ndarray]:
        graph = onnx.load(bundle.path(f"variants/{name}/model.onnx")).graph
        return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("weight")}

    full, half = weights("onnx-fp32"), weights("onnx-fp16")
    assert full.keys() == half.keys()
    for key, array in full.items():
        np.testing.assert_array_equal(half[key], array.astype(np.float16))


@pytest.mark.parametrize("samples", [1, 2, 5, 16])
def test_any_batch_runs_and_equals_torch(tmp_path: Path, samples: int) -> None:
    module = Deployable(fold_batch_norm(tiny()), PREPROCESS).eval()
    exported(tmp_path / "m.onnx", module)
    images = np.random.default_rng(samples).integers(0, 256, (samples, 64, 64, 3), dtype=np.uint8)
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": images})
    with torch.inference_mode():
        (expected,) = module(torch.from_numpy(images))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_named_outputs_come_in_the_order_asked_and_what_they_do_not_need_is_cut(tmp_path: Path) -> None:
    module = Deployable(fold_batch_norm(tiny()), PREPROCESS, outputs=("relu2_1", "pool1")).eval()
    model = exported(tmp_path / "m.onnx", module)
    assert [o.name for o in model.graph.output] == ["relu2_1", "pool1"]
    assert [n.op_type for n in model.graph.node].count("Conv") == 2
    assert "Gemm" not in {n.op_type for n in model.graph.node}


def test_a_float_input_leaves_the_preprocessing_out(tmp_path: Path) -> None:
    model = exported(
        tmp_path / "m.onnx", Deployable(fold_batch_norm(tiny()), PREPROCESS, input_dtype="float32"), "float32"
    )
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {n.op_type for n in model.graph.node} <= {"Conv", "Relu", "MaxPool", "Reshape", "Gemm"}


def test_a_graph_with_training_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"Dropout|BatchNormalization"):
        export_onnx(Deployable(tiny(), PREPROCESS).train(), tmp_path / "m.onnx", image=input_spec(SPEC), batch=BATCH)
    assert not (tmp_path / "m.onnx").exists()


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        exported(tmp_path / name, Deployable(fold_batch_norm(tiny()), PREPROCESS).eval())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
