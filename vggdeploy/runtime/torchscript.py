"""The TorchScript backend: a frozen graph that needs no Python class, here and in C++."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from vggdeploy.errors import BundleError, first_line
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.torch import ModuleSession, probe


class TorchScriptSession(ModuleSession):
    """One TorchScript file."""

    def _open(self, source: Source) -> Any:
        try:
            with warnings.catch_warnings(), source.open() as file:
                # torch.jit is deprecated since 2.14 and still the one format that libtorch in C++ loads everywhere.
                warnings.filterwarnings("ignore", message=".*torch.jit")
                return torch.jit.load(file.path, map_location=str(source.device)).eval()
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"{source.name} is not TorchScript: {first_line(error)}", "export it again") from error


SESSION = TorchScriptSession
__all__ = ["SESSION", "TorchScriptSession", "probe"]
