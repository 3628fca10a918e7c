"""Faults of one layer of an ONNX file, by name: what a converter, a quantiser or a careless edit gets wrong.

`FAULTS` has them; `places` says at which layers one can be planted, and `planted` plants it in a copy of a graph.
`BUNDLE_FAULTS` are those of a bundle as a whole. `HARMLESS` are changes that no answer shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from attacks.network import Array, Network
from attacks.planting import rewrite_checkpoint, rewrite_manifest, swap_labels
from attacks.weight_faults import (
    Plant,
    Random,
    bias_dropped,
    bits,
    cast_activations,
    channels_and_readers,
    dead_channel,
    epsilon,
    inputs_exchanged,
    low_zeroed,
    on_bias,
    on_weights,
    one_channel_rolled,
    one_logit,
    rolled,
    rounded_activations,
    rows,
    scaled,
    square_transposed,
    transposed,
    truncated,
    two,
    wrong_sign,
)
from onnx import TensorProto

from vggdeploy.model.layers import layers_of
from vggdeploy.spec import ModelSpec

# Where a fault can stand.
PREPROCESS, CONV, PRODUCT, ACTIVATION, POOL = "preprocess", "conv", "product", "activation", "pool"
FC6, HIDDEN, LOGITS = "fc6", "hidden", "logits"


@dataclass(frozen=True)
class Fault:
    """
    Attributes:
        kind: one of the twelve of `KINDS`, or what else is wrong.
        where: which layers it can be planted in; see `places`.
        floats: whether it can be planted in a graph of floats. ``int8``: in Q/DQ pairs.
        rgb: only in a network of three input channels. ``norms``: only where batch norms are known; see `Network`.
        always: whether any batch of images shows it.
    """

    name: str
    kind: str
    where: str
    plant: Plant
    floats: bool = True
    int8: bool = True
    rgb: bool = False
    norms: bool = False
    always: bool = True


KINDS = (
    *("weights", "bias", "padding", "stride", "activation", "pool", "scale", "channels", "classes", "precision"),
    *("clipping", "preprocessing"),
)


def places(fault: Fault, spec: ModelSpec) -> list[str]:
    """The layers at which ``fault`` can be planted, by the names that ``verify --layers`` has for them."""
    layers = layers_of(spec)
    convs = [x.name for x in layers if x.kind == "conv"]
    dense = ["fc6", "fc7", "logits"]
    relus = [name.replace("conv", "relu") for name in convs]
    found = {
        PREPROCESS: ["preprocess"] if not fault.rgb or spec.in_channels == 3 else [],
        CONV: convs,
        ACTIVATION: [*relus, "fc6", "fc7"],
        POOL: [x.name for x in layers if x.kind == "pool"],
        PRODUCT: [*convs, *dense],
        # With one position there is one order.
        FC6: ["fc6"] if spec.image_size > spec.stride else [],
        HIDDEN: ["fc6", "fc7"],
        LOGITS: ["logits"],
    }
    return found[fault.where]


def planted(
    model: onnx.ModelProto, spec: ModelSpec, fault: Fault, layer: str, *, seed: int = 0, **known: Any
) -> onnx.ModelProto:
    """A copy of ``model`` with ``fault`` at ``layer``; ``known`` as for `Network`.

    Raises:
        LookupError: it cannot stand there, such as a bias dropped that is not there.
    """
    changed = copy.deepcopy(model)
    net = Network(changed, spec, **known)
    before = changed.SerializeToString(deterministic=True)
    fault.plant(net, layer, np.random.default_rng(seed))
    if changed.SerializeToString(deterministic=True) == before:
        raise LookupError(f"{fault.name} changes nothing at {layer}")
    return changed


# What a layer computes.


def _attribute(**values: Any) -> Plant:
    return lambda net, layer, _: net.attribute(net.products[layer], **values)


def _on_pool(kind: str, **values: Any) -> Plant:
    def plant(net: Network, layer: str, _: Random) -> None:
        node = net.pool(layer)
        if kind == "AveragePool":
            net.replace(node, kind, kernel_shape=[2, 2], strides=[2, 2])
        net.attribute(node, **values)

    return plant


def _leaky(alpha: float) -> Plant:
    """1 for no ReLU at all. A quantiser that begins at 0 is given the room below."""

    def plant(net: Network, layer: str, _: Random) -> None:
        relu, quantiser = net.relu(layer), net.quantiser(layer)
        if relu is not None:
            net.replace(
                relu, *(("Identity",) if alpha == 1 else ("LeakyRelu",)), **({} if alpha == 1 else {"alpha": alpha})
            )
        elif alpha < 1:
            net.replace(net.tap(net.made(layer.replace("relu", "conv"))), "LeakyRelu", alpha=alpha)
        if quantiser is not None:
            zero = onnx.numpy_helper.to_array(net.tensors()[quantiser.input[2]])
            if zero.dtype == np.uint8 and zero == 0:
                scale = onnx.numpy_helper.to_array(net.tensors()[quantiser.input[1]])
                net.store(quantiser.input[1], np.asarray(scale * (1 + alpha), np.float32))
                net.store(quantiser.input[2], np.asarray(np.ceil(255 * alpha / (1 + alpha)), np.uint8))

    return plant


def _clipped(limit: Callable[[float], float]) -> Plant:
    """Activations cut at a limit: by a Clip in place of the ReLU, or by the range of a quantiser."""

    def plant(net: Network, layer: str, _: Random) -> None:
        relu, quantiser, kind = net.relu(layer), net.quantiser(layer), net.dtype(layer)
        peak = net.peaks.get(layer, 12.0)
        top = limit(peak)
        if top >= peak:
            return  # nothing is cut
        if quantiser is not None:
            stored = net.tensors()
            zero = onnx.numpy_helper.to_array(stored[quantiser.input[2]])
            scale = onnx.numpy_helper.to_array(stored[quantiser.input[1]])
            levels = (255 if zero.dtype == np.uint8 else 127) - int(zero)
            net.store(quantiser.input[1], np.asarray(min(float(scale), top / levels), np.float32))
        elif relu is not None:
            net.replace(relu, "Clip", net.constant(kind.type(0)), net.constant(kind.type(top)))

    return plant


def _multiplied(factor: float) -> Plant:
    """By a node behind the product."""

    def plant(net: Network, layer: str, _: Random) -> None:
        kind = net.dtype(layer)
        net.replace(net.tap(net.made(layer)), "Mul", net.constant(kind.type(factor)))

    return plant


def _height_width_channels(net: Network, layer: str, _: Random) -> None:
    """Flattened as TensorFlow does."""
    node = net.products[layer]
    tensor = node.input[0]
    while (maker := net.maker(tensor)) is not None and maker.op_type != "Reshape":
        tensor = maker.input[0]
    assert maker is not None
    maker.input[0] = net.before(maker, "Transpose", maker.input[0], perm=[0, 2, 3, 1])


def _dropout(net: Network, layer: str, _: Random) -> None:
    """Half of the activations, drawn anew in each call."""
    relu = net.relu(layer)
    tensor = relu.output[0] if relu else net.made(layer)
    node, kind = net.tap(tensor), net.dtype(layer)
    source = node.input[0]
    drawn = net.before(node, "RandomUniformLike", source, dtype=TensorProto.FLOAT)
    kept = net.before(node, "Greater", drawn, net.constant(np.float32(0.5)))
    mask = net.before(node, "Cast", kept, to=onnx.helper.np_dtype_to_tensor_dtype(kind))
    doubled = net.before(node, "Mul", mask, net.constant(kind.type(2)))
    net.replace(node, "Mul", doubled)


# Preprocessing.


def _shift(change: Callable[[Array], Array]) -> Plant:
    return lambda net, *_: net.store("shift", change(onnx.numpy_helper.to_array(net.tensors()["shift"])))


def _std(factor: float) -> Plant:
    """Of the graph's pixel · scale + shift both have the std below them."""

    def plant(net: Network, *_: Any) -> None:
        for name in ("scale", "shift"):
            net.store(name, (onnx.numpy_helper.to_array(net.tensors()[name]) / factor).astype(np.float32))

    return plant


