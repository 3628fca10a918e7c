"""INT8 weights whose neighbours fit into 16 bits: what CPUs without VNNI compute of them is right for every image.

A channel whose pairs could saturate (see `vggdeploy.parity.saturation`) is rounded anew. Its scale grows by a factor of 1
to 2, and pairs that are still too wide are moved to the nearest pair that fits. Of nine factors each channel takes the one
with the smallest error: 2 alone would be 7-bit weights, 1 alone would only cut pairs off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vggdeploy.bundle.variant import INT16
from vggdeploy.parity.saturation import CODE, Places, int8_products, narrow, pairings, widest_pairs

Array = NDArray[Any]

_FACTORS = np.linspace(1, 2, 9, dtype=np.float32)
# After a ReLU all inputs are positive, so rounding errors of one sign add up: how much their sum counts beside their squares.
_COMMON = 0.3
_ROWS = 16  # output channels that are rounded together


def fit_pairs(model: onnx.ModelProto, originals: Mapping[str, Array]) -> None:
    """Round the weights of a quantised graph anew, in place, in every channel that could saturate.

    Args:
        originals: name of the quantised weights → the weights in FP32, in the same layout.
    """
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for product in int8_products(graph, {}):
        if product.weights is None:
            continue
        limit = INT16 // product.high
        over = np.flatnonzero(widest_pairs(product.weights) > limit)
        dequantise = made_by[product.node.input[1]]
        codes_name, scale_name = dequantise.input[:2]
        if not over.size or codes_name not in originals:
            continue
        codes, factors = product.weights.copy(), np.ones(len(product.weights), np.float32)
        scale = onnx.numpy_helper.to_array(values[scale_name])
        exact = originals[codes_name].reshape(codes.shape)
        for start in range(0, len(over), _ROWS):
            rows = over[start : start + _ROWS]
            codes[rows], factors[rows] = fitted(exact[rows] / scale[rows, None, None], limit)
        _set(values[codes_name], codes.reshape(originals[codes_name].shape))
        _set(values[scale_name], scale * factors)
        bias = made_by.get("".join(product.node.input[2:3]))
        if bias is not None:
            _set(values[bias.input[0]], np.rint(onnx.numpy_helper.to_array(values[bias.input[0]]) / factors))
            _set(values[bias.input[1]], onnx.numpy_helper.to_array(values[bias.input[1]]) * factors)


def fitted(exact: Array, limit: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes ``int8 [outputs, inputs, positions]`` of which no two neighbours of one sign exceed ``limit`` together, and the
    factor ``[outputs]`` by which the scale of each output channel grows.

    Args:
        exact: the weights in steps of the scale as it was, so from -127 to 127.
    """
    steps = exact.reshape(len(exact), -1)
    wide = [_wide(np.rint(steps), pairs, limit) for pairs in pairings(*exact.shape[1:])]
    best, factors = np.full(len(steps), np.inf), np.ones(len(steps), np.float32)
    codes = np.zeros(steps.shape, np.int8)
    for factor in _FACTORS:
        scaled = steps / factor
        found = np.clip(np.rint(scaled), -CODE, CODE)
        for places in wide:
            narrow(found, scaled, places, limit)
        wrong = found - scaled
        error = (np.einsum("oi,oi->o", wrong, wrong) + _COMMON * np.square(wrong.sum(axis=1))) * factor**2
        better = error < best
        best[better], factors[better], codes[better] = error[better], factor, found[better]
    return codes.reshape(exact.shape), factors


def _wide(codes: Array, pairs: NDArray[np.int64], limit: int) -> Places:
    """The pairs that are too wide with some factor: a larger one narrows them, but for rounding."""
    row, pair = np.nonzero(np.abs(codes[:, pairs[:, 0]] + codes[:, pairs[:, 1]]) > limit - 2)
    return row, pairs[pair, 0], pairs[pair, 1]


def _set(tensor: onnx.TensorProto, values: Array) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values, kind), tensor.name))
