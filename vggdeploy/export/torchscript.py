"""TorchScript: the traced graph with its weights in one file, for PyTorch in Python and libtorch in C++."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from vggdeploy.bundle import PrecisionProof
from vggdeploy.errors import BuildError, first_line
from vggdeploy.model.deployable import Deployable, example_input
from vggdeploy.runtime.exact import exact_fp32
from vggdeploy.types import TensorSpec

_TYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


def export_torchscript(module: Deployable, path: Path, *, image: TensorSpec) -> PrecisionProof:
    """Write ``module`` (batch norm already folded, in evaluation mode) as TorchScript, with dynamic batch.

    Tracing is exact here: a VGG has no branch that depends on its data. But a trace keeps as constants what PyTorch allowed
    a convolution at that moment, and by default that is TF32: on a GPU such a file would stay inexact, whatever is set
    there.

    Raises:
        BuildError: the tracer refused the model.
    """
    try:
        with torch.inference_mode(), exact_fp32(torch), warnings.catch_warnings():
            # torch.jit is deprecated since 2.14 and still what libtorch in C++ loads.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, example_input(image, samples=2), check_trace=False)
            # As the image comes out of the preprocessing: else every call reorders every kernel.
            traced.to(memory_format=torch.channels_last)
            _save(traced, path)
    except (RuntimeError, ValueError) as error:
        cause = f"the model cannot be exported to TorchScript: {first_line(error)}"
        raise BuildError(cause, "check the free disk space; else run with --debug and report it") from error
    layers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            layers[_TYPE_NAMES[part.weight.dtype]] += 1
    for tensor in traced.parameters():
        sizes[_TYPE_NAMES[tensor.dtype]] += tensor.nbytes
    return PrecisionProof(layers=dict(layers), weight_bytes=dict(sizes))


def _save(traced: torch.jit.ScriptModule, path: Path) -> None:
    """PyTorch takes no path that is not UTF-8, such as one of another script under the C locale: then through memory."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("wb") as file:
            torch.jit.save(traced, file)
    else:
        torch.jit.save(traced, path)
