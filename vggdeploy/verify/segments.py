"""An ONNX file taken apart: the nodes of each layer, to be run alone on any input."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from vggdeploy.bundle.precision import type_name
from vggdeploy.errors import BuildError
from vggdeploy.model.formats.graph import sorted_nodes
from vggdeploy.model.formats.onnx import PRODUCTS
from vggdeploy.model.layers import KEY, layer_names
from vggdeploy.runtime.onnxruntime.providers import EXACT_INT8
from vggdeploy.spec import ModelSpec, pools

Array = NDArray[Any]
Kind = Literal["preprocess", "product", "relu", "pool"]
# They hand values on, rounded or not; or in another arrangement.
PASSING = frozenset({"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})
MOVING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Softplus", "Softsign"}
    | {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Max", "Min"}
)
_LEAST = {"Constant": 0} | dict.fromkeys((*PRODUCTS, "QuantizeLinear", "DequantizeLinear"), 2)  # inputs
# E4M3: the largest number, the smallest, and half of the last place, with a little for the division by the scale.
_E4M3_END, _E4M3_STEP, _E4M3_SHARE = 448.0, 2.0**-9, 2.0**-4 * 1.01
_FATAL = 4  # ONNX Runtime's log severity: what a faulty layer raises is reported, not logged


@dataclass(frozen=True)
class Segment:
    """What stands between what two layers make.

    Attributes:
        layer: its name, as the outputs' of a network. fc6 and fc7 are two segments each: the product and its ReLU.
        start, end: the tensor that enters and the one that is made; the same where the layer is missing.
        products: the convolutions or matrix products in it; two of a layer of low rank.
    """

    layer: str
    kind: Kind
    start: str
    end: str
    products: tuple[NodeProto, ...] = ()


@dataclass(frozen=True)
class Rounding:
    """A quantiser's step, of floats its smallest one, and the range that it rounds to. ``share``: of floats, half a step of a
    value as a share of it."""

    step: float
    low: float
    high: float
    share: float = 0.0

    def tolerance(self, values: Array) -> Array:
        """How far each of the values may be rounded away."""
        return np.asarray(np.maximum(0.51 * self.step, self.share * np.abs(values)))


class Graph:
    """A model's graph, with what makes each tensor.

    Raises:
        BuildError: an operator without its inputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = sorted_nodes(model.graph.node)
        for node in self.nodes:
            if len(node.input) < _LEAST.get(node.op_type, 1) or not node.output:
                raise BuildError(f"its {node.op_type} {node.name} misses an input or output", "export the bundle again")
        if not model.graph.input:
            raise BuildError("the file's graph has no input", "export the bundle again")
        self.image = model.graph.input[0].name
        self.makers = {name: node for node in self.nodes for name in node.output}
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}

    @cached_property
    def _live(self) -> set[str]:
        """Tensors that depend on the image."""
        found = {self.image}
        for node in self.nodes:
            if found.intersection(node.input):
                found.update(node.output)
        return found

    def tensor(self, name: str) -> onnx.TensorProto:
        """
        Raises:
            BuildError: it is computed in the graph.
        """
        maker = self.makers.get(name)
        constant: list[onnx.TensorProto] = []
        if maker is not None and maker.op_type == "Constant":
            constant = [a.t for a in maker.attribute if a.name == "value"]
        if name not in self._stored and not constant:
            hint = "give an ONNX file that 'vggdeploy export' wrote"
            raise BuildError(f"'{name}' is computed in the graph, and not stored in the file", hint)
        return constant[0] if constant else self._stored[name]

    def stored(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensor(name))

    def weight(self, product: NodeProto) -> tuple[str, Array | None]:
        """The tensor in the file that a product's weights are made of, and its scale where it is dequantised."""
        name, scale = str(product.input[1]), None
        while (maker := self.makers.get(name)) is not None and maker.input:
            scale = self.stored(maker.input[1]) if maker.op_type == "DequantizeLinear" else scale
            name = maker.input[0]
        return name, scale

    def bias(self, product: NodeProto) -> str:
        """The tensor of a product's bias: its own, or one that is added behind a matrix product; "" without one."""
        if product.op_type != "MatMul":
            return str(product.input[2]) if len(product.input) > 2 else ""
        added = [node for node in self.nodes if node.op_type == "Add" and product.output[0] in node.input]
        return str(next((name for name in added[0].input if name not in self._live), "")) if len(added) == 1 else ""

    def computes_in(self, product: NodeProto) -> str:
        """The type of a product's weights."""
        maker = self.makers.get(product.input[1])
        cast = next((a.i for a in maker.attribute if a.name == "to"), 0) if maker is not None else 0
        return type_name(onnx.TensorProto.DataType.Name(cast or self.tensor(self.weight(product)[0]).data_type))

    def rounding(self, nodes: Sequence[NodeProto]) -> Rounding | None:
        """How the first quantiser among these nodes rounds; None without one."""
        node = next((n for n in nodes if n.op_type == "QuantizeLinear"), None)
        if node is None:
            return None
        zero = self.stored(node.input[2]) if len(node.input) > 2 else np.uint8(0)
        step = self.stored(node.input[1]).item()
        if zero.dtype.kind not in "iu":  # FP8: the zero is 0
            return Rounding(step * _E4M3_STEP, -step * _E4M3_END, step * _E4M3_END, share=_E4M3_SHARE)
        span = np.iinfo(zero.dtype)
        return Rounding(step, step * (span.min - zero.item()), step * (span.max - zero.item()))

    def path(self, start: str, end: str) -> list[NodeProto]:
        """The nodes of the shortest way from one tensor to another; empty where there is none."""
        readers: dict[
            str, tuple[NodeProto, str]
        ] = {}  # a tensor → the node that reads it on the way, and what that makes
        waiting = deque([end])
        while waiting and start not in readers:
            tensor = waiting.popleft()
            node = self.makers.get(tensor) if tensor != start else None
            if node is not None:
                new = [name for name in node.input if name not in readers]
                readers |= dict.fromkeys(new, (node, tensor))
                waiting += new
        nodes = []
        while start != end and start in readers:
            node, start = readers[start]
            nodes.append(node)
        return nodes

    def between(self, start: str, ends: Iterable[str]) -> list[NodeProto]:
        """Every node that ``ends`` need, back to ``start``, in order."""
        waiting, found = [*ends], set()
        while waiting:
            name = waiting.pop()
            node = self.makers.get(name) if name != start else None
            if node is not None and id(node) not in found:
                found.add(id(node))
                waiting += node.input
        return [node for node in self.nodes if id(node) in found]

    def data_nodes(self, segment: Segment) -> list[NodeProto]:
        """The nodes of a segment that depend on an image: not those that make weights."""
        nodes = self.between(segment.start, [segment.end])
        return [node for node in nodes if self._live.intersection(node.output)]


