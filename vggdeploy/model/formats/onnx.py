"""ONNX files, read without the onnx package and without their weights: half a gigabyte of numbers is passed over.

The numbers of the fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3. What a chain of layers does
not need (subgraphs, functions, external data, …) is not read; `Model.others` says that it is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.formats.protobuf import BYTES, FIXED32, VARINT, Field, fields, packed

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
MAX_ITEMS = 16_384  # of one kind in one message: a VGG of 256 convolutions in INT8 has 4,000 nodes
MAX_TEXT = 1024  # bytes of a name
MAX_SMALL = 2**17  # bytes of a list of small numbers
MAX_FIELDS = 500_000  # and numbers in lists, of the whole file: that VGG in INT8 has 100,000
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, BFLOAT16, E4M3 = 1, 2, 3, 6, 7, 10, 16, 17  # FLOAT8E4M3FN
TYPES = {
    FLOAT: "fp32", UINT8: "uint8", INT8: "int8", INT32: "int32", INT64: "int64", FLOAT16: "fp16", BFLOAT16: "bf16", E4M3: "fp8",
}  # fmt: skip
SIZES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, FLOAT16: 2, BFLOAT16: 2, E4M3: 1, 11: 8}


@dataclass(frozen=True)
class Tensor:
    """Stored numbers. ``count`` is how many there are, by what the file holds of them; ``integers`` are those of a small
    tensor of integers; ``raw`` are their bytes, little-endian, where the file has them in one piece."""

    name: str
    type: int
    dims: tuple[int, ...]
    count: int
    integers: tuple[int, ...] | None = None
    raw: memoryview | None = field(default=None, repr=False, compare=False)

    @property
    def whole(self) -> bool:
        return all(0 < n < 2**31 for n in self.dims) and prod(self.dims) == self.count


@dataclass(frozen=True)
class Info:
    """Name, type and shape of a value, as a graph declares them. An axis is a number, a text, or None for unknown; a shape
    that is not said is None."""

    name: str
    type: int
    shape: tuple[int | str | None, ...] | None


@dataclass
class Node:
    """An operator. The names of its fields are those of onnx.NodeProto."""

    op_type: str = ""
    name: str = ""
    domain: str = ""
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Model:
    """``others``: what was found that is not read here, in words."""

    ir_version: int = 0
    opsets: list[tuple[str, int]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[Info] = field(default_factory=list)
    outputs: list[Info] = field(default_factory=list)
    infos: list[Info] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def read_onnx_file(data: memoryview, file: str) -> Model:
    """
    Raises:
        ForeignModelError: not ONNX: damaged, cut short, or with more of anything than a network has.
    """
    reader = _Reader()
    try:
        if not data:
            raise ValueError("it is empty")
        reader.message(data, _MODEL, "model")
    except (ValueError, struct.error) as error:
        raise ForeignModelError(
            f"{file} is not ONNX: it is damaged or cut short ({error})", "export it again"
        ) from error
    return reader.model


class _Reader:
    """Reads into ``model``. A field that may stand once stands once: readers differ in what they make of a second one."""

    def __init__(self) -> None:
        self.model = Model()
        self._left = MAX_FIELDS

    def message(self, data: memoryview, rules: dict[int, Rule], what: str) -> None:
        for _, found, rule in self.known(data, rules, what):
            rule(self, found)

    def known(self, data: memoryview, rules: dict[int, Rule], what: str) -> Iterator[tuple[int, Field, Rule]]:
        counts: dict[int, int] = {}
        for found in fields(data):
            self._spend()
            counts[found.number] = counts.get(found.number, 0) + 1
            if counts[found.number] > (1 if found.number in _ONCE[what] else MAX_ITEMS):
                raise ValueError(f"field {found.number} of a {what} stands {counts[found.number]} times")
            if found.number in rules:
                yield found.number, found, rules[found.number]
            else:
                name = _OTHERS.get((what, found.number), f"field {found.number} of a {what}")
                if len(self.model.others) < MAX_ITEMS:
                    self.model.others.append(name)

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("more fields than a network has")

    def _extend(self, values: list[int], found: Field) -> None:
        if found.wire == BYTES and len(found.content) <= MAX_SMALL and bytes(found.content).isascii():
            values += found.content  # numbers of one byte each, as a quantiser's many zeros are
            return
        for value in packed(found):
            self._spend()
            values.append(value)

    # Each message, and what its fields are put into.

    def node(self, found: Field) -> None:
        node = Node()
        for number, each, _ in self.known(_bytes(found), dict.fromkeys((1, 2, 3, 4, 5, 7), _skip), "node"):
            match number:
                case 1:
                    node.input.append(_text(each))
                case 2:
                    node.output.append(_text(each))
                case 3:
                    node.name = _text(each)
                case 4:
                    node.op_type = _text(each)
                case 5:
                    self.attribute(each, node)
                case 7:
                    node.domain = _text(each)
        self.model.nodes.append(node)

    def attribute(self, found: Field, node: Node) -> None:
        name, kind, values = "", 0, dict[int, Any]()
        for number, each, _ in self.known(_bytes(found), dict.fromkeys((1, 2, 3, 4, 5, 7, 8, 20), _skip), "attribute"):
            match number:
                case 1:
                    name = _text(each)
                case 20:
                    kind = _number(each)
                case 2:
                    values[1] = _expect(each, FIXED32).float
                case 3:
                    values[2] = _expect(each, VARINT).signed
                case 4:
                    values[3] = bytes(_bytes(each)[:MAX_TEXT])
                case 5:
                    values[4] = self.tensor(each)
                case 7:
                    values.setdefault(6, []).append(None)
                case 8:
                    self._extend(values.setdefault(7, []), each)
        if name in node.attributes:
            raise ValueError(f"the attribute {name} stands twice")
        # One value, of the kind that it says it is of: an empty list of integers is left out of the file.
        ok = set(values) == {kind} or (kind == 7 and not values)
        node.attributes[name] = values.get(kind, []) if ok else ValueError

    def tensor(self, found: Field) -> Tensor:
        name, kind, dims, counts, integers = "", 0, list[int](), list[int](), list[int]()
        raw: memoryview | None = None
        for number, each, _ in self.known(_bytes(found), dict.fromkeys((1, 2, 4, 5, 7, 8, 9, 14), _skip), "tensor"):
            match number:
                case 1:
                    self._extend(dims, each)
                case 2:
                    kind = _number(each)
                case 4:
                    counts.append(len(each.content) // 4 if each.wire == BYTES else -1)
                case 5 | 7:
                    self._extend(integers, each)
                case 8:
                    name = _text(each)
                case 9:
                    raw = _bytes(each)
                case 14 if _number(each):
                    self.model.others.append("external data")
        whole = integers
        if raw is not None:
            size = SIZES.get(kind, 0)
            counts.append(len(raw) // size if size and len(raw) % size == 0 else -1)
            whole = _small(raw, kind) if counts[-1] > 0 else []
        if integers:
            counts.append(len(integers))
        if len(counts) > 1 or len(dims) > 8:
            raise ValueError(f"the tensor {name} has two sets of numbers")
        known = tuple(whole) if whole or not counts else None
        return Tensor(name, kind, tuple(dims), sum(counts), known, raw)

    def info(self, found: Field) -> Info:
        name, kind, shape = "", 0, None
        for number, each, _ in self.known(_bytes(found), {1: _skip, 2: _skip}, "value"):
            if number == 1:
                name = _text(each)
            else:
                for _, tensor, _ in self.known(_bytes(each), {1: _skip}, "type"):
                    for place, part, _ in self.known(_bytes(tensor), {1: _skip, 2: _skip}, "tensor_type"):
                        kind, shape = (_number(part), shape) if place == 1 else (kind, self.shape(part))
        return Info(name, kind, shape)

    def shape(self, found: Field) -> tuple[int | str | None, ...]:
        axes: list[int | str | None] = []
        for _, dim, _ in self.known(_bytes(found), {1: _skip}, "shape"):
            axis: int | str | None = None
            for number, each, _ in self.known(_bytes(dim), {1: _skip, 2: _skip}, "axis"):
                axis = _expect(each, VARINT).signed if number == 1 else _text(each)
            axes.append(axis)
        return tuple(axes)

    def opset(self, found: Field) -> None:
        domain, version = "", 0
        for number, each, _ in self.known(_bytes(found), {1: _skip, 2: _skip}, "opset"):
            domain, version = (_text(each), version) if number == 1 else (domain, _number(each))
        self.model.opsets.append((domain, version))

    def entry(self, found: Field) -> None:
        key, value = "", ""
        for number, each, _ in self.known(_bytes(found), {1: _skip, 2: _skip}, "entry"):
            key, value = (_text(each), value) if number == 1 else (key, _text(each))
        self.model.metadata[key] = value


def _small(raw: memoryview, kind: int) -> list[int]:
    """The integers of a few bytes; of FP8 its codes, of which 0 is zero."""
    code = {UINT8: "B", INT8: "b", INT32: "i", INT64: "q", E4M3: "B"}.get(kind)
    return list(struct.unpack(f"<{len(raw) // SIZES[kind]}{code}", raw)) if code and len(raw) <= 64 else []


Rule = Callable[[_Reader, Field], None]


def _skip(reader: _Reader, found: Field) -> None:
    """For what is read elsewhere, or says nothing."""


def _bytes(found: Field) -> memoryview:
    return _expect(found, BYTES).content


def _number(found: Field) -> int:
    return _expect(found, VARINT).value


def _expect(found: Field, wire: int) -> Field:
    if found.wire != wire:
        raise ValueError(f"field {found.number} has the wire type {found.wire}")
    return found


def _text(found: Field) -> str:
    if len(_bytes(found)) > MAX_TEXT:
        raise ValueError(f"a name of {len(found.content)} bytes")
    return found.text()


_GRAPH: dict[int, Rule] = {
    1: _Reader.node,
    2: lambda reader, found: None,
    5: lambda reader, found: reader.model.tensors.append(reader.tensor(found)),
    11: lambda reader, found: reader.model.inputs.append(reader.info(found)),
    12: lambda reader, found: reader.model.outputs.append(reader.info(found)),
    13: lambda reader, found: reader.model.infos.append(reader.info(found)),
}
_MODEL: dict[int, Rule] = {
    1: lambda reader, found: setattr(reader.model, "ir_version", _number(found)),
    2: _skip,
    3: _skip,
    4: _skip,
    5: _skip,
    7: lambda reader, found: reader.message(_bytes(found), _GRAPH, "graph"),
    8: _Reader.opset,
    14: _Reader.entry,
}
# Fields that are no list.
_ONCE: dict[str, frozenset[int]] = {
    "model": frozenset({1, 2, 3, 4, 5, 6, 7}),
    "graph": frozenset({2, 10}),
    "node": frozenset({3, 4, 6, 7, 8}),
    "attribute": frozenset({1, 2, 3, 4, 5, 6, 13, 14, 20, 21, 22}),
    "tensor": frozenset({2, 3, 8, 9, 12, 14}),
    "value": frozenset({1, 2, 3}),
    "type": frozenset(range(1, 30)),
    "tensor_type": frozenset({1, 2}),
    "shape": frozenset(),
    "axis": frozenset({1, 2, 3}),
    "opset": frozenset({1, 2}),
    "entry": frozenset({1, 2}),
}
_OTHERS = {
    ("model", 6): "a comment", ("model", 20): "training", ("model", 25): "functions", ("model", 26): "a device configuration",
    ("graph", 10): "a comment", ("graph", 14): "quantisation notes", ("graph", 15): "sparse tensors",
    ("graph", 16): "metadata of the graph", ("node", 6): "comments", ("node", 8): "an overload",
    ("node", 9): "metadata of nodes", ("attribute", 6): "a subgraph", ("attribute", 10): "tensors as an attribute",
    ("attribute", 11): "subgraphs", ("attribute", 22): "a sparse tensor", ("attribute", 13): "comments",
    ("tensor", 3): "a tensor in parts", ("tensor", 6): "texts", ("tensor", 12): "comments", ("tensor", 13): "external data",
    ("tensor", 16): "metadata of tensors", ("value", 3): "comments", ("value", 4): "metadata of values",
}  # fmt: skip
