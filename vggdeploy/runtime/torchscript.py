"""The TorchScript backend: a frozen graph that needs no Python class, here and in C++."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from vggdeploy.bundle.precision import Product
from vggdeploy.errors import BundleError, first_line
from vggdeploy.runtime.base import Array, Source
from vggdeploy.runtime.torch import probe, run_module, use_threads
from vggdeploy.system.sealed import shown


class TorchScriptSession:
    """One TorchScript file."""

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self._source = source
        self._module: Any = None

    def __enter__(self) -> Self:
        use_threads(self._source)
        try:
            with warnings.catch_warnings(), self._source.open() as file:
                # torch.jit is deprecated since 2.14 and still the one format that libtorch in C++ loads everywhere.
                warnings.filterwarnings("ignore", message=".*torch.jit")
                module = torch.jit.load(file.path, map_location=str(self._source.device))
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                f"{self._source.name} is not TorchScript: {first_line(error)}", "export it again"
            ) from error
        self._module = module.eval()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._module = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return run_module(self._module, feeds, self._source)


SESSION = TorchScriptSession
__all__ = ["SESSION", "TorchScriptSession", "probe"]


TYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


def read_products(path: Path, layers: dict[str, str]) -> tuple[Product, ...]:
    """What each convolution and matrix product of a TorchScript file computes in: the type of its weights, read back.

    Args:
        layers: state-dict prefix → the layer's name, such as ``features.8`` → ``conv3_2``.

    Raises:
        BundleError: not TorchScript.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise BundleError(f"{shown(path)} is not TorchScript: {first_line(error)}", "export it again") from error
    products = []
    for name, tensor in module.named_parameters():
        key, _, last = name.rpartition(".")
        if last == "weight" and tensor.ndim in (2, 4):
            place = ".".join(key.split(".")[:2])
            products.append(Product(layers.get(place, key), TYPE_NAMES.get(tensor.dtype, str(tensor.dtype))))
    return tuple(products)
