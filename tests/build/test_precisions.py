"""Which precisions become engines with the real TensorRT for RTX, on which GPUs, and what says so afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixtures.small import BATCH, CONVOLUTIONS, PRODUCTS, write_bundle

from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.build.targets import default_targets
from vggdeploy.build.tensorrt import build_engine
from vggdeploy.bundle import Bundle
from vggdeploy.errors import BundleError, IncompatibleError, ParityError
from vggdeploy.records import CEILINGS
from vggdeploy.types import Precision
from vggdeploy.verify.readback import wrong_precisions

LAYERS = CONVOLUTIONS + PRODUCTS
FP32, TF32, FP16, BF16 = Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16


@pytest.fixture
def narrow(tmp_path: Path, onnx_files: dict[Precision, Path]) -> Bundle:
    """A bundle with ONNX in FP32 and BF16."""
    return write_bundle(tmp_path / "narrow", {p: onnx_files[p] for p in (FP32, BF16)})


def in_rtx(bundle: Bundle, precision: Precision, *targets: str):
    return build_into(bundle, BuildPlan(engine="rtx", precision=precision, targets=targets or ["ada"]))


def engine_bytes(built) -> bytes:
    return built.bundle.path(built.variant.path).read_bytes()


def test_bf16_is_built_from_bf16_and_read_back(narrow):
    built = in_rtx(narrow, BF16)
    assert built.variant.name == "tensorrt-rtx-bf16-sm89"
    assert built.variant.proof.layers == {"bf16": LAYERS}
    assert built.variant.build.source == "onnx-bf16"
    assert wrong_precisions(built.bundle) == {}


@pytest.mark.parametrize("count", [1, LAYERS])
def test_a_file_that_says_bf16_and_holds_fp32_products_is_refused_and_found(tmp_path, onnx_files, count):
    model = onnx.load(onnx_files[BF16])
    for node in [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")][:count]:
        in_fp32(model, node)
    onnx.save(model, tmp_path / "mixed.onnx")
    bundle = write_bundle(tmp_path / "mixed", {BF16: tmp_path / "mixed.onnx"})
    assert f"{count} in fp32 (of {LAYERS})" in wrong_precisions(bundle)["onnx-bf16"]
    with pytest.raises(ParityError, match=rf"bf16 was asked.*{count} in fp32"):
        in_rtx(bundle, BF16)


def test_fp32_weights_cast_to_bf16_in_the_graph_are_no_bf16_file(tmp_path, onnx_files):
    """The types would fit; the file would hold what the exporter does not write."""
    model = onnx.load(onnx_files[BF16])
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    wide = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), "wide")
    model.graph.initializer.append(wide)
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["wide"], [node.input[1]], to=onnx.TensorProto.BFLOAT16))
    onnx.save(model, tmp_path / "cast.onnx")
    bundle = write_bundle(tmp_path / "cast", {BF16: tmp_path / "cast.onnx"})
    assert "is not what vggdeploy writes of this network" in wrong_precisions(bundle)["onnx-bf16"]


def test_wide_weights_behind_a_quantised_input_are_no_int8(onnx_files, tmp_path, library):
    """The parser keeps a constant kernel in the layer, so its only input is what was dequantised."""
    model = onnx.load(onnx_files[Precision.INT8])
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]:
        codes, scale = (onnx.numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input[:2])
        wide = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
        model.graph.initializer.append(onnx.numpy_helper.from_array(wide, node.output[0]))
        model.graph.node.remove(node)
    onnx.save(model, tmp_path / "wide.onnx")
    with pytest.raises(ParityError, match=rf"int8 was asked.*{LAYERS} in fp32"):
        build_engine(library, tmp_path / "wide.onnx", tmp_path / "e", precision=Precision.INT8, profiles=(BATCH,))


@pytest.mark.parametrize(
    ("precision", "targets", "lacking", "left"),
    [
        (BF16, ("turing", "ada"), "sm75", "--target sm89"),
        (TF32, ("turing",), "sm75", "name newer ones"),
        (Precision.FP8, ("ampere", "sm120"), "sm80, sm86", "--target sm120"),
    ],
)
def test_a_gpu_that_lacks_the_precision_is_named_before_the_build(library, narrow, precision, targets, lacking, left):
    from vggdeploy.build.targets import check_targets, resolve_targets

    with pytest.raises(IncompatibleError, match=f"{precision} needs a GPU from .* on: {lacking} cannot") as caught:
        check_targets(resolve_targets(library, targets), precision)
    assert left in caught.value.hint
    assert caught.value.exit_code == 5


def test_what_is_not_asked_for_by_name_is_what_has_the_precision(library):
    assert (
        default_targets(library, FP16) == default_targets(library, BF16) == ("sm80", "sm86", "sm89", "sm120", "sm121")
    )
    assert default_targets(library, Precision.FP8) == ("sm89", "sm120", "sm121")


def test_tf32_is_off_in_fp32_and_on_where_it_is_asked_for(narrow):
    """The engine of TensorRT for RTX 1.7 itself says so, and the library's own default is on."""
    exact = in_rtx(narrow, FP32)
    assert b"tf32=0" in engine_bytes(exact) and b"tf32=1" not in engine_bytes(exact)
    fast = in_rtx(exact.bundle, TF32)
    assert b"tf32=1" in engine_bytes(fast) and b"tf32=0" not in engine_bytes(fast)


