"""The TorchScript backend: a frozen graph that needs no Python class, here and in C++."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from vggdeploy.errors import BundleError, first_line
from vggdeploy.runtime.base import Array, Source
from vggdeploy.runtime.torch import probe, run_module, use_threads


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
