"""A small ONNX file, written field by field where the onnx package is not installed.

The wire format is https://protobuf.dev/programming-guides/encoding, the fields are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.types import TensorSpec

FLOAT = 1  # onnx.TensorProto.DataType
_TYPES = {"float32": FLOAT, "uint8": 2, "int8": 3, "int32": 6}
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7  # onnx.AttributeProto.AttributeType
_OPSET, _IR_VERSION = 17, 8


def model_bytes(
    name: str,
    nodes: Sequence[bytes],
    weights: Mapping[str, NDArray[Any]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> bytes:
    """An ONNX model of `node`s, in an order in which each comes after what it reads."""
    graph = b"".join(
        [
            *(_field(1, each) for each in nodes),
            _field(2, name.encode()),
            *(_field(5, _tensor(key, values)) for key, values in weights.items()),
            *(_field(11, _value(spec)) for spec in inputs),
            *(_field(12, _value(spec)) for spec in outputs),
        ]
    )
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, _OPSET))


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | tuple[int, ...]) -> bytes:
    """One operator with one output."""
    parts = [*(_field(1, name.encode()) for name in inputs), _field(2, output.encode())]
    parts += [_field(3, output.encode()), _field(4, kind.encode())]
    for name, value in attributes.items():
        if isinstance(value, int):
            body = _number(3, value) + _number(20, _ATTRIBUTE_INT)
        else:
            body = b"".join(_number(8, n) for n in value) + _number(20, _ATTRIBUTE_INTS)
        parts.append(_field(5, _field(1, name.encode()) + body))
    return b"".join(parts)


def varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _field(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    dims = b"".join(_number(1, n) for n in values.shape)
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return dims + _number(2, _TYPES[values.dtype.name]) + _field(8, name.encode()) + _field(9, raw)


def _value(spec: TensorSpec) -> bytes:
    axes = [_field(2, n.encode()) if isinstance(n, str) else _number(1, n) for n in spec.shape]
    shape = b"".join(_field(1, axis) for axis in axes)
    return _field(1, spec.name.encode()) + _field(2, _field(1, _number(1, _TYPES[spec.dtype]) + _field(2, shape)))