def test_tf32_is_another_engine_beside_fp32_and_is_never_called_it(narrow):
    built = in_rtx(in_rtx(narrow, FP32).bundle, TF32)
    names = [variant.name for variant in built.bundle.manifest.variants]
    assert names[-2:] == ["tensorrt-rtx-fp32-sm89", "tensorrt-rtx-tf32-sm89"]
    assert built.variant.precision is TF32
    assert built.variant.build.source == "onnx-fp32"
    assert built.variant.proof.layers == {"fp32": LAYERS}  # what the network holds
    assert wrong_precisions(built.bundle) == {}
    limits = built.bundle.manifest.limits
    assert limits(TF32).relative_l2 == CEILINGS[FP16].relative_l2 > limits(FP32).relative_l2


def test_a_bundle_from_before_a_precision_gets_its_thresholds_with_the_first_variant(tmp_path, onnx_files):
    import msgspec

    bundle = write_bundle(tmp_path / "old", {FP32: onnx_files[FP32]})
    known = {name: limits for name, limits in bundle.manifest.thresholds.items() if name != TF32}
    from vggdeploy.bundle import update_bundle

    with update_bundle(bundle) as draft:
        draft.manifest = msgspec.structs.replace(bundle.manifest, thresholds=known)
    built = in_rtx(Bundle.open(bundle.root), TF32)
    assert Bundle.open(bundle.root).manifest.thresholds[TF32] == CEILINGS[TF32]
    assert built.bundle.manifest.thresholds.items() >= known.items()


def test_no_onnx_in_that_precision_says_how_to_make_it(bundle):
    with pytest.raises(BundleError, match="no ONNX in bf16") as caught:
        in_rtx(bundle, BF16)
    assert "--formats onnx-fp32,onnx-bf16" in caught.value.hint


def in_fp32(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Put a BF16 node between casts, with its weights in FP32."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in node.input[1:]:
        wide = onnx.numpy_helper.to_array(stored[name]).astype(np.float32)
        stored[name].CopyFrom(onnx.numpy_helper.from_array(wide, name))
    before, after = f"{node.name}_wide", f"{node.output[0]}_wide"
    nodes, cast = model.graph.node, onnx.helper.make_node
    place = list(nodes).index(node)
    given, made = node.input[0], node.output[0]
    node.input[0], node.output[0] = before, after
    nodes.insert(place, cast("Cast", [given], [before], to=onnx.TensorProto.FLOAT))
    nodes.insert(place + 2, cast("Cast", [after], [made], to=onnx.TensorProto.BFLOAT16))