class Runner:
    """The nodes of one segment as a session of their own, without any optimisation: each computes what the file says.

    Raises:
        Exception: ONNX Runtime cannot run these nodes; its exceptions share no base class.
    """

    def __init__(self, graph: Graph, start: str, wanted: Iterable[str], dtype: Any, threads: int | None) -> None:
        self._graph, self._start = graph, start
        self._made = [name for name in dict.fromkeys(wanted) if name in graph.makers and name != start]
        nodes = graph.between(start, self._made)
        read = {name for node in nodes for name in node.input}
        inputs = [helper.make_tensor_value_info(start, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)]
        if graph.image in read and start != graph.image:
            inputs.append(graph.model.graph.input[0])
        self._names = [value.name for value in inputs]
        outputs = [onnx.ValueInfoProto(name=name) for name in self._made]
        weights = [tensor for tensor in graph.model.graph.initializer if tensor.name in read]
        # One copy of the weights at a time: fc6's are most of a VGG.
        model = onnx.ModelProto(ir_version=graph.model.ir_version, opset_import=graph.model.opset_import)
        model.graph.CopyFrom(helper.make_graph(nodes, "layer", inputs, outputs))
        model.graph.initializer.extend(weights)
        data = model.SerializeToString()
        del model
        options = ort.SessionOptions()
        options.add_session_config_entry(*EXACT_INT8)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads or 0
        if self._made:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, entering: Array, images: Array, wanted: Iterable[str]) -> dict[str, Array]:
        """Tensor → its value, for what enters the segment; what is stored in the file is read from there."""
        chosen = [name for name in self._made if name in wanted]
        found = {self._start: entering}
        if chosen:
            feeds = dict(zip(self._names, (entering, images), strict=False))
            found |= zip(chosen, self._session.run(chosen, feeds), strict=True)
        return {name: found[name] if name in found else self._graph.stored(name) for name in wanted}


