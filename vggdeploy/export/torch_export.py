"""`torch.export`: the graph and its weights in one ``.pt2`` file, the format that PyTorch names after TorchScript."""

from __future__ import annotations

import warnings
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import torch

from vggdeploy.bundle import PrecisionProof
from vggdeploy.bundle.precision import Product, by_type
from vggdeploy.errors import BuildError, first_line
from vggdeploy.model.deployable import Deployable, example_input
from vggdeploy.model.formats.exported import exported_parameters
from vggdeploy.runtime.exact import exact_fp32
from vggdeploy.system.sealed import mapped
from vggdeploy.types import BatchRange, TensorSpec

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def export_program(module: Deployable, path: Path, *, image: TensorSpec, batch: BatchRange) -> PrecisionProof:
    """Write ``module`` (batch norm already folded, in evaluation mode) as a program, with dynamic batch.

    Raises:
        BuildError: `torch.export` refused the model.
    """
    try:
        module.to(memory_format=torch.channels_last)  # as the image comes out of the preprocessing
        program = exported(module, image=image, batch=batch)
        with warnings.catch_warnings(), path.open("wb") as file:
            # "No complete tensor found in the group": said of weights that are channels-last; they are written whole.
            warnings.filterwarnings("ignore", message="No complete tensor found")
            torch.export.save(program, file)
    except (RuntimeError, ValueError, AssertionError) as error:
        cause = f"the model cannot be exported by torch.export: {first_line(error)}"
        raise BuildError(cause, "check the free disk space; else run with --debug and report it") from error
    finally:
        module.to(memory_format=torch.contiguous_format)  # what is exported next
    return _proof(path)


def exported(module: Deployable, *, image: TensorSpec, batch: BatchRange) -> Any:
    """The module as a `torch.export.ExportedProgram`.

    What PyTorch notes about the source code is left out: it names this machine's directories. So are the sample inputs, which
    it would write as a pickle.
    """
    size = torch.export.Dim("N", min=1, max=max(2, batch.max))  # a range of one size is no free size
    with torch.no_grad(), exact_fp32(torch):
        program = torch.export.export(module, (example_input(image, samples=2),), dynamic_shapes={"image": {0: size}})
    for node in program.graph.nodes:
        node.meta = {name: value for name, value in node.meta.items() if name == "val"}
    program.example_inputs = None
    return program


def _proof(path: Path) -> PrecisionProof:
    """Read back from the written file."""
    sizes: Counter[str] = Counter()
    products = []
    for name, tensor in exported_parameters(mapped(path), path.name).items():
        if name.endswith("weight"):
            products.append(Product(name, tensor.type))
        sizes[tensor.type] += prod(tensor.shape) * _BYTES[tensor.type]
    return PrecisionProof(layers=by_type(products), weight_bytes=dict(sizes))
