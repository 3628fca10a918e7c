"""Faults of the numbers of a layer: its weights, its bias, their order and how finely they are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from attacks.network import Array, Network
from onnx import TensorProto

Random = np.random.Generator
Plant = Callable[[Network, str, Random], None]


# Weights and biases.


def on_weights(change: Callable[[Array, Random], Array]) -> Plant:
    return lambda net, layer, random: net.set_weight(layer, change(net.weight(layer), random))


def wrong_sign(w: Array, _: Random) -> Array:
    w.reshape(-1)[np.abs(w).argmax()] *= -1
    return w


def low_zeroed(w: Array, _: Random) -> Array:
    return np.where(np.abs(w) < np.quantile(np.abs(w), 0.4), 0, w)


def one_channel_rolled(w: Array, random: Random) -> Array:
    channel = random.integers(len(w))
    w[channel] = np.roll(w[channel], 1, axis=-1)
    return w


def transposed(w: Array, _: Random) -> Array:
    return w.swapaxes(2, 3)


def square_transposed(w: Array, random: Random) -> Array:
    return w.swapaxes(0, 1) if w.shape[0] == w.shape[1] else one_channel_rolled(w, random)


def dead_channel(net: Network, layer: str, _: Random) -> None:
    w, b = net.weight(layer), net.bias(layer)
    channel = int(np.square(w).reshape(len(w), -1).sum(1).argmax())
    w[channel] = 0
    net.set_weight(layer, w)
    if b is not None:
        b[channel] = 0
        net.set_bias(layer, b)


def epsilon(net: Network, layer: str, _: Random) -> None:
    """Batch norm folded with ε = 1e-3 (TensorFlow's) in place of 1e-5 (torch's)."""
    variance, beta = net.norms[layer]
    factor = np.sqrt((variance + 1e-5) / (variance + 1e-3)).astype(np.float32)
    net.set_weight(layer, net.weight(layer) * factor[:, None, None, None])
    bias = net.bias(layer)
    if bias is not None:
        net.set_bias(layer, beta + (bias - beta) * factor)


def bias_dropped(net: Network, layer: str, _: Random) -> None:
    net.set_bias(layer, None)


def on_bias(change: Callable[[Array, Random], Array]) -> Plant:
    def plant(net: Network, layer: str, random: Random) -> None:
        bias = net.bias(layer)
        bias = np.zeros(len(net.weight(layer)), np.float32) if bias is None else bias
        net.set_bias(layer, change(bias, random))

    return plant


def one_logit(b: Array, random: Random) -> Array:
    b[random.integers(len(b))] += 0.02
    return b


def scaled(factor: float) -> Plant:
    def plant(net: Network, layer: str, _: Random) -> None:
        bias = net.bias(layer)
        net.set_weight(layer, net.weight(layer) * np.float32(factor))
        if bias is not None:
            net.set_bias(layer, bias * np.float32(factor))

    return plant


def bits(bits: int) -> Plant:
    """Weights rounded to so many bits, each output channel with its own scale."""

    def plant(net: Network, layer: str, _: Random) -> None:
        w, bias = net.weight(layer), net.bias(layer)
        peak = np.abs(w).max(axis=tuple(range(1, w.ndim)), keepdims=True)
        scale = (np.where(peak > 0, peak, 1) / (2 ** (bits - 1) - 1)).astype(np.float32)
        steps = np.rint(w / scale)
        maker = net.maker(net.products[layer].input[1])
        if maker is None:
            net.set_weight(layer, steps * scale)
            return
        net.set_quantised(layer, steps, scale.reshape(-1))
        if bias is not None:
            net.set_bias(layer, bias)

    return plant


def rounded_activations(net: Network, layer: str, _: Random) -> None:
    """A Q/DQ pair in a graph of floats."""
    relu, kind = net.relu(layer), net.dtype(layer)
    assert relu is not None
    scale, zero = net.constant(kind.type(net.peaks.get(layer, 12.0) / 255)), net.constant(np.uint8(0))
    node = net.tap(relu.output[0])
    node.input[0] = net.before(node, "QuantizeLinear", node.input[0], scale, zero)
    net.replace(node, "DequantizeLinear", scale, zero)


def cast_activations(net: Network, layer: str, _: Random) -> None:
    """Through bfloat16, in a graph of more exact floats."""
    relu, kind = net.relu(layer), net.dtype(layer)
    assert relu is not None
    node = net.tap(relu.output[0])
    node.input[0] = net.before(node, "Cast", node.input[0], to=TensorProto.BFLOAT16)
    net.replace(node, "Cast", to=onnx.helper.np_dtype_to_tensor_dtype(kind))


def truncated(w: Array, _: Random) -> Array:
    """To bfloat16's eight bits, towards zero."""
    return (np.ascontiguousarray(w).view(np.uint32) & 0xFFFF0000).view(np.float32)


# The order of channels and of classes.


def rows(order: Callable[[int, Random], Array]) -> Plant:
    def plant(net: Network, layer: str, random: Random) -> None:
        w, bias = net.weight(layer), net.bias(layer)
        chosen = order(len(w), random)
        net.set_weight(layer, w[chosen])
        if bias is not None:
            net.set_bias(layer, bias[chosen])

    return plant


def two(size: int, random: Random) -> Array:
    order = np.arange(size)
    first, second = random.choice(size, 2, replace=False)
    order[[first, second]] = second, first
    return order


def rolled(size: int, _: Random) -> Array:
    return np.roll(np.arange(size), 1)


def inputs_exchanged(w: Array, random: Random) -> Array:
    return w[:, two(w.shape[1], random)] if w.shape[1] > 1 else w[two(w.shape[0], random)]


def channels_and_readers(net: Network, layer: str, random: Random) -> None:
    """Output channels in another order, and the layer that reads them knows it: no answer changes."""
    order = random.permutation(len(net.weight(layer)))
    rows(lambda *_: order)(net, layer, random)
    reader = list(net.products)[list(net.products).index(layer) + 1]
    w = net.weight(reader)
    w = w.reshape(len(w), len(order), -1)[:, order].reshape(w.shape)  # fc6 reads every position of a channel
    net.set_weight(reader, w)