def _reversed_channels(net: Network, *_: Any) -> None:
    image = net.graph.input[0].name
    net.replace(net.tap(image), "Gather", net.constant(np.array([2, 1, 0], np.int64)), axis=3)


# Right for most batches or images, and wrong for some.


def _at_batches(wrong: Callable[[Network, onnx.NodeProto, str], str]) -> Plant:
    """Class scores with the other sign where ``wrong`` says so of the batch: its arguments are the graph, the node to stand
    before and the tensor that holds the size."""

    def plant(net: Network, layer: str, _: Random) -> None:
        node, kind = net.tap(net.made(layer)), net.dtype(layer)
        shape = net.before(node, "Shape", net.graph.input[0].name)
        size = net.before(node, "Gather", shape, net.constant(np.int64(0)), axis=0)
        mask = net.before(node, "Cast", wrong(net, node, size), to=onnx.helper.np_dtype_to_tensor_dtype(kind))
        twice = net.before(node, "Mul", mask, net.constant(kind.type(-2)))
        net.replace(node, "Mul", net.before(node, "Add", twice, net.constant(kind.type(1))))

    return plant


def _compared(kind: str, size: int) -> Callable[[Network, onnx.NodeProto, str], str]:
    return lambda net, node, tensor: net.before(node, kind, tensor, net.constant(np.int64(size)))


