"""A VGG's ONNX graph with its layers by name, to read and to change: FP32, FP16, BF16, and INT8 in Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper
from torch import nn

from vggdeploy.bundle import Bundle
from vggdeploy.model.layers import layers_of
from vggdeploy.model.weights import load_model
from vggdeploy.spec import ModelSpec

Array = np.ndarray[Any, Any]
PASSING = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


class Network:
    """Changes ``model`` in place.

    Args:
        spec: the network's, without ranks: of a layer that is a product of two only the last factor is known.
        norms: convolution → (running variance, β) of its batch norm, for faults of the folding.
        peaks: layer → the largest value of its activations, for faults that cut them.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        spec: ModelSpec,
        *,
        norms: Mapping[str, tuple[Array, Array]] | None = None,
        peaks: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.graph, self.spec = model, model.graph, spec
        self.norms, self.peaks = norms or {}, peaks or {}
        del self.graph.value_info[:]  # what a fault changes has other shapes
        layers = [x for x in layers_of(spec) if x.kind in ("conv", "linear")]
        nodes = [n for n in self.graph.node if n.op_type in _PRODUCTS]
        self.products = {"logits" if x.name == spec.last else x.name: n for x, n in zip(layers, nodes, strict=True)}

    # What is there.

    def tensors(self) -> dict[str, onnx.TensorProto]:
        return {t.name: t for t in self.graph.initializer}

    def maker(self, tensor: str) -> NodeProto | None:
        return next((n for n in self.graph.node if tensor in n.output), None)

    def users(self, tensor: str) -> list[NodeProto]:
        return [n for n in self.graph.node if tensor in n.input]

    def made(self, layer: str) -> str:
        """What a product makes, with the bias that is added behind it."""
        node = self.products[layer]
        after = self.users(node.output[0])
        added = node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add"
        return str((after[0] if added else node).output[0])

    def relu(self, layer: str) -> NodeProto | None:
        """The ReLU of ``reluB_I``, ``fc6`` or ``fc7``; None where a quantiser that begins at 0 took it away."""
        return self._behind(self.made(layer.replace("relu", "conv")), "Relu", PASSING)

    def pool(self, layer: str) -> NodeProto:
        """The pool that ends a block."""
        block = int(layer.removeprefix("pool"))
        last = self.made(f"conv{block}_{len(self.spec.blocks[block - 1])}")
        found = self._behind(last, "MaxPool", (*PASSING, "Relu"))
        assert found is not None
        return found

    def _behind(self, tensor: str, kind: str, through: Iterable[str]) -> NodeProto | None:
        while after := {n.op_type: n for n in self.users(tensor)}:
            if kind in after:
                return after[kind]
            passing = next((after[t] for t in through if t in after), None)
            if passing is None:
                return None
            tensor = passing.output[0]
        return None

    def quantiser(self, layer: str) -> NodeProto | None:
        """The node that rounds a ReLU's output to 8 bits; None in a graph of floats."""
        relu = self.relu(layer)
        tensor = relu.output[0] if relu else self.made(layer.replace("relu", "conv"))
        return next((n for n in self.users(tensor) if n.op_type == "QuantizeLinear"), None)

    def dtype(self, layer: str) -> np.dtype[Any]:
        """Of the values that a layer computes with."""
        name = self.products[layer.replace("relu", "conv")].input[1]
        maker, tensors = self.maker(name), self.tensors()
        return numpy_helper.to_array(tensors[maker.input[1] if maker else name]).dtype

    # Weights and biases, as the floats that they stand for.

    def weight(self, layer: str) -> Array:
        """``[out, in]`` or ``[out, in, 3, 3]``, FP32."""
        name = self.products[layer].input[1]
        maker, tensors = self.maker(name), self.tensors()
        if maker is None:
            return numpy_helper.to_array(tensors[name]).astype(np.float32)
        stored, scale = (numpy_helper.to_array(tensors[n]) for n in maker.input[:2])
        return stored.astype(np.float32) * _column(scale, stored.ndim)

    def set_weight(self, layer: str, values: Array) -> None:
        """INT8 weights get the scale that fits them, one for each output channel, and the bias keeps what it stands for."""
        name = self.products[layer].input[1]
        maker = self.maker(name)
        if maker is None:
            self.store(name, values.astype(numpy_helper.to_array(self.tensors()[name]).dtype))
            return
        bias = self.bias(layer)
        peak = np.abs(values).max(axis=tuple(range(1, values.ndim)))
        scale = (np.where(peak > 0, peak, 1) / 127).astype(np.float32)
        self.set_quantised(layer, np.rint(values / _column(scale, values.ndim)), scale)
        if bias is not None:
            self.set_bias(layer, bias)

    def set_quantised(self, layer: str, steps: Array, scale: Array) -> None:
        """Weights of an INT8 layer in steps of ``scale``."""
        maker = self.maker(self.products[layer].input[1])
        assert maker is not None
        self.store(maker.input[0], steps.astype(np.int8))
        self.store(maker.input[1], scale)

    def bias(self, layer: str) -> Array | None:
        """FP32; None where there is none: the exporter leaves a bias of zeros out."""
        node = self.products[layer]
        if len(node.input) < 3:
            return None
        maker, tensors = self.maker(node.input[2]), self.tensors()
        if maker is None:
            return numpy_helper.to_array(tensors[node.input[2]]).astype(np.float32)
        stored, scale = (numpy_helper.to_array(tensors[n]) for n in maker.input[:2])
        return stored.astype(np.float32) * scale

    def set_bias(self, layer: str, values: Array | None) -> None:
        """None takes it away. An INT32 bias is in steps of the input's scale times the weights'."""
        node = self.products[layer]
        if values is None:
            del node.input[2:]
        elif len(node.input) < 3:
            node.input.append(self.constant(values.astype(self.dtype(layer))))
        elif (maker := self.maker(node.input[2])) is None:
            self.store(node.input[2], values.astype(numpy_helper.to_array(self.tensors()[node.input[2]]).dtype))
        else:
            pairs = [self.maker(name) for name in node.input[:2]]
            scales = [numpy_helper.to_array(self.tensors()[p.input[1]]) for p in pairs if p is not None]
            scale = np.broadcast_to(np.asarray(scales[0] * scales[1], np.float32), values.shape)
            self.store(maker.input[0], np.rint(values / scale).astype(np.int32))
            self.store(maker.input[1], scale)

    # Changes.

    def store(self, name: str, values: Array) -> None:
        self.tensors()[name].CopyFrom(numpy_helper.from_array(np.array(values, order="C"), name))

    def constant(self, values: Any) -> str:
        """A new initialiser; its name."""
        name = f"planted_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        return name

    def attribute(self, node: NodeProto, **values: Any) -> None:
        for kept in [a for a in node.attribute if a.name in values]:
            node.attribute.remove(kept)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())

    def before(self, node: NodeProto, kind: str, source: str, *others: str, **attributes: Any) -> str:
        """A new node in front of ``node``; the tensor that it makes."""
        made = f"planted_{kind}_{len(self.graph.node)}"
        place = next(i for i, n in enumerate(self.graph.node) if n is node or n == node)
        self.graph.node.insert(place, helper.make_node(kind, [source, *others], [made], name=made, **attributes))
        return made

    def replace(self, node: NodeProto, kind: str, *others: str, **attributes: Any) -> None:
        """Another operation in its place, on the same data."""
        node.op_type = kind
        del node.input[1:], node.attribute[:]
        node.input.extend(others)
        self.attribute(node, **attributes)

    def tap(self, tensor: str) -> NodeProto:
        """An identity between a tensor and all that read it, the graph's outputs too: to be replaced."""
        maker = self.maker(tensor)
        place = 0 if maker is None else next(i for i, n in enumerate(self.graph.node) if n == maker) + 1
        if maker is not None and any(value.name == tensor for value in self.graph.output):
            source, inner = f"{tensor}_raw", tensor
            maker.output[list(maker.output).index(tensor)] = source
        else:
            source, inner = tensor, f"{tensor}_tapped"
            for node in self.users(tensor):
                node.input[list(node.input).index(tensor)] = inner
        self.graph.node.insert(place, helper.make_node("Identity", [source], [inner], name=f"{tensor}_tap"))
        return self.graph.node[place]


