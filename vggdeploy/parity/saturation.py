"""Whether the INT8 kernels of a CPU without VNNI compute a file right for every image, from the file alone.

``vpmaddubsw`` multiplies unsigned bytes with signed ones, adds the products of two neighbours, and cuts the sum off at 16
bits; what follows adds in 32. ONNX Runtime and OpenVINO use it on such CPUs. Two products of opposite sign always fit, as
255·127 < 2¹⁵, so what decides is the sum of two weights of one sign, times the largest byte that their activation can be.

Which weights are neighbours is known, and tests/parity/test_saturation.py measures it on both libraries: weights of the
input channels 2j and 2j+1 at one position of the kernel (OpenVINO), and of the places 2j and 2j+1 of a row in which the
channels of a position lie together (ONNX Runtime). For an even number of channels these are the same pairs. Of one channel
alone OpenVINO's AVX-512 kernels take the places 2j and 2j+1 of each row of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from vggdeploy.bundle import ProductBound, SaturationRecord
from vggdeploy.bundle.variant import INT16, INT32
from vggdeploy.errors import BundleError
from vggdeploy.model.formats.graph import sorted_nodes
from vggdeploy.model.formats.onnx import PRODUCTS
from vggdeploy.model.layers import layer_name
from vggdeploy.parity.products import INTEGER_PRODUCTS, MOVES
from vggdeploy.system.files import sha256_of
from vggdeploy.system.sealed import shown

Array = NDArray[Any]
Interval = tuple[float, float]

_NAMED = 8  # channels that a record names
CODE = 127  # the largest of a weight; -128 is never used, so that weights are symmetric
_ROWS = 256  # output channels that are looked at together: fc6 of a VGG-16 has 100 million weights
_SIGNED_OFFSET = 128  # what kernels add to signed activations, as the instruction wants unsigned ones
_WORST_BYTE, _WORST_WEIGHT = 255, 128


@dataclass(frozen=True)
class Int8Product:
    """A convolution or matrix product of dequantised 8-bit integers.

    ``weights`` are ``int8 [outputs, inputs, positions of the kernel]``; None where the graph does not say them in a way
    that is known here. ``high`` is the largest byte that an activation can be, ``zero`` the byte that stands for 0.
    """

    node: onnx.NodeProto
    layer: str
    weights: Array | None
    high: int = _WORST_BYTE
    zero: int = 0
    bias: int = 0


def read_saturation(path: Path, layers: dict[str, str]) -> SaturationRecord:
    """What the pairs of every INT8 product of an ONNX file can come to, for any image.

    Args:
        layers: state-dict prefix → the layer's name, as `vggdeploy.parity.products.read_onnx`.

    Raises:
        BundleError: not an ONNX file.
    """
    try:
        model = onnx.load(path)
    except (DecodeError, ValueError) as error:
        raise BundleError(f"{shown(path)} is not ONNX: it is damaged or cut short", "export it again") from error
    products = tuple(bound_of(product) for product in int8_products(model.graph, layers))
    return SaturationRecord(sha256=sha256_of(path), products=products)


def bound_of(product: Int8Product) -> ProductBound:
    """The largest sums that one product can meet, whatever the image."""
    weights = product.weights
    if weights is None:
        worst = 2 * _WORST_BYTE * _WORST_WEIGHT
        return ProductBound(layer=product.layer, channels=0, saturating=1, pair=worst, accumulator=INT32 + 1)
    pair = product.high * widest_pairs(weights)
    rows = weights.reshape(len(weights), -1)
    total = product.high * np.abs(rows, dtype=np.int64).sum(axis=1) + product.zero * np.abs(
        rows.sum(axis=1, dtype=np.int64)
    )
    over = np.flatnonzero(pair > INT16)
    return ProductBound(
        layer=product.layer,
        channels=len(weights),
        saturating=len(over),
        worst=tuple(int(n) for n in over[np.argsort(-pair[over], kind="stable")][:_NAMED]),
        pair=int(pair.max(initial=0)),
        accumulator=int(total.max(initial=0)) + product.bias,
    )


def pairings(channels: int, positions: int) -> list[NDArray[np.int64]]:
    """The neighbours among the weights of one output channel: index arrays ``[pairs, 2]`` into ``channels · positions``.

    No index stands twice in one array. What is left over has no neighbour, and cannot exceed 16 bits alone.
    """
    places = np.arange(channels * positions).reshape(channels, positions)
    found = [places[: channels // 2 * 2].reshape(-1, 2, positions).transpose(0, 2, 1).reshape(-1, 2)]
    if channels % 2 and positions > 1:
        row = places.T.reshape(-1)
        found.append(row[: row.size // 2 * 2].reshape(-1, 2))
    width = math.isqrt(positions)
    if channels == 1 and width > 1 and width**2 == positions:
        found.append(places.reshape(width, width)[:, : width // 2 * 2].reshape(-1, 2))
    return found


def widest_pairs(weights: Array) -> NDArray[np.int64]:
    """The largest sum that two neighbours, or one alone, can have in one sign, of each output channel: ``[outputs]``."""
    outputs, channels, positions = weights.shape
    rows = weights.reshape(outputs, -1)
    found = _largest(rows)
    for pairs in pairings(channels, positions):
        for start in range(0, outputs, _ROWS):
            part = slice(start, start + _ROWS)
            first, second = (np.take(rows[part], index, axis=1) for index in pairs.T)
            # The sum of two weights of opposite sign is no larger than one of them alone.
            found[part] = np.maximum(found[part], _largest(np.add(first, second, dtype=np.int16)))
    return found


Places = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # rows, and the columns of both neighbours


def narrow(codes: Array, steps: Array, places: Places, limit: int) -> None:
    """Move each pair that is too wide to the nearest one that fits, in place. Magnitudes only shrink, so that a pair that
    fits stays one that fits.

    Args:
        codes, steps: ``[outputs, inputs · positions]``; whole numbers of the scale, and the weights before they were rounded.
        limit: what two neighbours of one sign may be together.
    """
    over = np.abs(codes[places[0], places[1]] + codes[places[0], places[2]]) > limit
    row, here, there = (place[over] for place in places)
    sign = np.sign(codes[row, here])
    a, b = (np.clip(steps[row, i], codes[row, i] - 0.5, codes[row, i] + 0.5) * sign for i in (here, there))
    kept = np.clip(np.rint((limit + a - b) / 2), limit - CODE, CODE)
    codes[row, here], codes[row, there] = sign * kept, sign * (limit - kept)


def fitting_codes(steps: Array, limit: int) -> Array:
    """The whole numbers ``[outputs, inputs, positions]`` that weights are rounded to of which no pair may be too wide.

    Args:
        steps: the weights in steps of their scale.
    """
    rows = steps.reshape(len(steps), -1)
    codes = np.clip(np.rint(rows), -CODE, CODE)
    for pairs in pairings(*steps.shape[1:]):
        row, pair = np.nonzero(np.abs(codes[:, pairs[:, 0]] + codes[:, pairs[:, 1]]) > limit)
        narrow(codes, rows, (row, pairs[pair, 0], pairs[pair, 1]), limit)
    return codes.reshape(steps.shape)


def _largest(rows: Array) -> NDArray[np.int64]:
    """The largest magnitude of each row."""
    high, low = rows.max(axis=1, initial=0).astype(np.int64), rows.min(axis=1, initial=0).astype(np.int64)
    return np.asarray(np.maximum(high, -low), np.int64)


def int8_products(graph: onnx.GraphProto, layers: dict[str, str]) -> Iterator[Int8Product]:
    """Every product of a graph whose data and weights are dequantised 8-bit integers, in the graph's order."""
    nodes = sorted_nodes(graph.node)
    values = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in nodes for name in node.output}
    bounds = _Bounds(graph, values)
    for index, node in enumerate(nodes):
        bounds.follow(node)
        if node.op_type in PRODUCTS:
            data, weights = (_dequantisation(name, made_by) for name in node.input[:2])
            if data is not None and weights is not None and not _floats(values, weights.input[0]):
                yield _product(node, index, data, weights, values, bounds, layers)
        elif node.op_type in INTEGER_PRODUCTS:
            yield Int8Product(node, node.name or f"{node.op_type} {index}", None)