def segments(graph: Graph, spec: ModelSpec) -> list[Segment]:
    """The layers of a VGG's graph in order, as far as it goes; none where no convolution is recognised.

    Products are known by the weights that they read, or, where names say nothing, by their order. What stands between
    two of them is the ReLU's or the pool's; what only rearranges values belongs to what reads them.
    """
    layers = layer_names(spec)
    groups = _products(graph, layers)
    if not groups:
        return []
    names, outputs = list(groups), {value.name for value in graph.model.graph.output}
    first = groups[names[0]][0].input[0]
    at = _made(_stripped(graph.path(graph.image, first), PASSING), graph.image)
    found = [Segment("preprocess", "preprocess", graph.image, at)] if at != graph.image else []
    pooled = dict(zip(layers.values(), pools(spec.blocks), strict=False))
    for layer, following in zip(names, [*names[1:], None], strict=True):
        products = groups[layer]
        behind = _behind(graph, products[-1], groups[following][0].input[0] if following else None)
        made = products[-1].output[0]
        if products[-1].op_type == "MatMul" and graph.bias(products[-1]) and behind:
            made, behind = behind[0].output[0], behind[1:]
        if layer == "logits":
            found.append(Segment(layer, "product", at, _made(_stripped(behind, PASSING), made), products))
            break
        kinds = [node.op_type for node in behind]
        pool = next((i for i, kind in enumerate(kinds) if "Pool" in kind), len(kinds))
        active = next((i for i, kind in enumerate(kinds[:pool]) if kind in _ACTIVATIONS), None)
        if active is None and "QuantizeLinear" in kinds[:pool]:
            active = kinds.index("QuantizeLinear")  # it rounds to a range from 0, which makes a ReLU superfluous
        if active is not None:
            made = _made(_stripped(behind[:active], PASSING), made)
        found.append(Segment(layer, "product", at, made, products))
        at = made
        relu, last = layer.replace("conv", "relu"), f"pool{layer[4:].partition('_')[0]}" if pooled.get(layer) else ""
        # A graph of features may end at any of them.
        if following or active is not None or outputs & {relu, last}:
            at = _relu_end(behind[active or 0 : pool], made)
            found.append(Segment(relu, "relu", made, at))
        if last and (following or pool < len(behind)):
            end = _made(_stripped(behind[pool:], PASSING | MOVING), at)
            found.append(Segment(last, "pool", at, end))
            at = end
    return found


def _products(graph: Graph, layers: dict[str, str]) -> dict[str, tuple[NodeProto, ...]]:
    """Layer → its products, in order."""
    nodes = [node for node in graph.nodes if node.op_type in PRODUCTS]
    keys = [KEY.search(graph.weight(node)[0]) for node in nodes]
    named = [layers.get(key[1], "") if key else "" for key in keys]
    order = list(layers.values())
    if not all(named) or [*dict.fromkeys(named)] != order[: len(set(named))]:
        named = order[: len(nodes)] if len(nodes) <= len(order) else []
    groups: dict[str, tuple[NodeProto, ...]] = {}
    for name, node in zip(named, nodes, strict=False):
        groups[name] = (*groups.get(name, ()), node)
    return groups


def _behind(graph: Graph, product: NodeProto, following: str | None) -> list[NodeProto]:
    """The nodes from a product to what the next one reads, or to the farthest output before a softmax."""
    if following is not None:
        return graph.path(product.output[0], following)
    ways = [graph.path(product.output[0], value.name) for value in graph.model.graph.output]
    ends = [next((i for i, n in enumerate(way) if n.op_type == "Softmax"), len(way)) for way in ways]
    return max((way[:end] for way, end in zip(ways, ends, strict=True)), key=len, default=[])


def _stripped(nodes: Sequence[NodeProto], kinds: frozenset[str]) -> list[NodeProto]:
    """Without the last ones that are of ``kinds``."""
    kept = list(nodes)
    while kept and kept[-1].op_type in kinds:
        kept.pop()
    return kept


def _made(nodes: Sequence[NodeProto], otherwise: str) -> str:
    return str(nodes[-1].output[0]) if nodes else otherwise


def _relu_end(nodes: Sequence[NodeProto], made: str) -> str:
    """What a ReLU makes; where a quantiser does its work, what comes out of the Q/DQ pair."""
    kept = _stripped(nodes, PASSING | MOVING)
    rounded = next((node for node in nodes if node.op_type == "DequantizeLinear"), None)
    return _made(kept or ([rounded] if rounded is not None else []), made)
