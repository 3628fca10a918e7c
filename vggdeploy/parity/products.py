"""What each convolution and matrix product of an ONNX file computes in, read back from the file.

The weights are never read: half a gigabyte of them says nothing about types.
"""

from __future__ import annotations

from pathlib import Path

from vggdeploy.bundle.precision import Product, type_name
from vggdeploy.model.formats.graph import sorted_nodes
from vggdeploy.model.formats.onnx import PRODUCTS, TYPES, Node, Tensor, read_onnx_file
from vggdeploy.model.layers import layer_name
from vggdeploy.system.sealed import mapped, shown

INTEGER_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
# They hand values on as they are.
MOVES = frozenset({"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})
_EIGHT_BITS = {"int8": "int8", "uint8": "int8", "fp8": "fp8"}  # what is dequantised, and what its products compute in


def read_onnx(path: Path, layers: dict[str, str]) -> tuple[Product, ...]:
    """Every convolution and matrix product of an ONNX file, in the graph's order.

    A product computes in the type of what enters it. One whose data and weights both come out of a dequantisation of
    8-bit integers is an INT8 one, and of FP8 values an FP8 one, as every library fuses the three.

    Args:
        layers: state-dict prefix → the layer's name, such as ``features.8`` → ``conv3_2``.

    Raises:
        BundleError: not an ONNX file.
    """
    model = read_onnx_file(mapped(path), shown(path))
    types = {tensor.name: _name(tensor.type) for tensor in model.tensors}
    types |= {value.name: _name(value.type) for value in model.inputs}
    codes: dict[str, str] = {}  # tensor → what a product of it computes in, since it was dequantised
    origins: dict[str, str] = {}  # tensor → the weights that it was made of
    products = []
    for index, node in enumerate(sorted_nodes(model.nodes)):
        if node.op_type in PRODUCTS | INTEGER_PRODUCTS:
            weight = _input(node, 3 if node.op_type == "QLinearConv" else 1)
            name = layer_name(node, origins.get(weight, weight), layers, index)
            products.append(Product(name, _computes_in(node, types, codes)))
        _follow(node, types, codes)
        origins |= {made: origins.get(node.input[0], node.input[0]) for made in node.output if node.input}
    return tuple(products)


def _computes_in(node: Node, types: dict[str, str], codes: dict[str, str]) -> str:
    if node.op_type in INTEGER_PRODUCTS:
        return "int8"
    factors = {codes.get(name) for name in node.input[:2]}
    if len(node.input) > 1 and len(factors) == 1 and (kind := factors.pop()) is not None:
        return kind
    return types.get(_input(node, 1)) or types.get(_input(node, 0), "unknown")


def _follow(node: Node, types: dict[str, str], codes: dict[str, str]) -> None:
    """Note the type of what a node gives."""
    first, second = _input(node, 0), _input(node, 1)
    kind = types.get(first, "")
    if node.op_type == "Cast":
        kind = _name(node.attributes.get("to", 0))
    elif node.op_type == "Constant":
        value = node.attributes.get("value")
        kind = _name(value.type) if isinstance(value, Tensor) else ""
    elif node.op_type == "QuantizeLinear":
        kind = types.get(_input(node, 2), "uint8")
    elif node.op_type == "DequantizeLinear":
        if kind in _EIGHT_BITS:
            codes |= dict.fromkeys(node.output, _EIGHT_BITS[kind])
        kind = types.get(second, "fp32")
    elif node.op_type in MOVES and first in codes:
        codes |= dict.fromkeys(node.output, codes[first])
    elif node.op_type in PRODUCTS:
        kind = types.get(second) or kind
    types |= dict.fromkeys(node.output, kind)


def _input(node: Node, place: int) -> str:
    """The name of an input; "" where it is missing."""
    return node.input[place] if place < len(node.input) else ""


def _name(kind: object) -> str:
    return type_name(TYPES[kind]) if isinstance(kind, int) and kind in TYPES else f"type {kind}"
