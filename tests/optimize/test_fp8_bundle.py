"""``optimize --step fp8``: from a trained bundle to an engine, and every file that only says that it is FP8."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import ForeignModelError, IncompatibleError, ParityError, VggdeployError
from vggdeploy.types import Precision, Verdict
from vggdeploy.verify.localise import localise
from vggdeploy.verify.readback import wrong_precisions
from vggdeploy.verify.verify import verify_bundle

pytestmark = pytest.mark.late
Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def made(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle with onnx-fp8, made by the command. Treat it as read-only."""
    out = tmp_path_factory.mktemp("fp8") / "bundle"
    assert run(["optimize", str(bundle_dir), "--step", "fp8", "-o", str(out), "--calibration-images", "64"]) == 0
    return Bundle.open(out)


def test_it_is_calibrated_proven_from_its_bytes_and_read_back(made: Bundle) -> None:
    variant = made.manifest.variant("onnx-fp8")
    assert variant.proof is not None and variant.proof.layers == {"fp8": 11}
    assert variant.quantisation is not None and variant.quantisation.activations == "float8e4m3fn"
    assert variant.quantisation.saturation is None  # nothing of it is an integer product
    assert variant.verdict is Verdict.PASS
    assert variant.parity is not None and variant.parity.products == {"fp8": 11}
    assert 0.005 < variant.parity.outputs[0].relative_l2 < 0.2  # 4 bits are neither 8 nor none
    assert wrong_precisions(made) == {}


def test_verify_finds_no_fault_in_it(made: Bundle) -> None:
    records = [r for r in verify_bundle(made).variants if r.variant == "onnx-fp8"]
    assert [r.verdict for r in records] == [Verdict.PASS] * len(records)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a[::-1], "conv3_2 has weights"),
        (lambda a: a * 1.07, "weights"),
        (lambda a: np.where(np.arange(a.size).reshape(a.shape) == 40, -a, a), "of its"),
    ],
)
def test_weights_that_are_not_the_networks_are_found_at_their_layer(
    made: Bundle, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    bundle = Bundle.open(shutil.copytree(made.root, tmp_path / "bundle"))
    path = bundle.manifest.variant("onnx-fp8").path
    model = onnx.load(bundle.path(path))
    tensor = next(t for t in model.graph.initializer if t.name == "features.8.weight_quantized")
    codes = numpy_helper.to_array(tensor)
    changed = change(codes.astype(np.float32)).clip(-448, 448).astype(codes.dtype)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    with update_bundle(bundle) as draft:
        draft.write(path, model.SerializeToString())
    found = localise(Bundle.open(bundle.root), "onnx-fp8", certain=True)
    assert found.culprit == "conv3_2"
    assert said in found.reason


def test_its_engine_is_built_for_gpus_that_have_fp8(made: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(made.root, tmp_path / "bundle"))
    built = build_into(bundle, BuildPlan(engine="rtx", precision=Precision.FP8))
    assert built.variant.name == "tensorrt-rtx-fp8"
    assert built.variant.build is not None and built.variant.build.targets == ("sm89", "sm120", "sm121")
    assert built.variant.proof is not None and built.variant.proof.layers == {"fp8": 11}
    assert wrong_precisions(built.bundle) == {}
    with pytest.raises(IncompatibleError, match="fp8 needs a GPU from sm89 on: sm80, sm86 cannot"):
        build_into(built.bundle, BuildPlan(engine="rtx", precision=Precision.FP8, targets=["ampere"]))


def wide_weights(model: onnx.ModelProto) -> None:
    """Every weight in FP32 again: what a product reads is not FP8."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]:
        codes, scale = (numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input[:2])
        wide = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
        for name in node.input:
            model.graph.initializer.remove(stored.pop(name))
        model.graph.initializer.append(numpy_helper.from_array(wide, node.output[0]))
        model.graph.node.remove(node)


def in_int8(model: onnx.ModelProto) -> None:
    """INT8 codes with FP8's name."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT8E4M3FN:
            codes = numpy_helper.to_array(tensor).astype(np.float32).clip(-127, 127).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))


def another_zero(model: onnx.ModelProto) -> None:
    """A pair of FP8 with another zero than 0, which TensorRT does not have and others might compute with."""
    name = next(node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.raw_data = b"\x38"  # 1.0


def other_codes(model: onnx.ModelProto) -> None:
    """Weights in E5M2, which nothing here writes."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT8E4M3FN:
            tensor.data_type = TensorProto.FLOAT8E5M2


def cut_short(model: onnx.ModelProto) -> None:
    tensor = max(
        (t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN), key=lambda t: len(t.raw_data)
    )
    tensor.raw_data = tensor.raw_data[:-1]


ATTACKS: dict[str, tuple[Edit, type[VggdeployError], str]] = {
    "weights in FP32": (wide_weights, ParityError, "fp8 was asked for"),
    "INT8": (in_int8, ParityError, "fp8 was asked for"),
    "another zero": (another_zero, ForeignModelError, "QuantizeLinear"),
    "E5M2": (other_codes, ForeignModelError, "has not the numbers that its shape says"),
    "a weight too few": (cut_short, ForeignModelError, "has not the numbers that its shape says"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_only_says_that_it_is_fp8_is_found_and_not_built(made: Bundle, tmp_path: Path, name: str) -> None:
    edit, kind, cause = ATTACKS[name]
    bundle = Bundle.open(shutil.copytree(made.root, tmp_path / "bundle"))
    path = bundle.manifest.variant("onnx-fp8").path
    model = onnx.load(bundle.path(path))
    edit(model)
    with update_bundle(bundle) as draft:
        draft.write(path, model.SerializeToString())
    forged = Bundle.open(bundle.root)
    assert cause in wrong_precisions(forged)["onnx-fp8"]
    with pytest.raises(kind, match=cause):
        build_into(forged, BuildPlan(engine="rtx", precision=Precision.FP8))
