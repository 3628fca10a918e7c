"""The torch.export backend: the program of a ``.pt2`` file, run by PyTorch operator by operator.

The file was followed before (`vggdeploy.model.formats.exported`), since `torch.export.load` trusts what it opens.
"""

from __future__ import annotations

from typing import Any

import torch

from vggdeploy.errors import BundleError, first_line
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.torch import ModuleSession, probe


class TorchExportSession(ModuleSession):
    """One program."""

    def _open(self, source: Source) -> Any:
        try:
            with source.open() as sealed, sealed.path.open("rb") as file:
                return torch.export.load(file).module()
        except (RuntimeError, ValueError, AssertionError, KeyError) as error:
            cause = f"PyTorch {torch.__version__} cannot open {source.name}: {first_line(error)}"
            raise BundleError(cause, "export the bundle again with this PyTorch, or use its ONNX variants") from error


SESSION = TorchExportSession
__all__ = ["SESSION", "TorchExportSession", "probe"]