def _column(scale: Array, dimensions: int) -> Array:
    return scale.reshape(-1, *[1] * (dimensions - 1)) if scale.ndim else scale


def known(bundle: Bundle) -> dict[str, Any]:
    """The ``norms`` and ``peaks`` of `Network`, from a bundle's checkpoint, and from its FP32 graph on the golden images."""
    model, manifest = load_model(bundle.root / "checkpoint"), bundle.manifest
    convs = [x.name for x in layers_of(manifest.spec) if x.kind == "conv"]
    found = [m for m in model.features if isinstance(m, nn.BatchNorm2d)]
    norms = {
        name: (m.running_var.numpy(), m.bias.detach().numpy())  # type: ignore[union-attr]
        for name, m in zip(convs, found, strict=False)
    }
    net = Network(onnx.load(bundle.path(manifest.variant("onnx-fp32").path)), manifest.spec)
    relus = {name: net.relu(name) for name in [*(c.replace("conv", "relu") for c in convs), "fc6", "fc7"]}
    taps = {name: node.output[0] for name, node in relus.items() if node is not None}
    net.graph.output.extend(onnx.ValueInfoProto(name=t) for t in taps.values())
    session = ort.InferenceSession(net.model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(list(taps.values()), bundle.golden()[0])
    return {"norms": norms, "peaks": {name: float(y.max()) for name, y in zip(taps, outputs, strict=True)}}
