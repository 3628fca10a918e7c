"""An ONNX graph, followed operator by operator along the network's chain, before any library parses it."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.formats import onnx
from vggdeploy.model.formats.chain import Chain, refused
from vggdeploy.model.formats.onnx import E4M3, FLOAT, INT8, INT32, INT64, TYPES, UINT8, Info, Model, Node
from vggdeploy.types import MAX_BATCH, TensorSpec

_FLOATS = (FLOAT, onnx.FLOAT16, onnx.BFLOAT16)
_OPSETS, _VERSIONS = range(13, 27), range(7, 14)
_QUANTISER = {"onnx.infer": "onnxruntime.quant"}  # ONNX Runtime's note that shapes were inferred
_NODES = 12  # of a step, at most: each may stand between two pairs of Q/DQ, with others for its weights and bias
_CODES = (UINT8, INT8, E4M3)
_ELEMENTS = {"uint8": UINT8, "float32": FLOAT}


class Value(NamedTuple):
    """What depends on the image: its place in the chain, and its type. ``codes``: integers of a quantiser."""

    place: int
    type: int


class Weight(NamedTuple):
    """A constant: its shape and type; ``integers`` where they are few."""

    dims: tuple[int, ...]
    type: int
    integers: tuple[int, ...] | None = None


def check_onnx(data: memoryview, chain: Chain, file: str) -> None:
    """
    Raises:
        ForeignModelError: the file is no ONNX, or its graph is not the chain.
    """
    _Graph(onnx.read_onnx_file(data, file), chain, file).check()


class Operator(NamedTuple):
    """An operator that depends on the image: its names, and which steps of the chain it computes. That range is empty,
    and starts where it stands, for one that only converts what the step before it made (a cast, a quantiser).

    ``type`` is that of what it makes, ``weights`` the constants that it reads.
    """

    name: str
    kind: str
    output: str
    span: range
    type: str
    weights: tuple[Weight, ...]


def operators_of(data: memoryview, chain: Chain, file: str) -> list[Operator]:
    """The operators of a file, in order.

    Raises:
        ForeignModelError: as `check_onnx`.
    """
    graph = _Graph(onnx.read_onnx_file(data, file), chain, file)
    graph.check()
    return graph.operators


class _Graph:
    def __init__(self, model: Model, chain: Chain, file: str) -> None:
        self.model, self.chain, self.file = model, chain, file
        self.operators: list[Operator] = []
        self._values: dict[str, Value | Weight] = {}
        self._used: set[str] = set()
        self._done: set[tuple[int, str]] = set()

    def check(self) -> None:
        """Raises: see `check_onnx`."""
        self._about()
        self._names()
        chain, model = self.chain, self.model
        kind = _ELEMENTS[chain.image.dtype]
        self._declared(model.inputs, [chain.image], kind)
        self._declared(model.outputs, list(chain.outputs), FLOAT)
        self._values[chain.image.name] = Value(0, kind)
        stored = {tensor.name: tensor for tensor in model.tensors}
        for name, tensor in stored.items():
            if not tensor.whole or tensor.type not in TYPES:
                raise self.refused(f"its tensor {name} has not the numbers that its shape says")
            self._values[name] = Weight(tensor.dims, tensor.type, tensor.integers)
        ordered = sorted_nodes(model.nodes)
        if len(ordered) != len(model.nodes):
            raise self.refused("its operators wait for each other")
        for node in ordered:
            self._follow(node)
        # A quantiser leaves scales and zeros of the pairs that were taken away.
        if unused := [name for name, tensor in stored.items() if name not in self._used and tensor.count > 1]:
            raise self.refused(f"nothing reads its tensor {min(unused)}")
        for output in chain.outputs:
            if self._values.get(output.name) != Value(chain.ends[output.name], FLOAT):
                raise self.refused(f"its output {output.name} is not that of the network")
        self._infos()

    def refused(self, why: str) -> ForeignModelError:
        return refused(self.file, why)

    def _about(self) -> None:
        """The model around the graph."""
        model = self.model
        if model.others:
            raise self.refused(f"it holds {model.others[0]}")
        if [domain for domain, _ in model.opsets if domain] or len(model.opsets) != 1:
            raise self.refused(f"it uses operators of {', '.join(f'{d!r} {v}' for d, v in model.opsets)[:200]}")
        if model.opsets[0][1] not in _OPSETS or model.ir_version not in _VERSIONS:
            raise self.refused(f"it is of opset {model.opsets[0][1]} and IR version {model.ir_version}")
        if any(_QUANTISER.get(key) != value for key, value in model.metadata.items()):
            raise self.refused(f"it has the metadata {', '.join(model.metadata)[:200]}")
        if len(model.nodes) > _NODES * (len(self.chain.steps) + len(self.chain.outputs) + 1):
            raise self.refused(f"it has {len(model.nodes)} operators for {len(self.chain.steps)} steps")

    def _names(self) -> None:
        """Each value is made once, and each operator, where it has a name, has its own."""
        model = self.model
        made = [name for node in model.nodes for name in node.output]
        values = [*made, *(t.name for t in model.tensors), *(i.name for i in model.inputs)]
        for what, names in (
            ("value", values),
            ("output", [i.name for i in model.outputs]),
            ("operator", [node.name for node in model.nodes if node.name]),
            ("type of", [i.name for i in model.infos]),
        ):
            if len(set(names)) != len(names) or "" in names:
                twice = next((name for name in names if names.count(name) > 1), "")
                raise self.refused(f"it has the {what} {twice!r} twice, or without a name")

    def _declared(self, found: Sequence[Info], wanted: Sequence[TensorSpec], kind: int) -> None:
        for info, spec in zip(found, wanted, strict=False):
            fits = info.shape is None or (_is_batch(info.shape[:1]) and info.shape[1:] == spec.item_shape)
            if info.name != spec.name or info.type != kind or not fits:
                raise self.refused(f"it has {info.name}: {TYPES.get(info.type, info.type)} {info.shape} for {spec}")
        if len(found) != len(wanted):
            raise self.refused(f"it has {len(found)} inputs or outputs for {len(wanted)}")

    def _infos(self) -> None:
        """The shapes and types that it notes of values: libraries believe them."""
        outputs = {info.name for info in self.model.outputs}
        for info in self.model.infos:
            known = self._values.get(info.name)
            shape, kind = info.shape, known.type if isinstance(known, Value) else info.type
            if isinstance(known, Value):
                fits = shape is None or (_is_batch(shape[:1]) and shape[1:] == self.chain.shape(known.place))
            elif isinstance(known, Weight):
                fits = shape in (None, known.dims)
            else:  # of a value that a quantiser took away: nobody has it
                fits = shape is None or len(shape) <= 4
            if not fits or info.type != kind or info.type not in TYPES or info.name in outputs:
                raise self.refused(f"it notes {info.name[:200]!r} to be {TYPES.get(info.type, '?')} {info.shape}")

    def _follow(self, node: Node) -> None:
        rule = _OPERATORS.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            raise self.refused(f"it holds {node.domain + '.' if node.domain else ''}{node.op_type[:100]}")
        given = []
        for name in node.input:
            if name not in self._values:
                raise self.refused(f"its {node.op_type} {node.name[:200]} reads {name[:200]!r}, which nothing makes")
            given.append(self._values[name])
            self._used.add(name)
        if len(node.output) != 1 or not given:
            raise self.refused(
                f"its {node.op_type} {node.name[:200]} has {len(given)} inputs, {len(node.output)} outputs"
            )
        made = rule.apply(self, node, given)
        if made is None:
            told = ", ".join(f"{key} {value}" for key, value in sorted(node.attributes.items()))
            raise self.refused(f"its {node.op_type} {node.name[:200]} has {told[:200] or 'other inputs'}")
        self._values[node.output[0]] = made
        if isinstance(made, Value):
            before = max(value.place for value in given if isinstance(value, Value))
            weights = tuple(value for value in given if isinstance(value, Weight))
            kind = TYPES.get(made.type, str(made.type))
            self.operators.append(
                Operator(node.name, node.op_type, node.output[0], range(before, made.place), kind, weights)
            )

    def step(self, value: Value, kind: Any, made: int | None = None, **found: object) -> Value:
        """The value behind one step, which is taken once."""
        place = value.place
        steps = self.chain.steps
        if kind == "relu" and place and steps[place - 1].kind == "relu":
            return value  # a quantiser's range began at 0
        behind = self.chain.follow(place, kind, self.file, **found)
        if (place, kind) in self._done:
            raise self.refused(f"it computes {steps[place].layer} twice")
        self._done.add((place, kind))
        return Value(behind, value.type if made is None else made)


def _is_batch(axis: Sequence[int | str | None]) -> bool:
    return len(axis) == 1 and (not isinstance(axis[0], int) or 1 <= axis[0] <= MAX_BATCH)


class Rule(NamedTuple):
    """An operator that we write: its attributes with all values that they may have, and what it makes of what it is given.

    An attribute may be left out if its default is one of ours: ``needed`` are those of which it is not.
    """

    make: Callable[[_Graph, Node, list[Any]], Value | Weight | None]
    attributes: dict[str, tuple[Any, ...]] = {}
    needed: tuple[str, ...] = ()

    def apply(self, graph: _Graph, node: Node, given: list[Any]) -> Value | Weight | None:
        for name, value in node.attributes.items():
            if not any(type(value) is type(each) and value == each for each in self.attributes.get(name, ())):
                return None
        return self.make(graph, node, given) if all(name in node.attributes for name in self.needed) else None


def _cast(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
    match given:
        case [Value(place, kind)] if kind in (*_FLOATS, UINT8) and (place == 0 or kind != UINT8):
            return Value(place, node.attributes["to"])
    return None


def _same(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
    return given[0] if len(given) == 1 and isinstance(given[0], Value) else None


def _scaled(kind: str) -> Callable[[_Graph, Node, list[Any]], Value | None]:
    def make(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
        match given:
            case [Value() as value, Weight(dims, same)] | [Weight(dims, same), Value() as value] if same == value.type:
                return graph.step(value, kind, weight=dims)
        return None

    return make


def _plain(kind: str) -> Callable[[_Graph, Node, list[Any]], Value | None]:
    def make(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
        match given:
            case [Value(_, same) as value] if same in _FLOATS:
                return graph.step(value, kind)
        return None

    return make


def _product(kind: str) -> Callable[[_Graph, Node, list[Any]], Value | None]:
    def make(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
        match given:
            case [Value(place, same) as value, Weight(dims, other), *bias] if same == other and same in _FLOATS:
                steps = graph.chain.steps
                if bias and (bias != [Weight(dims[:1], same, bias[0][-1])] or not steps[place : place + 1]):
                    return None
                if kind == "conv":
                    pads = node.attributes.get("pads", [0, 0, 0, 0])
                    if pads[:2] != pads[2:] or node.attributes.get("kernel_shape", list(dims[2:])) != list(dims[2:]):
                        return None
                    return graph.step(value, kind, weight=dims, pads=tuple(pads[:2]))
                return graph.step(value, kind, weight=dims)
        return None

    return make


def _flatten(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
    match given:
        case [Value() as value] if node.op_type == "Flatten":
            return graph.step(value, "flatten")
        case [Value() as value, Weight((2,), same, (-1 | 0, width))] if same == INT64 and width > 0:
            zero = given[1].integers[0] == 0 and node.attributes.get("allowzero")
            return None if zero else graph.step(value, "flatten", shape=(width,))
    return None


def _pooled(kind: str) -> Callable[[_Graph, Node, list[Any]], Value | None]:
    def make(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
        match given:
            case [Value() as value, Weight((2,), same, (2, 3))] if same == INT64 and "axes" not in node.attributes:
                return graph.step(value, kind)
            case [Value() as value] if "axes" in node.attributes:
                return graph.step(value, kind)
        return None

    return make


def _quantise(graph: _Graph, node: Node, given: list[Any]) -> Value | None:
    match given:
        case [Value(place, same), Weight(() | (1,), scale), Weight(() | (1,), codes, zero)] if (
            scale == same and same in _FLOATS and codes in _CODES and (codes != E4M3 or zero == (0,))
        ):
            steps = graph.chain.steps
            clips = codes == UINT8 and zero in (None, (0,)) and place < len(steps) and steps[place].kind == "relu"
            return Value(place + clips, codes)
    return None


def _dequantise(graph: _Graph, node: Node, given: list[Any]) -> Value | Weight | None:
    match given:
        case [Value(place, codes), Weight(() | (1,), scale), Weight(() | (1,), same, zero)] if (
            codes == same and codes in _CODES and scale in _FLOATS and (codes != E4M3 or zero == (0,))
        ):
            return Value(place, scale)
        case [Weight(dims, codes), Weight(each, scale), *zero] if codes in (INT8, INT32, E4M3) and scale in _FLOATS:
            axis = node.attributes.get("axis", 1)
            apart = each in ((), (1,)) or (axis < len(dims) and each == (dims[axis],))
            if apart and (not zero or zero == [Weight(each, codes, zero[0][-1])]):
                return Weight(dims, scale)
    return None


_CASTS = {"to": _FLOATS, "saturate": (1,), "round_mode": (b"up",)}
_REDUCED = {"keepdims": (0,), "noop_with_empty_axes": (0,), "axes": ([2, 3],)}
_CODED = {"axis": (0, 1), "block_size": (0,), "output_dtype": (0,), "saturate": (1,), "precision": (0,)}
_CONV = {
    "group": (1,), "pads": ([1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]), "auto_pad": (b"NOTSET",), "strides": ([1, 1],),
    "dilations": ([1, 1],), "kernel_shape": ([3, 3], [3, 1], [1, 3]),
}  # fmt: skip
_POOL = {
    "storage_order": (0,), "dilations": ([1, 1],), "ceil_mode": (0,), "pads": ([0, 0, 0, 0],), "auto_pad": (b"NOTSET",),
    "strides": ([2, 2],), "kernel_shape": ([2, 2],),
}  # fmt: skip
_GEMM = {"alpha": (1.0,), "beta": (1.0,), "transA": (0,), "transB": (1,)}
_OPERATORS = {
    "Cast": Rule(_cast, _CASTS, ("to",)),
    "Identity": Rule(_same),
    "Transpose": Rule(lambda graph, node, given: _moved(graph, given), {"perm": ([0, 3, 1, 2],)}, ("perm",)),
    "Mul": Rule(_scaled("scale")),
    "Add": Rule(_scaled("shift")),
    "Conv": Rule(_product("conv"), _CONV, ("pads",)),
    "Relu": Rule(_plain("relu")),
    "MaxPool": Rule(_plain("pool"), _POOL, ("kernel_shape", "strides")),
    "Reshape": Rule(_flatten, {"allowzero": (0, 1)}),
    "Flatten": Rule(_flatten, {"axis": (1,)}),
    "ReduceMean": Rule(_pooled("mean"), _REDUCED, ("keepdims",)),
    "ReduceMax": Rule(_pooled("max"), _REDUCED, ("keepdims",)),
    "Gemm": Rule(_product("linear"), _GEMM, ("transB",)),
    "Softmax": Rule(_plain("softmax"), {"axis": (1, -1)}),
    "QuantizeLinear": Rule(_quantise, _CODED),
    "DequantizeLinear": Rule(_dequantise, _CODED),
}


def _moved(graph: _Graph, given: list[Any]) -> Value | None:
    return graph.step(given[0], "permute") if len(given) == 1 and isinstance(given[0], Value) else None


class Wired(Protocol):
    """What has named inputs and outputs: a node of ours, or of the onnx package."""

    @property
    def input(self) -> Sequence[str]: ...
    @property
    def output(self) -> Sequence[str]: ...


N = TypeVar("N", bound=Wired)


def sorted_nodes(nodes: Sequence[N]) -> list[N]:
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
