"""What a Q/DQ graph says, computed exactly: the reference for every INT8 kernel, whatever the CPU.

Products of dequantised integers are sums of integers below 2⁵³, which FP64 holds without rounding, in any order. What stands
between them is computed in FP32 as the graph says, and a sum is brought to its next scale by one factor in FP32, as ONNX
Runtime and OpenVINO do: where a value lies in the middle of two codes, one code moves the whole network. Operators are those
of https://onnx.ai/onnx/operators as the exporter and the quantiser here write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vggdeploy.errors import BundleError
from vggdeploy.model.formats.graph import sorted_nodes

Array = NDArray[Any]
Attributes = Mapping[str, Any]
# An operator of one output: its inputs (None where one is left out) and attributes, to its value.
Operator = Callable[..., Array]


class IntegerReference:
    """An ONNX graph in exact integers. ``run`` takes graph input name → array, and gives output name → array."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._nodes = [(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
                       for node in sorted_nodes(graph.node)]  # fmt: skip
        self._constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self._outputs = [value.name for value in graph.output]
        unknown = sorted(
            {node.op_type for node, _ in self._nodes} - {*_OPERATORS, *_PRODUCTS, "QuantizeLinear", "DequantizeLinear"}
        )
        if unknown:
            raise BundleError(
                f"the exact reference does not know the operators {', '.join(unknown)}",
                "give it a graph that vggdeploy wrote",
            )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        values: dict[str, Any] = {**self._constants, **feeds, "": None}
        scaled: dict[str, Scaled] = {}
        for node, attributes in self._nodes:
            given, name, first = [values[name] for name in node.input], node.output[0], scaled.get(node.input[0])
            if node.op_type == "DequantizeLinear":
                scaled[name] = _dequantised(*given, **attributes)
            elif node.op_type in _PRODUCTS:
                scaled[name] = _product(node, given, scaled, attributes)
            elif node.op_type == "Relu" and first is not None:
                scaled[name] = Scaled(np.maximum(first.integers, 0), first.scale)
            elif node.op_type == "QuantizeLinear":
                values[name] = _quantised(given[0] if first is None else first, *given[1:], **attributes)
            else:
                values[name] = _OPERATORS[node.op_type](*given, **attributes)
            if name in scaled:
                values[name] = scaled[name].value
        return {name: np.asarray(values[name]) for name in self._outputs}


class Scaled(NamedTuple):
    """A tensor as integers (in FP64, which has all of them below 2⁵³) and the FP32 scale that they are multiplied with."""

    integers: Array
    scale: NDArray[np.float32]

    @property
    def value(self) -> NDArray[np.float32]:
        return np.asarray(self.integers * self.scale, np.float32)


def _dequantised(x: Array, scale: Array, zero: Array | None = None, *, axis: int = 1) -> Scaled:
    zero = np.zeros((), x.dtype) if zero is None else zero
    return Scaled(x.astype(np.float64) - _along(zero, axis, x.ndim), _along(scale, axis, x.ndim))


def _along(values: Array, axis: int, ndim: int) -> Array:
    """One number, or those of ``axis``."""
    return values.reshape([-1 if n == axis % ndim else 1 for n in range(ndim)] if values.size > 1 else ())


def _quantised(x: Array | Scaled, scale: Array, zero: Array | None = None, *, axis: int = 1) -> Array:
    """Rounded to the nearest code, ties to the even one. A sum of integers is multiplied once, by the quotient of the scales,
    as the kernels of both libraries do."""
    zero = np.zeros((), np.uint8) if zero is None else zero
    if isinstance(x, Scaled):
        steps = x.integers.astype(np.float32) * (x.scale / _along(scale, axis, x.integers.ndim))
    else:
        steps = x / _along(scale, axis, x.ndim)
    codes = np.rint(steps) + _along(zero, axis, steps.ndim)
    return np.asarray(np.clip(codes, np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max), zero.dtype)


