"""The layers of a VGG in order, derived from its spec alone: names, positions, shapes. Torch-free.

Everything that walks a VGG (the torch module, the summary, the cutting of outputs) walks this list, so that they
cannot disagree. Names are the paper's and Caffe's: conv3_2, relu3_2, pool3, fc6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from vggdeploy.records import Record
from vggdeploy.spec import ModelSpec

# A layer's place, in the names of its tensors and nodes.
KEY = re.compile(r"(?:^|[./])((?:features|classifier)\.\d+)(?:\.|$)")
Kind = Literal["conv", "batch_norm", "relu", "pool", "linear", "dropout"]


@dataclass(frozen=True)
class Layer:
    """One module: where it stands (``features.5``), what it is, and the shape of one sample of its output.

    A layer with a ``rank`` is two: ``inputs`` → ``rank`` without a bias, then ``rank`` → ``outputs``; of a convolution the
    first is 3×1, the second 1×3. Its place is still one, so that the places after it stay torchvision's; the two are
    ``classifier.0.0`` and ``classifier.0.1``.
    """

    name: str
    kind: Kind
    part: Literal["features", "neck", "classifier"]
    index: int
    inputs: int
    outputs: int
    shape: tuple[int, ...]
    rank: int = 0

    @property
    def key(self) -> str:
        """Its prefix in a torchvision state dict."""
        return f"{self.part}.{self.index}"

    @property
    def parameters(self) -> int:
        """Trainable parameters: weights and biases."""
        if self.kind == "conv":
            return self._weights + self.outputs
        if self.kind == "linear":
            return self._weights + self.outputs
        return 2 * self.outputs if self.kind == "batch_norm" else 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample, of convolutions and matrix products (as torchvision counts GFLOPS)."""
        if self.kind == "conv":
            return self._weights * self.shape[1] * self.shape[2]
        return self._weights if self.kind == "linear" else 0

    @property
    def _weights(self) -> int:
        """Weights of a convolution or a linear layer, without the bias."""
        side = 3 if self.kind == "conv" else 1
        if self.rank:
            return side * self.rank * (self.inputs + self.outputs)
        return side**2 * self.inputs * self.outputs


def layers_of(spec: ModelSpec) -> list[Layer]:
    """Every module of ``features`` and ``classifier``, in the order (and with the indices) of torchvision's VGG.

    Between them a pool of the head, if there is one.
    """
    layers: list[Layer] = []
    channels, size = spec.in_channels, spec.image_size

    def feature(name: str, kind: Kind, outputs: int, rank: int = 0) -> None:
        layers.append(Layer(name, kind, "features", len(layers), channels, outputs, (outputs, size, size), rank))

    for b, block in enumerate(spec.blocks, 1):
        for c, outputs in enumerate(block, 1):
            feature(f"conv{b}_{c}", "conv", outputs, spec.conv_ranks[b - 1][c - 1] if spec.conv_ranks else 0)
            channels = outputs
            if spec.batch_norm:
                feature(f"bn{b}_{c}", "batch_norm", outputs)
            feature(f"relu{b}_{c}", "relu", outputs)
        size //= 2
        feature(f"pool{b}", "pool", channels)

    if spec.head_pool != "none":
        layers.append(Layer(f"{spec.head_pool}pool", "pool", "neck", 0, channels, channels, (channels,)))
    inputs, index = spec.flat_features, 0
    for name, outputs, rank in zip(spec.dense, spec.hidden, spec.ranks, strict=True):
        behind: tuple[tuple[str, Kind], ...] = (("relu", "relu"), ("drop", "dropout"))
        layers.append(Layer(name, "linear", "classifier", index, inputs, outputs, (outputs,), rank))
        for place, (what, kind) in enumerate(behind, index + 1):
            layers.append(Layer(name.replace("fc", what), kind, "classifier", place, outputs, outputs, (outputs,)))
        inputs, index = outputs, index + 3
    if spec.classes:
        layers.append(Layer(spec.last, "linear", "classifier", index, inputs, spec.classes, (spec.classes,)))
    return layers


class LayerRow(Record, frozen=True, kw_only=True):
    """One layer. ``shape`` is that of one sample's output; ``macs`` counts one image. A linear layer with a ``rank`` is
    the product of two matrices."""

    name: str
    kind: str
    key: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    rank: int = 0


class Summary(Record, frozen=True, kw_only=True):
    """What ``vggdeploy summary --json`` prints."""

    schema_version: int = 1
    title: str
    spec: ModelSpec
    layers: tuple[LayerRow, ...]
    parameters: int
    macs: int
    fp32_bytes: int


def summarise(spec: ModelSpec) -> Summary:
    """Every layer of ``spec`` and the totals; ``fp32_bytes`` is the size of the trainable parameters in FP32."""
    rows = tuple(
        LayerRow(name=x.name, kind=x.kind, key=x.key, shape=x.shape, parameters=x.parameters, macs=x.macs, rank=x.rank)
        for x in layers_of(spec)
    )
    parameters = sum(r.parameters for r in rows)
    return Summary(
        title=spec.title,
        spec=spec,
        layers=rows,
        parameters=parameters,
        macs=sum(r.macs for r in rows),
        fp32_bytes=4 * parameters,
    )


def layer_names(spec: ModelSpec) -> dict[str, str]:
    """Prefix in a shipped file → what the layer is called: ``features.8`` → ``conv3_2``.

    Batch norms are folded into the convolutions there, and have no place any more. The last linear layer
    is ``logits``, as its output.
    """
    kept = [layer for layer in layers_of(spec) if layer.kind != "batch_norm"]
    features = [layer.name for layer in kept if layer.part == "features"]
    convolutions = {f"features.{n}": name for n, name in enumerate(features) if name.startswith("conv")}
    dense = {x.key: "logits" if x.name == spec.last else x.name for x in kept if x.kind == "linear"}
    return convolutions | dense


class Named(Protocol):
    """A node of ours, or of the onnx package."""

    name: str
    op_type: str


def layer_name(node: Named, weight: str, layers: dict[str, str], index: int) -> str:
    """The VGG's own name where the weights carry the checkpoint's key, else the node's."""
    key = KEY.search(weight) or KEY.search(node.name)
    return layers.get(key[1], key[1]) if key else node.name or f"{node.op_type} {index}"
