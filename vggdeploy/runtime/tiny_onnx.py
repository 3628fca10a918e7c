"""A small ONNX file, written field by field where the onnx package is not installed.

The wire format is https://protobuf.dev/programming-guides/encoding, the fields are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.runtime.base import Source
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, TensorSpec

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


SIZE, CHANNELS, FILTERS, CLASSES = 8, 3, 16, 4
INPUT = TensorSpec("image", "uint8", ("N", SIZE, SIZE, CHANNELS))
OUTPUT = TensorSpec("logits", "float32", ("N", CLASSES))

Weights = dict[str, NDArray[np.float32]]


def weights(seed: int = 0) -> Weights:
    """Random weights of a size that keeps the answers near one."""
    random = np.random.default_rng(seed)
    flat = FILTERS * (SIZE // 2) ** 2

    def normal(*shape: int, fan: int) -> NDArray[np.float32]:
        return np.asarray(random.standard_normal(shape) / np.sqrt(fan), np.float32)

    return {
        "conv_w": normal(FILTERS, CHANNELS, 3, 3, fan=CHANNELS * 9),
        "conv_b": normal(FILTERS, fan=FILTERS),
        "fc_w": normal(CLASSES, flat, fan=flat),
        "fc_b": normal(CLASSES, fan=CLASSES),
    }


def images(batch: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, SIZE, SIZE, CHANNELS), dtype=np.uint8)


def reference(image: NDArray[np.uint8], w: Weights) -> NDArray[np.float32]:
    """``logits``, in FP64: scale to 0–1, 3×3 convolution, ReLU, 2×2 max pooling, linear layer."""
    x = np.pad(image.transpose(0, 3, 1, 2) / 255.0, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    y = np.einsum("ncijkl,fckl->nfij", windows, w["conv_w"].astype(np.float64)) + w["conv_b"][:, None, None]
    y = np.maximum(y, 0).reshape(len(y), FILTERS, SIZE // 2, 2, SIZE // 2, 2).max(axis=(3, 5))
    logits = y.reshape(len(y), -1) @ w["fc_w"].astype(np.float64).T + w["fc_b"]
    return np.asarray(logits, np.float32)


def onnx_bytes(w: Weights) -> bytes:
    """The same network as an ONNX file with a dynamic batch. A uint8 input is cast first, as TensorRT demands."""
    nodes = [
        node("Cast", ["image"], "x0", to=FLOAT),
        node("Transpose", ["x0"], "x1", perm=(0, 3, 1, 2)),
        node("Mul", ["x1", "scale"], "x2"),
        node("Conv", ["x2", "conv_w", "conv_b"], "x3", kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
        node("Relu", ["x3"], "x4"),
        node("MaxPool", ["x4"], "x5", kernel_shape=(2, 2), strides=(2, 2)),
        node("Flatten", ["x5"], "x6"),
        node("Gemm", ["x6", "fc_w", "fc_b"], "logits", transB=1),
    ]
    return model_bytes("tiny", nodes, {**w, "scale": np.asarray(1 / 255, np.float32)}, [INPUT], [OUTPUT])


def source(
    device: Device, *, file: HashedFile = HashedFile(Path("tiny.onnx"), ""), batch: BatchRange | None = None
) -> Source:
    """What a session of the tiny network is opened with."""
    return Source(
        file=file,
        spec=ModelSpec.named("vgg11", image_size=32),  # a stand-in: no session reads it of a graph
        preprocess=PreprocessSpec(),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        batch=batch or BatchRange(1, 2, 4),
        device=device,
    )
