"""The exact reference against ONNX's own and against ONNX Runtime's exact kernels, operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixtures.int8 import Array, Graph, distance, on_onnxruntime, one_product
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from vggdeploy.errors import BundleError
from vggdeploy.parity.integer import IntegerReference
from vggdeploy.types import Precision


def exact(model: onnx.ModelProto, x: Array) -> Array:
    return next(iter(IntegerReference(model).run({model.graph.input[0].name: x}).values()))


def standard(model: onnx.ModelProto, x: Array) -> Array:
    return np.asarray(ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})[0])


def test_a_convolution_by_hand() -> None:
    """3·2 − 1·4 = 2 steps of the accumulator, of 1/2 each, and ties go to the even step."""
    graph = Graph((2, 1, 1))
    data = graph.rounded("x", 0.5)
    weights = np.array([[[[3]], [[-1]]]], np.int8)
    model = graph.model(graph.product("Conv", data, weights, kernel_shape=[1, 1]))
    np.testing.assert_array_equal(exact(model, np.array([1.1, 2.0], np.float32).reshape(1, 2, 1, 1)).ravel(), [1.0])
    rounded = Graph((4,))
    ties = np.array([[0.5, 1.5, 2.5, -9]], np.float32)
    np.testing.assert_array_equal(exact(rounded.model(rounded.rounded("x", zero=7)), ties), [[0, 2, 2, -7]])


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((8, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((8, 4, 3, 3), {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        ((8, 4, 3, 3), {"dilations": [2, 2]}),
        ((8, 2, 3, 1), {"group": 4}),
        ((6, 5, 1, 1), {}),
        ((7, 33), {}),
    ],
)
@pytest.mark.parametrize("zero", [0, 128])
def test_products_are_the_standards(shape: tuple[int, ...], more: dict[str, Any], zero: int) -> None:
    random = np.random.default_rng(1)
    weights = random.integers(-127, 128, shape).astype(np.int8)
    channels = shape[1] * more.get("group", 1)
    x = random.integers(0, 256, (3, channels, 9, 9) if len(shape) == 4 else (3, channels)).astype(np.float32) - zero
    model = one_product(weights, side=9, step=2.0**11, zero=zero, **more)
    np.testing.assert_array_equal(exact(model, x), on_onnxruntime(model, x, exact=True))
    away = np.abs(exact(model, x) - standard(model, x)) / 2.0**11
    assert away.max() <= 1  # the standard adds in FP32, so what lies in the middle of two codes can come out as either
    assert (away > 0).mean() < 0.01


def pools(graph: Graph, data: str) -> str:
    made = graph.add("MaxPool", graph.add("Relu", data), kernel_shape=[2, 2], strides=[2, 2])
    return graph.add("AveragePool", made, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def padded_pools(graph: Graph, data: str) -> str:
    made = graph.add("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return graph.add("AveragePool", made, kernel_shape=[2, 2], pads=[1, 0, 1, 0], count_include_pad=1)


def arithmetic(graph: Graph, data: str) -> str:
    mean = np.arange(1, 4, dtype=np.float32).reshape(1, 3, 1, 1)
    made = graph.add("Mul", graph.add("Sub", data, mean), graph.add("Div", mean, np.float32(3).reshape(())))
    return graph.add("Add", graph.add("Transpose", graph.add("Identity", made), perm=(0, 1, 3, 2)), data)


def shapes(graph: Graph, data: str) -> str:
    mean = graph.add("GlobalAveragePool", data)
    vector = graph.add("Reshape", graph.add("Flatten", mean), np.array([0, -1], np.int64))
    return graph.add("Softmax", graph.add("MatMul", vector, np.eye(3, dtype=np.float32)), axis=-1)


def gemm(graph: Graph, data: str) -> str:
    weights = np.random.default_rng(2).standard_normal((192, 5)).astype(np.float32)
    return graph.add("Gemm", graph.add("Flatten", data), weights, np.ones(5, np.float32))


def fp32_convolution(graph: Graph, data: str) -> str:
    weights = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return graph.add("Conv", graph.add("Cast", data, to=TensorProto.FLOAT), weights, np.ones(4, np.float32))


def scaled_by_input(graph: Graph, data: str) -> str:
    """A scale for each input, which no sum of integers can have."""
    codes = np.random.default_rng(4).integers(-127, 128, (192, 5)).astype(np.int8)
    scales = np.linspace(0.1, 1, 192).astype(np.float32)
    weights = graph.add("DequantizeLinear", codes, scales, np.zeros(192, np.int8), axis=0)
    return graph.add("Gemm", graph.rounded(graph.add("Flatten", data)), weights)


@pytest.mark.parametrize(
    "part", [pools, padded_pools, arithmetic, shapes, gemm, fp32_convolution, scaled_by_input], ids=lambda p: p.__name__
)
def test_other_operators_are_the_standards(part: Any) -> None:
    graph = Graph((3, 8, 8))
    model = graph.model(part(graph, "x"))
    x = np.random.default_rng(0).normal(scale=9, size=(2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(exact(model, x), standard(model, x), rtol=1e-4, atol=1e-4)


def test_a_whole_quantised_network_is_the_standards(onnx_files: dict[Precision, Path]) -> None:
    model = onnx.load(onnx_files[Precision.INT8])
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert distance(on_onnxruntime(model, x, exact=True), exact(model, x)) < 1e-3


def test_an_operator_that_it_does_not_know_is_named() -> None:
    graph = Graph((3,))
    model = graph.model(graph.add("Erf", graph.add("Sigmoid", "x")))
    with pytest.raises(BundleError, match="does not know the operators Erf, Sigmoid"):
        IntegerReference(model)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_an_attribute_that_it_does_not_know_is_refused(op: str, attributes: dict[str, Any]) -> None:
    graph = Graph((3, 5, 5))
    model = graph.model(graph.add(op, "x", **attributes))
    with pytest.raises(BundleError, match=r"the exact reference (knows no pool|does not know the padding)"):
        exact(model, np.zeros((1, 3, 5, 5), np.float32))