def _neither(net: Network, node: onnx.NodeProto, tensor: str) -> str:
    both = [_compared("Equal", size)(net, node, tensor) for size in (7, 8)]
    return net.before(node, "Not", net.before(node, "Or", both[0], both[1]))


def _nan_for_white(net: Network, layer: str, _: Random) -> None:
    """An image whose darkest value is 255 makes NaN, any other adds 0."""
    node, kind = net.tap(net.made(layer)), net.dtype(layer)
    pixels = net.before(node, "Cast", net.graph.input[0].name, to=TensorProto.FLOAT)
    darkest = net.before(node, "ReduceMin", pixels, net.constant(np.array([1, 2, 3], np.int64)), keepdims=0)
    column = net.before(node, "Unsqueeze", darkest, net.constant(np.array([1], np.int64)))
    white = net.before(node, "Equal", column, net.constant(np.float32(255)))
    added = net.before(node, "Where", white, net.constant(kind.type(np.nan)), net.constant(kind.type(0)))
    net.replace(node, "Add", added)


_ALL = [
    Fault("one weight has the wrong sign", "weights", PRODUCT, on_weights(wrong_sign)),
    Fault("kernels transposed", "weights", CONV, on_weights(transposed)),
    Fault("inputs and outputs exchanged", "weights", PRODUCT, on_weights(square_transposed)),
    Fault("small weights are zero", "weights", PRODUCT, on_weights(low_zeroed)),
    Fault("one channel is dead", "weights", PRODUCT, dead_channel),
    Fault("one channel is shifted", "weights", PRODUCT, on_weights(one_channel_rolled)),
    Fault("batch norm folded with another epsilon", "weights", CONV, epsilon, norms=True),
    Fault("bias dropped", "bias", PRODUCT, bias_dropped),
    Fault("bias doubled", "bias", PRODUCT, on_bias(lambda b, _: 2 * b)),
    Fault("one logit 0.02 higher", "bias", LOGITS, on_bias(one_logit)),
    Fault("all logits 0.02 higher", "bias", LOGITS, on_bias(lambda b, _: b + np.float32(0.02))),
    Fault("no padding", "padding", CONV, _attribute(pads=[0, 0, 0, 0])),
    Fault("padding on one side", "padding", CONV, _attribute(pads=[0, 0, 2, 2])),
    Fault("stride 2", "stride", CONV, _attribute(strides=[2, 2])),
    Fault("pool with stride 1", "stride", POOL, _on_pool("MaxPool", strides=[1, 1])),
    Fault("dilation 2", "stride", CONV, _attribute(dilations=[2, 2], pads=[2, 2, 2, 2])),
    Fault("LeakyReLU(0.001) for ReLU", "activation", ACTIVATION, _leaky(0.001)),
    Fault("LeakyReLU(0.01) for ReLU", "activation", ACTIVATION, _leaky(0.01)),
    Fault("LeakyReLU(0.1) for ReLU", "activation", ACTIVATION, _leaky(0.1)),
    Fault("no ReLU", "activation", ACTIVATION, _leaky(1)),
    Fault("average pool for max pool", "pool", POOL, _on_pool("AveragePool")),
    Fault("3×3 pool with ceil_mode", "pool", POOL, _on_pool("MaxPool", kernel_shape=[3, 3], ceil_mode=1)),
    Fault("weights and bias × 1.01", "scale", PRODUCT, scaled(1.01)),
    Fault("weights and bias × 1.1", "scale", PRODUCT, scaled(1.1)),
    Fault("outputs × 1.01", "scale", PRODUCT, _multiplied(1.01)),
    Fault("two output channels exchanged", "channels", CONV, rows(two)),
    Fault("output channels in another order", "channels", CONV, rows(rolled)),
    Fault("two input channels exchanged", "channels", PRODUCT, on_weights(inputs_exchanged)),
    Fault("two classes exchanged", "classes", LOGITS, rows(two)),
    Fault("classes in another order", "classes", LOGITS, rows(rolled)),
    Fault("weights in 6 bits", "precision", PRODUCT, bits(6)),
    Fault("weights in 4 bits", "precision", PRODUCT, bits(4)),
    # INT8 weights are coarser than bfloat16's anyway.
    Fault("weights truncated to bfloat16", "precision", PRODUCT, on_weights(truncated), int8=False),
    Fault("activations in 8 bits", "precision", ACTIVATION, rounded_activations, int8=False),
    Fault("activations in bfloat16", "precision", ACTIVATION, cast_activations, int8=False),
    Fault("clipped at 6", "clipping", ACTIVATION, _clipped(lambda _: 6.0)),
    Fault("clipped at half of the largest", "clipping", ACTIVATION, _clipped(lambda peak: peak / 2)),
    Fault("mean 1 % off", "preprocessing", PREPROCESS, _shift(lambda s: s * np.float32(1.01))),
    Fault("mean 5 % off", "preprocessing", PREPROCESS, _shift(lambda s: s * np.float32(1.05))),
    Fault("no mean", "preprocessing", PREPROCESS, _shift(lambda s: s * np.float32(0))),
    Fault("std 5 % off", "preprocessing", PREPROCESS, _std(1.05)),
    Fault("BGR for RGB", "preprocessing", PREPROCESS, _reversed_channels, rgb=True),
    Fault("flattened as height, width, channels", "flatten", FC6, _height_width_channels),
    Fault("dropout left in", "random", HIDDEN, _dropout),
    Fault("wrong at batch 1", "batch", LOGITS, _at_batches(_compared("Equal", 1)), always=False),
    Fault("wrong above batch 8", "batch", LOGITS, _at_batches(_compared("Greater", 8)), always=False),
    Fault("right only at batches 7 and 8", "batch", LOGITS, _at_batches(_neither), always=False),
    Fault("NaN for an all-white image", "inputs", LOGITS, _nan_for_white, always=False),
]
FAULTS = {fault.name: fault for fault in _ALL}
HARMLESS = {
    fault.name: fault
    for fault in (Fault("channels in another order, and their readers know", "channels", CONV, channels_and_readers),)
}


def _preprocess(**values: Any) -> Callable[[Any], Any]:
    """A manifest or a checkpoint with other preprocessing."""
    return lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, **values))


def _in_both(root: Path, change: Callable[[Any], Any]) -> None:
    rewrite_manifest(root, change)
    rewrite_checkpoint(root, change)


def _darker(m: Any) -> Any:
    return _preprocess(mean=tuple(0.95 * x for x in m.preprocess.mean))(m)


BUNDLE_FAULTS: dict[str, Callable[[Path], None]] = {
    "another resize filter in the manifest": lambda root: rewrite_manifest(root, _preprocess(interpolation="nearest")),
    "another resize filter in manifest and checkpoint": lambda root: _in_both(
        root, _preprocess(interpolation="nearest")
    ),
    "mean 5 % off in the manifest": lambda root: rewrite_manifest(root, _darker),
    "mean 5 % off in manifest and checkpoint": lambda root: _in_both(root, _darker),
    "two labels exchanged in the manifest": lambda root: rewrite_manifest(root, swap_labels),
}
