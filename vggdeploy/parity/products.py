"""What each convolution and matrix product of an ONNX file computes in, read back from the file.

The weights are never read: half a gigabyte of them says nothing about types. The file is walked as
https://protobuf.dev/programming-guides/encoding describes it, and fields that hold numbers are left out.
"""

from __future__ import annotations

import heapq
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from vggdeploy.bundle.precision import Product, type_name
from vggdeploy.errors import BundleError
from vggdeploy.runtime.tiny_onnx import varint
from vggdeploy.system.sealed import shown

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_NUMBERS = frozenset(
    onnx.TensorProto.DESCRIPTOR.fields_by_name[name].number
    for name in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
)
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
INTEGER_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
# They hand values on as they are.
MOVES = frozenset({"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})
KEY = re.compile(r"(?:^|[./])((?:features|classifier)\.\d+)(?:\.|$)")
_EIGHT_BITS = frozenset({"int8", "uint8"})


def read_onnx(path: Path, layers: dict[str, str]) -> tuple[Product, ...]:
    """Every convolution and matrix product of an ONNX file, in the graph's order.

    A product computes in the type of what enters it. One whose data and weights both come out of a dequantisation of
    8-bit integers is an INT8 one, as every library fuses the three.

    Args:
        layers: state-dict prefix → the layer's name, such as ``features.8`` → ``conv3_2``.

    Raises:
        BundleError: not an ONNX file.
    """
    graph = skeleton(path).graph
    types = {t.name: _name(t.data_type) for t in graph.initializer}
    types |= {v.name: _name(v.type.tensor_type.elem_type) for v in graph.input}
    integers: dict[str, str] = {}  # tensor → the type that it was dequantised from
    origins: dict[str, str] = {}  # tensor → the weights that it was made of
    products = []
    for index, node in enumerate(sorted_nodes(graph.node)):
        if node.op_type in PRODUCTS | INTEGER_PRODUCTS:
            weight = node.input[3 if node.op_type == "QLinearConv" else 1]
            name = layer_name(node, origins.get(weight, weight), layers, index)
            products.append(Product(name, _computes_in(node, types, integers)))
        _follow(node, types, integers)
        origins |= {made: origins.get(node.input[0], node.input[0]) for made in node.output if node.input}
    return tuple(products)


def _computes_in(node: onnx.NodeProto, types: dict[str, str], integers: dict[str, str]) -> str:
    if node.op_type in INTEGER_PRODUCTS or all(name in integers for name in node.input[:2]):
        return "int8"
    return types.get(node.input[1]) or types.get(node.input[0], "unknown")


def _follow(node: onnx.NodeProto, types: dict[str, str], integers: dict[str, str]) -> None:
    """Note the type of what a node gives."""
    first = node.input[0] if node.input else ""
    kind = types.get(first, "")
    if node.op_type == "Cast":
        kind = _name(next(a.i for a in node.attribute if a.name == "to"))
    elif node.op_type == "Constant":
        kind = next((_name(a.t.data_type) for a in node.attribute if a.name == "value"), "")
    elif node.op_type == "QuantizeLinear":
        kind = types.get(node.input[2], "uint8") if len(node.input) > 2 else "uint8"
    elif node.op_type == "DequantizeLinear":
        if kind in _EIGHT_BITS:
            integers[node.output[0]] = kind
        kind = types.get(node.input[1], "fp32")
    elif node.op_type in MOVES and first in integers:
        integers[node.output[0]] = integers[first]
    elif node.op_type in PRODUCTS:
        kind = types.get(node.input[1]) or kind
    for name in node.output:
        types[name] = kind


def layer_name(node: onnx.NodeProto, weight: str, layers: dict[str, str], index: int) -> str:
    """The VGG's own name where the weights carry the checkpoint's key, else the node's."""
    key = KEY.search(weight) or KEY.search(node.name)
    return layers.get(key[1], key[1]) if key else node.name or f"{node.op_type} {index}"


def _name(data_type: int) -> str:
    try:
        text: str = onnx.TensorProto.DataType.Name(data_type)
    except ValueError:
        return f"type {data_type}"
    return type_name(text)


def skeleton(path: Path) -> onnx.ModelProto:
    """The model of an ONNX file without the numbers of its weights: names, types, shapes and the graph.

    Raises:
        BundleError: not an ONNX file, or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            whole = range(len(data))
            kept = _rewrite(data, whole, {_GRAPH: lambda d, r: _rewrite(d, r, {_INITIALIZER: _without_numbers})})
        model: onnx.ModelProto = onnx.ModelProto.FromString(kept)
    except (DecodeError, ValueError, IndexError) as error:  # an empty file cannot be mapped: a ValueError
        raise BundleError(f"{shown(path)} is not ONNX: it is damaged or cut short", "export it again") from error
    return model


Span = Callable[[mmap.mmap, range], bytes]


def _rewrite(data: mmap.mmap, span: range, inside: dict[int, Span]) -> bytes:
    """A message's bytes, with some of its fields rewritten."""
    parts = []
    for field, start, content in _fields(data, span):
        if field in inside:
            new = inside[field](data, content)
            parts += [varint(field << 3 | _BYTES), varint(len(new)), new]
        else:
            parts.append(data[start : content.stop])
    return b"".join(parts)


def _without_numbers(data: mmap.mmap, span: range) -> bytes:
    return b"".join(data[s : c.stop] for field, s, c in _fields(data, span) if field not in _NUMBERS)


def _fields(data: mmap.mmap, span: range) -> Iterator[tuple[int, int, range]]:
    """Number of each field of a message, where it starts, and where its content lies."""
    at = span.start
    while at < span.stop:
        start = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _read_varint(data, at)
            content = range(at, at + length)
        elif kind == _VARINT:
            content = range(at, _read_varint(data, at)[1])
        elif kind in _FIXED:
            content = range(at, at + _FIXED[kind])
        else:
            raise ValueError(f"wire type {kind}")
        if content.stop > span.stop:
            raise ValueError("cut short")
        yield tag >> 3, start, content
        at = content.stop


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def sorted_nodes(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The same nodes, moved as little as that needs: quantisers append theirs at the end of the file.

    Nodes of a cycle, which no library runs, are left out.
    """
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output}
    missing = [{made_by[name] for name in node.input if name in made_by} for node in nodes]
    readers = defaultdict(list)
    for index, needed in enumerate(missing):
        for maker in needed:
            readers[maker].append(index)
    ready = [index for index, needed in enumerate(missing) if not needed]
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for reader in readers[index]:
            missing[reader].discard(index)
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return ordered