def _dequantisation(name: str, made_by: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The node that a value was dequantised by, before it was only moved."""
    node = made_by.get(name)
    while node is not None and node.op_type in MOVES:
        node = made_by.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _product(
    node: onnx.NodeProto,
    index: int,
    data: onnx.NodeProto,
    weights: onnx.NodeProto,
    values: Mapping[str, onnx.TensorProto],
    bounds: _Bounds,
    layers: dict[str, str],
) -> Int8Product:
    layer = layer_name(node, weights.input[0], layers, index)
    codes = _array(values, weights.input[0])
    zeros = _array(values, weights.input[2]) if len(weights.input) > 2 else np.zeros(1, np.int8)
    moved = weights.output[0] != node.input[1]
    if codes is None or zeros is None or zeros.any() or codes.dtype != np.int8 or codes.ndim < 2 or moved:
        return Int8Product(node, layer, None)
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    if node.op_type != "Conv" and not transposed:
        codes = codes.T
    bias = _array(values, made.input[0]) if (made := bounds.made_by.get("".join(node.input[2:3]))) else None
    zero, high = bounds.bytes_of(data)
    shape = (*codes.shape[:2], -1)
    largest = int(np.abs(bias, dtype=np.int64).max(initial=0)) if bias is not None else 0
    return Int8Product(node, layer, codes.reshape(shape), high, zero, largest)


def _floats(values: Mapping[str, onnx.TensorProto], name: str) -> bool:
    """Whether codes are those of FP8, whose sums do not saturate."""
    return name in values and values[name].data_type == onnx.TensorProto.FLOAT8E4M3FN


def _array(values: Mapping[str, onnx.TensorProto], name: str) -> Array | None:
    return onnx.numpy_helper.to_array(values[name]) if name in values else None


_ANY: Interval = (-np.inf, np.inf)


class _Bounds:
    """The interval of every tensor, as far as the operators before it bound it."""

    def __init__(self, graph: onnx.GraphProto, values: Mapping[str, onnx.TensorProto]) -> None:
        self.made_by: dict[str, onnx.NodeProto] = {}
        self._values = values
        self._found: dict[str, Interval] = {
            v.name: (0.0, 255.0) for v in graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        }

    def follow(self, node: onnx.NodeProto) -> None:
        self.made_by |= dict.fromkeys(node.output, node)
        first = self._of(node.input[0]) if node.input else _ANY
        kind = node.op_type
        if kind in ("Mul", "Div", "Add", "Sub"):
            first = _combined(kind, first, self._of(node.input[1]))
        elif kind == "Relu":
            first = max(first[0], 0.0), max(first[1], 0.0)
        elif kind == "Clip":
            low, high = [*(self._of(n) if n else _ANY for n in node.input[1:3]), _ANY, _ANY][:2]
            first = max(first[0], low[0]), min(first[1], high[1])
        elif kind == "QuantizeLinear":
            first = self._codes(node, first)
        elif kind == "DequantizeLinear":
            first = self._numbers(node, first)
        elif kind not in MOVES | {"Cast", "MaxPool"}:
            first = _ANY
        self._found |= dict.fromkeys(node.output, first)

    def bytes_of(self, dequantise: onnx.NodeProto) -> tuple[int, int]:
        """The byte of 0, and the largest one, of what is dequantised, as kernels see it: unsigned."""
        zero = self._zero(dequantise)
        if zero is None or zero.size != 1:
            return _WORST_BYTE, _WORST_BYTE
        offset = _SIGNED_OFFSET if zero.dtype == np.int8 else 0
        high = min(self._of(dequantise.input[0])[1], 255.0 - offset)
        return int(zero.item()) + offset, int(high) + offset

    def _of(self, name: str) -> Interval:
        if name in self._found:
            return self._found[name]
        constant = _array(self._values, name)
        return (float(constant.min()), float(constant.max())) if constant is not None and constant.size else _ANY

    def _zero(self, node: onnx.NodeProto) -> Array | None:
        return _array(self._values, node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)

    def _codes(self, node: onnx.NodeProto, numbers: Interval) -> Interval:
        scale, zero = _array(self._values, node.input[1]), self._zero(node)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1 or not np.isfinite(numbers).all():
            return _ANY
        if zero.dtype.kind not in "iu":
            return _ANY
        info = np.iinfo(zero.dtype)
        # One code more on both sides: libraries round the same number differently.
        low = np.floor(numbers[0] / float(scale.item())) + float(zero.item()) - 1
        high = np.ceil(numbers[1] / float(scale.item())) + float(zero.item()) + 1
        return float(np.clip(low, info.min, info.max)), float(np.clip(high, info.min, info.max))

    def _numbers(self, node: onnx.NodeProto, codes: Interval) -> Interval:
        scale, zero = _array(self._values, node.input[1]), self._zero(node)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            return _ANY
        low, high = ((code - float(zero.item())) * float(scale.item()) for code in codes)
        return low, high


def _combined(kind: str, a: Interval, b: Interval) -> Interval:
    if not np.isfinite([*a, *b]).all():
        return _ANY
    if kind == "Add":
        return a[0] + b[0], a[1] + b[1]
    if kind == "Sub":
        return a[0] - b[1], a[1] - b[0]
    if kind == "Div":
        if b[0] <= 0 <= b[1]:
            return _ANY
        b = 1 / b[1], 1 / b[0]
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)
