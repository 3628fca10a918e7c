"""A tiny network of the kinds of layers a VGG has, with its answer by NumPy: what a backend is tried out with.

It is written as ONNX without the onnx package, so that a machine without it can be tried, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggdeploy.runtime.base import Source
from vggdeploy.runtime.onnx_bytes import FLOAT, model_bytes, node
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Device, TensorSpec

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
    device: Device, *, path: Path = Path("tiny.onnx"), sha256: str = "", batch: BatchRange | None = None
) -> Source:
    """What a session of the tiny network is opened with."""
    return Source(
        path=path,
        sha256=sha256,
        spec=ModelSpec.named("vgg11", image_size=32),  # a stand-in: no session reads it of a graph
        preprocess=PreprocessSpec(),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        batch=batch or BatchRange(1, 2, 4),
        device=device,
    )
