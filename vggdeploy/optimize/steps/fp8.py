"""FP8 (E4M3) of a graph that was quantised to symmetric INT8: the same Q/DQ pairs, ranges and layers, and floats for codes.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv:2209.05433), section 3: E4M3 has 4 exponent and 3 mantissa
bits, no infinities, and ends at 448. A range that was calibrated is scaled to that end, as NVIDIA's Model Optimizer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

Array = NDArray[Any]
LARGEST = 448.0
_LEAST = 1e-30  # of a channel's largest weight: below it a scale would be no normal number
_CODE = 127.0  # of symmetric INT8
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_OPSET = 19  # the first in which Q/DQ take FP8


def to_fp8(model: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Change a symmetric INT8 graph in place.

    Args:
        weights: FP32 weights ``[out, …]`` by the name of the tensor that holds their INT8 codes: they are rounded once, and not
            from INT8.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in _PAIRS]
    for name in {node.input[1] for node in pairs if node.input[0] not in stored}:
        scale = numpy_helper.to_array(stored[name])
        _store(stored[name], (scale * (_CODE / LARGEST)).astype(scale.dtype))
    for node in pairs:
        if node.input[0] in stored:
            codes, scale = rounded_weights(weights[node.input[0]])
            _store(stored[node.input[0]], codes)
            _store(stored[node.input[1]], scale)
    for name in {node.input[2] for node in pairs}:
        _store(stored[name], np.zeros(tuple(stored[name].dims), ml_dtypes.float8_e4m3fn))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT8E4M3FN
    for opset in model.opset_import:
        opset.version = max(opset.version, _OPSET) if not opset.domain else opset.version


def rounded_weights(weights: Array) -> tuple[Array, Array]:
    """``[out, …]`` → their FP8 codes, and the scale ``float32 [out]`` of each channel, whose largest weight becomes 448."""
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scale = np.where(largest > _LEAST, largest / LARGEST, 1).astype(np.float32)
    scaled = weights / scale.reshape(-1, *[1] * (weights.ndim - 1))
    # Clipped, since a quotient may come out an ulp above the end, and far above it there is only NaN.
    return np.clip(scaled, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn), scale


def _store(tensor: TensorProto, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
