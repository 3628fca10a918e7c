"""FP8 weights and pairs: what is rounded to what, and the graph that comes of a network."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fixtures.small import SPEC
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, numpy_helper

from vggdeploy.optimize.steps import quantiser
from vggdeploy.optimize.steps.fp8 import LARGEST, rounded_weights
from vggdeploy.runtime.onnxruntime.providers import EXACT_FP8
from vggdeploy.types import Precision

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FINITE)
HALF_STEP, SMALLEST = 2**-4, 2**-10  # of E4M3's significand; half of its smallest number, which is 2⁻⁹


@given(WEIGHTS)
@settings(max_examples=200)
def test_every_weight_is_within_half_a_step_of_its_channels_scale(weights: np.ndarray) -> None:
    codes, scale = rounded_weights(weights)
    assert codes.dtype == ml_dtypes.float8_e4m3fn and scale.shape == weights.shape[:1]
    assert np.isfinite(codes.astype(np.float32)).all()
    back = codes.astype(np.float64) * scale.reshape(-1, *[1] * (weights.ndim - 1))
    limit = np.maximum(np.abs(weights) * HALF_STEP, scale.reshape(-1, *[1] * (weights.ndim - 1)) * SMALLEST) * 1.001
    assert (np.abs(back - weights) <= limit).all()


@given(WEIGHTS)
@settings(max_examples=50)
def test_zeros_stay_zeros_and_the_largest_weight_is_at_the_end_of_the_range(weights: np.ndarray) -> None:
    codes, _ = rounded_weights(weights)
    assert (codes.astype(np.float32)[weights == 0] == 0).all()
    for channel, row in zip(codes.astype(np.float32), weights, strict=True):
        if np.abs(row).max() > 1e-30:
            assert np.abs(channel).max() == LARGEST


@pytest.fixture(scope="module")
def ranges(onnx_files: dict[Precision, Path], tmp_path_factory: pytest.TempPathFactory):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return quantiser.calibrate(
        onnx_files[Precision.FP32],
        [{"image": images}],
        method="min-max",
        percentile=99.9,
        scratch=tmp_path_factory.mktemp("ranges") / "scratch",
    )


def fp8(onnx_files: dict[Precision, Path], ranges, **options: object) -> onnx.ModelProto:
    return quantiser.quantise(onnx.load(onnx_files[Precision.FP32]), ranges, quantiser.FP8, **options)


def test_every_product_is_fp8_and_no_int8_is_left(onnx_files, ranges) -> None:
    model = fp8(onnx_files, ranges)
    assert quantiser.proof(model).layers == {"fp8": 11}
    assert TensorProto.INT8 not in {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.INT8 not in {value.type.tensor_type.elem_type for value in model.graph.value_info}


def test_layers_that_are_kept_stay_in_fp32(onnx_files, ranges) -> None:
    names = list(quantiser.weighted_nodes(onnx_files[Precision.FP32]))
    assert quantiser.proof(fp8(onnx_files, ranges, keep=names[:2])).layers == {"fp32": 2, "fp8": 9}


def test_a_range_ends_where_fp8_ends(onnx_files, ranges) -> None:
    """The calibrated range of an activation is the same in INT8 and FP8: its end is the code 127, or 448."""
    model = fp8(onnx_files, ranges)
    symmetric = quantiser.quantise(onnx.load(onnx_files[Precision.FP32]), ranges, quantiser.TENSORRT)
    ends = [
        {t.name: numpy_helper.to_array(t) * end for t in made.graph.initializer if t.name in activations(made)}
        for made, end in ((model, LARGEST), (symmetric, 127.0))
    ]
    assert len(ends[0]) == 11
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert value == pytest.approx(ends[1][name], rel=1e-6)


def activations(model: onnx.ModelProto) -> set[str]:
    return {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def answers(model: onnx.ModelProto, level: ort.GraphOptimizationLevel) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, SPEC.in_channels), dtype=np.uint8)
    return session.run(["logits"], {"image": images})[0]


def test_onnx_runtime_computes_it_right_at_the_level_that_sessions_take(onnx_files, ranges) -> None:
    model = fp8(onnx_files, ranges)
    exact = answers(model, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert np.allclose(answers(model, EXACT_FP8), exact, rtol=1e-4, atol=1e-5)
    fp32 = answers(onnx.load(onnx_files[Precision.FP32]), ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    # The network answers nearly the same for all images, by its biases: what FP8 may move is what the images move.
    assert 0 < np.linalg.norm(exact - fp32) < 0.2 * np.linalg.norm(fp32)


def test_above_that_level_onnx_runtime_still_loses_its_relus(onnx_files, ranges) -> None:
    """When this fails ONNX Runtime is mended, and `EXACT_FP8` can go."""
    options = ort.SessionOptions()
    model = fp8(onnx_files, ranges)
    optimised = onnx_files[Precision.FP32].parent / "optimised-fp8.onnx"
    options.optimized_model_filepath = str(optimised)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(optimised).graph.node].count("Relu")
    optimised.unlink()
    assert left < [node.op_type for node in model.graph.node].count("Relu")