def _product(
    node: onnx.NodeProto, given: Sequence[Any], scaled: Mapping[str, Scaled], attributes: Attributes
) -> Scaled:
    """In integers where one scale belongs to the data and at most one to each output; else in FP64, with the scale 1."""
    apply, bias = _PRODUCTS[node.op_type], given[2] if len(given) > 2 else None
    x, w = (scaled.get(name) for name in node.input[:2])
    outputs = 0 if node.op_type == "Conv" or attributes.get("transB") else 1
    if x is None or w is None or x.scale.size != 1 or w.scale.size not in (1, *w.scale.shape[outputs : outputs + 1]):
        x, w = (Scaled(np.asarray(array, np.float64), np.ones((), np.float32)) for array in given[:2])
    y = apply(x.integers, w.integers, **attributes)
    channels = [1, -1, *[1] * (y.ndim - 2)]
    scale = np.reshape(x.scale * w.scale, channels)
    if bias is None:
        return Scaled(y, scale)
    added = scaled.get(node.input[2])
    if added is None or not np.allclose(added.scale.reshape(-1), scale.reshape(-1), rtol=1e-5, atol=0):
        return Scaled(y + np.reshape(bias, channels) / scale.astype(np.float64), scale)
    return Scaled(y + added.integers.reshape(channels), scale)


def _convolution(x: Array, w: Array, *, group: int = 1, **attributes: Any) -> Array:
    """A convolution as one matrix product for each image and group."""
    windows = _windows(x, w.shape[2:], 0.0, **attributes)
    n, channels, height, width = windows.shape[:4]
    rows = w.reshape(group, len(w) // group, -1)
    columns = windows.reshape(n, group, channels // group, height * width, -1)
    parts = [
        [r @ c.transpose(0, 2, 1).reshape(r.shape[1], -1) for r, c in zip(rows, image, strict=True)]
        for image in columns
    ]
    return np.asarray(parts).reshape(n, len(w), height, width)


def _windows(
    x: Array,
    kernel: Sequence[int],
    fill: float,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    auto_pad: bytes = b"NOTSET",
    **_: Any,
) -> Array:
    """``[N, C, H, W, kernel height, kernel width]``."""
    if auto_pad not in (b"NOTSET", b"VALID"):
        raise BundleError(f"the exact reference does not know the padding {auto_pad.decode()}", "write the pads out")
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=fill)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    found = sliding_window_view(padded, spans, axis=(2, 3))
    return found[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _gemm(a: Array, b: Array, *, transA: int = 0, transB: int = 0, alpha: float = 1.0, beta: float = 1.0) -> Array:
    if alpha != 1.0 or beta != 1.0:
        raise BundleError(f"the exact reference knows no Gemm with alpha {alpha:g} and beta {beta:g}", "fold them in")
    return (a.T if transA else a) @ (b.T if transB else b)


def _max_pool(x: Array, *, kernel_shape: Sequence[int], ceil_mode: int = 0, **attributes: Any) -> Array:
    return np.asarray(_windows(_whole(x, ceil_mode), kernel_shape, -np.inf, **attributes).max(axis=(4, 5)))


def _average_pool(
    x: Array, *, kernel_shape: Sequence[int], ceil_mode: int = 0, count_include_pad: int = 0, **attributes: Any
) -> Array:
    total = _windows(_whole(x, ceil_mode), kernel_shape, 0.0, **attributes).sum(axis=(4, 5))
    ones = np.ones_like(x, dtype=np.float64)
    counted = (
        np.prod(kernel_shape) if count_include_pad else _windows(ones, kernel_shape, 0.0, **attributes).sum(axis=(4, 5))
    )
    return np.asarray(total / counted)


def _whole(x: Array, ceil_mode: int) -> Array:
    if ceil_mode:
        raise BundleError("the exact reference knows no pool with ceil_mode", "export the graph again")
    return x.astype(np.float64)


def _reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    return x.reshape([x.shape[i] if n == 0 and not allowzero else int(n) for i, n in enumerate(shape)])


def _softmax(x: Array, *, axis: int = -1) -> Array:
    shifted = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


def _cast(x: Array, *, to: int, **_: Any) -> Array:
    kind = onnx.helper.tensor_dtype_to_np_dtype(to)
    return x.astype(np.float32 if kind.kind == "f" else kind)


_PRODUCTS: dict[str, Operator] = {"Conv": _convolution, "Gemm": _gemm, "MatMul": lambda a, b: a @ b}
_OPERATORS: dict[str, Operator] = {
    "Cast": _cast,
    "Identity": lambda x: x,
    "Transpose": lambda x, *, perm: x.transpose(perm),
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Relu": lambda x: np.maximum(x, 0),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "Flatten": lambda x, *, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "Reshape": _reshape,
    "Softmax": _softmax,
}
