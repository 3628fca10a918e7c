"""What a shipped file computes in is read from the file, layer by layer, and a wrong one is named."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from attacks.planting import convolution_in_fp32, rewrite_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.bundle.precision import Product, by_type, check
from vggdeploy.cli.app import run
from vggdeploy.errors import BundleError, ParityError
from vggdeploy.model.formats.graph import sorted_nodes
from vggdeploy.model.formats.onnx import read_onnx_file
from vggdeploy.model.layers import layer_names
from vggdeploy.parity.products import read_onnx
from vggdeploy.system.sealed import mapped
from vggdeploy.types import Precision
from vggdeploy.verify.readback import read_products

CONVOLUTIONS = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"]
DENSE = ["fc6", "fc7", "logits"]


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16", "torchscript-fp32"])
def test_every_layer_is_read_back_by_its_name_and_agrees_with_the_exporter(bundle: Bundle, name: str) -> None:
    variant = bundle.manifest.variant(name)
    products = read_products(bundle, variant)
    assert products is not None
    assert [p.layer for p in products] == CONVOLUTIONS + DENSE
    assert variant.proof is not None
    assert by_type(products) == variant.proof.layers


def test_a_quantised_graph_has_int8_products(onnx_files: dict[Precision, Path]) -> None:
    products = read_onnx(onnx_files[Precision.INT8], {})
    assert by_type(products) == {"int8": 11}
    assert by_type(read_onnx(onnx_files[Precision.BF16], {})) == {"bf16": 11}


def test_weights_that_are_only_stored_in_8_bits_are_no_int8_product(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["classifier.0.weight", "scale"], ["wide"]),
            helper.make_node("MatMul", ["x", "wide"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(np.ones((4, 3), np.int8), "classifier.0.weight"),
            numpy_helper.from_array(np.float32(0.1), "scale"),
        ],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert read_onnx(tmp_path / "m.onnx", {"classifier.0": "fc6"}) == (Product("fc6", "fp32"),)


def test_types_are_read_without_the_weights(bundle: Bundle) -> None:
    path = bundle.path(bundle.manifest.variant("onnx-fp32").path)
    bare, whole = read_onnx_file(mapped(path), path.name), onnx.load(path)
    assert [n.op_type for n in bare.nodes] == [n.op_type for n in whole.graph.node]
    assert [(t.name, t.type, list(t.dims)) for t in bare.tensors] == [
        (t.name, t.data_type, t.dims) for t in whole.graph.initializer
    ]


def test_one_convolution_in_fp32_fails_an_fp16_variant_and_is_named(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_onnx(own_bundle, "onnx-fp16", convolution_in_fp32(3))
    assert run(["verify", str(own_bundle), "--variant", "onnx-fp16", "--data", "golden"]) == 3
    assert "fp16 was asked" in (shown := capsys.readouterr().out)
    assert "1 in fp32 (of 11): conv3_2" in shown
    assert run(["inspect", str(own_bundle)]) == 3
    assert "conv3_2" in capsys.readouterr().out


def test_one_half_layer_in_a_torchscript_file_is_found_and_named(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(own_bundle)
    variant = bundle.manifest.variant("torchscript-fp32")
    path = bundle.path(variant.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        module = torch.jit.load(path)
        getattr(module.classifier, "3").half()
        changed = own_bundle.parent / "changed.pt"
        torch.jit.save(module, changed)
    with update_bundle(bundle) as draft:
        shutil.copyfile(changed, draft.path(variant.path))
    products = read_products(Bundle.open(own_bundle), variant)
    assert products is not None
    assert [p for p in products if p.type != "fp32"] == [("fc7", "fp16")]
    assert run(["verify", str(own_bundle), "--variant", "torchscript-fp32", "--data", "golden", "--layers"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 in fp16 (of 11): fc7" in shown  # --layers cannot look into it, and the report is there all the same
    assert "no layers of torchscript-fp32: torchscript-fp32 is not ONNX, and --layers reads only ONNX" in shown


def test_many_wrong_layers_are_named_in_one_line() -> None:
    from vggdeploy.bundle import PrecisionProof

    products = tuple(Product(f"conv{i}", "fp32") for i in range(9))
    with pytest.raises(ParityError, match="9 in fp32 \\(of 9\\): conv0, conv1, conv2 and 6 more"):
        check(PrecisionProof(layers={"fp32": 9}, weight_bytes={}), Precision.FP16, source="x", products=products)


def test_what_an_engine_was_built_in_is_held_against_its_record(own_bundle: Path) -> None:
    import msgspec

    from vggdeploy.bundle import PrecisionProof
    from vggdeploy.verify.readback import check_precision

    variant = Bundle.open(own_bundle).manifest.variant("onnx-fp16")
    engine = msgspec.structs.replace(variant, proof=PrecisionProof(layers={"fp16": 10, "fp32": 1}, weight_bytes={}))
    with pytest.raises(ParityError, match="1 in fp32"):
        check_precision(engine, None)
    inspected = PrecisionProof(layers={"fp16": 11}, weight_bytes={}, engine={"fp16": 8, "fp32": 1})
    with pytest.raises(ParityError, match="1 convolutions or matrix products in fp32"):
        check_precision(msgspec.structs.replace(variant, proof=inspected), None)


def test_names_follow_the_checkpoints_keys(bundle: Bundle) -> None:
    names = layer_names(bundle.manifest.spec)
    assert list(names.values()) == CONVOLUTIONS + DENSE


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"\x3a\xff\xff\xff\xff\x7f" + d]
)
def test_what_is_no_onnx_file_is_one_clear_error(bundle: Bundle, tmp_path: Path, damage) -> None:
    data = bundle.path(bundle.manifest.variant("onnx-fp16").path).read_bytes()
    (tmp_path / "m.onnx").write_bytes(damage(data))
    with pytest.raises(BundleError, match=r"m\.onnx is not ONNX"):
        read_onnx(tmp_path / "m.onnx", {})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_leads_to_anything_else_than_that_error(bundle: Bundle, tmp_path: Path, data: st.DataObject) -> None:
    whole = onnx.load(bundle.path(bundle.manifest.variant("onnx-fp16").path))
    for tensor in whole.graph.initializer:
        tensor.ClearField("raw_data")
    model = whole.SerializeToString()
    damaged = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.onnx").write_bytes(damaged[: data.draw(st.integers(1, len(model)))])
    with contextlib.suppress(BundleError):
        read_onnx(tmp_path / "m.onnx", {})


def test_a_graph_out_of_order_is_read_as_well(onnx_files: dict[Precision, Path], tmp_path: Path) -> None:
    """As quantisers write it: what makes a product's input stands behind the product."""
    for precision in (Precision.INT8, Precision.FP16):
        model = onnx.load(onnx_files[precision])
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(reversed(nodes))
        onnx.save(model, tmp_path / "reversed.onnx")
        found = read_onnx(tmp_path / "reversed.onnx", {})
        assert sorted(found) == sorted(read_onnx(onnx_files[precision], {}))
        assert [node.name for node in sorted_nodes(model.graph.node)][-1] == nodes[-1].name
