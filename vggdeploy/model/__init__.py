"""The network itself. `summary` and `outputs` need no torch; the other modules do, and so does `backbone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggdeploy.model.detection import Backbone, backbone

__all__ = ["Backbone", "backbone"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vggdeploy.model' has no attribute {name!r}")
    from vggdeploy.model import detection  # only now: it imports torch

    return getattr(detection, name)
