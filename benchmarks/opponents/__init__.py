"""What a user picks instead of us, each run as its own makers advise: one file a peer, with the source of every setting.

Its maintainers can correct one without reading the rest. ``LOOPS`` of a file are its rows; ``NEEDS`` is the package to install.
"""

from opponents import (
    aotinductor,
    inductor,
    olive_export,
    onnx_runtime,
    openvino_runtime,
    pytorch,
    timm_export,
    torchscript,
)
from opponents.job import BASELINE, Job, Loop

ALL = (pytorch, inductor, aotinductor, torchscript, onnx_runtime, openvino_runtime, timm_export, olive_export)
LOOPS: dict[str, Loop] = {name: loop for peer in ALL for name, loop in peer.LOOPS.items()}
NEEDS: dict[str, str] = {name: peer.NEEDS for peer in ALL for name in peer.LOOPS}

__all__ = ["ALL", "BASELINE", "LOOPS", "NEEDS", "Job", "Loop"]
