"""The operations of a layer in a file, and their settings, beside the network's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import NodeProto, helper

from vggdeploy.types import Precision
from vggdeploy.verify.segments import MOVING, PASSING, Graph, Kind, Segment

_OPERATIONS: dict[Kind, frozenset[str]] = {
    "preprocess": frozenset({"Mul", "Add", "Sub", "Div"}),
    "product": frozenset({"Conv", "Gemm", "MatMul", "Add"}),
    "relu": frozenset({"Relu"}),
    "pool": frozenset({"MaxPool"}),
}
_NAMES: dict[Kind, str] = {"relu": "ReLU", "pool": "max pool of 2 × 2"}
_GEMM: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0}
_POOL: dict[str, Any] = {
    "kernel_shape": [2, 2],
    "strides": [2, 2],
    "pads": [0, 0, 0, 0],
    "dilations": [1, 1],
    "ceil_mode": 0,
}
# ONNX's, where an attribute is left out; of others it is the network's.
_DEFAULTS = {"pads": [0, 0, 0, 0], "strides": [1, 1]}


def wrong_structure(graph: Graph, segment: Segment, precision: Precision) -> Iterator[str]:
    """What differs, each as the end of a sentence that begins with the layer."""
    nodes, name = graph.data_nodes(segment), _NAMES.get(segment.kind, "")
    present = [node for node in nodes if node.op_type in _OPERATIONS[segment.kind]]
    others = [node for node in nodes if node not in present and node.op_type not in PASSING | MOVING]
    if others and name and not present:
        yield f"is {' and '.join(dict.fromkeys(map(_described, others)))} where the network has a {name}"
    elif others:
        yield f"holds {', '.join(dict.fromkeys(node.op_type for node in others))}, which the network does not"
    elif name and not present and graph.rounding(nodes) is None:
        yield f"is missing: nothing stands in place of the network's {name}"
    for node in nodes:
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        same_size = found.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
        for key, value in _settings(graph, node).items():
            own = found.get(key, _DEFAULTS.get(key, value))
            own = list(own) if isinstance(value, list) else own
            if own != value and not (key == "pads" and same_size):
                yield f"has {key} {_listed(own)} where the network has {_listed(value)}"
    for node in segment.products if not precision.quantised else ():
        if (own := graph.computes_in(node)) != precision:
            yield f"computes in {own} where the file promises {precision}"


def _settings(graph: Graph, node: NodeProto) -> dict[str, Any]:
    """The attributes that an operation of the network has."""
    if node.op_type != "Conv":
        return _POOL if node.op_type == "MaxPool" else _GEMM if node.op_type == "Gemm" else {}
    sides = list(graph.tensor(graph.weight(node)[0]).dims)[2:]
    pads = [side // 2 for side in sides] * 2
    return {"kernel_shape": sides, "strides": [1, 1], "pads": pads, "dilations": [1, 1], "group": 1}


def _described(node: NodeProto) -> str:
    return node.op_type + "".join(f" ({a.name} {a.f:.3g})" for a in node.attribute if a.name == "alpha")


def _listed(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))
