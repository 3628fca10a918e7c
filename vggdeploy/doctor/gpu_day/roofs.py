"""The roofs: matrix products by cuBLAS and PyTorch, and the convolutions of VGG-16, each alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vggdeploy.bench.gpu.roof import SIDE, measure_roof
from vggdeploy.doctor.gpu_day.timing import timed
from vggdeploy.errors import IncompatibleError
from vggdeploy.model.layers import layers_of
from vggdeploy.records.gpu_day import Check, OperationRate
from vggdeploy.runtime.exact import exact_fp32
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Device, Precision

_BATCH = 64
_SECONDS = 0.3
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def roofs() -> Iterator[OperationRate | Check]:
    for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
        try:
            roof = measure_roof(Device("cuda"), precision)
        except IncompatibleError as error:
            yield Check(what=f"cuBLAS, {precision}", outcome="not here", reason=error.cause)
            continue
        milliseconds = 2 * roof.side**3 / roof.tera_ops / 1e9
        yield OperationRate(
            operation="matrix product",
            by="cuBLAS",
            precision=precision,
            shape=f"{roof.side}³",
            milliseconds=milliseconds,
            tera_ops=roof.tera_ops,
        )
    for name in DTYPES:
        yield _product(name)
    for name, (inputs, outputs, side) in itertools.product(DTYPES, convolutions()):
        yield _convolution(name, inputs, outputs, side)


def convolutions() -> list[tuple[int, int, int]]:
    """The different convolutions of VGG-16 at 224 px: input channels, output channels, side."""
    spec, side, found = ModelSpec.named("vgg16"), 224, dict[tuple[int, int, int], None]()
    for layer in layers_of(spec):
        if layer.kind == "conv":
            found[layer.inputs, layer.outputs, side] = None
        elif layer.kind == "pool":
            side //= 2
    return list(found)


def in_precision(name: str, call: Callable[[], object]) -> Callable[[], object]:
    """``call`` with FP32 work exact (``fp32``) or in TF32 (``tf32``)."""

    def exactly() -> object:
        with exact_fp32(torch):
            return call()

    def loosely() -> object:
        backends: Any = torch.backends  # whose types lack these
        backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"
        backends.cuda.matmul.fp32_precision = "tf32"
        return call()

    return {"fp32": exactly, "tf32": loosely}.get(name, call)


def _product(name: str) -> OperationRate:
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=DTYPES[name]) for _ in range(2))
    return _rate("matrix product", name, f"{SIDE}³", 2 * SIDE**3, lambda: a @ b)


def _convolution(name: str, inputs: int, outputs: int, side: int) -> OperationRate:
    torch.backends.cudnn.benchmark = True
    layout = torch.contiguous_format if name == "fp32" else torch.channels_last
    x, w = (
        torch.randn(shape, device="cuda", dtype=DTYPES[name]).to(memory_format=layout)
        for shape in ((_BATCH, inputs, side, side), (outputs, inputs, 3, 3))
    )
    operations = 2 * 9 * _BATCH * inputs * outputs * side * side
    shape = f"{inputs}→{outputs}, {side}×{side}, batch {_BATCH}"
    return _rate("convolution", name, shape, operations, lambda: torch.nn.functional.conv2d(x, w, padding=1))


def _rate(operation: str, name: str, shape: str, operations: int, call: Callable[[], object]) -> OperationRate:
    with torch.inference_mode():
        found = timed(in_precision(name, call), torch.cuda.synchronize, _SECONDS)
    return OperationRate(
        operation=operation,
        by="PyTorch",
        precision=name,
        shape=shape,
        milliseconds=1e3 * found.flow,
        tera_ops=operations / found.flow / 1e12,
    )
