"""Write an ONNX file whose weights never stand in memory as protobuf.

Serialising half a gigabyte of initialisers through a message costs the weights twice more in memory. The wire format
does not need it: a message is the concatenation of its fields, and a field of bytes is tag, length, bytes
(https://protobuf.dev/programming-guides/encoding). So everything but the weights is serialised as usual, and each
weight follows as one more ``GraphProto.initializer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from vggdeploy.runtime.onnx_bytes import varint

_LENGTH_DELIMITED = 2
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def _prefix(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(length)


def write_model(proto: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol], path: Path) -> None:
    """Write ``proto`` with ``weights`` appended to its graph's initialisers, one tensor at a time."""
    graph = proto.graph.SerializeToString(deterministic=True)
    heads: list[bytes] = []
    for name, tensor in weights.items():
        described = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        head = described.SerializeToString(deterministic=True) + _prefix(_RAW_DATA, tensor.nbytes)
        heads.append(_prefix(_INITIALIZER, len(head) + tensor.nbytes) + head)
    total = len(graph) + sum(len(head) + t.nbytes for head, t in zip(heads, weights.values(), strict=True))
    outer = onnx.ModelProto()
    outer.CopyFrom(proto)
    outer.ClearField("graph")
    with path.open("wb") as file:
        file.write(outer.SerializeToString(deterministic=True))
        file.write(_prefix(_GRAPH, total))
        file.write(graph)
        for head, tensor in zip(heads, weights.values(), strict=True):
            file.write(head)
            file.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
