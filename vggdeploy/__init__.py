"""vggdeploy: a VGG from PyTorch to proven ONNX, TorchScript and FP16 TensorRT, and into your application without torch.

    import vggdeploy

    with vggdeploy.load("artifacts/digits") as engine:
        engine.classify("digit.png")

Importing this package loads nothing but the standard library; each name below is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vggdeploy._version import __version__

# ONNX Runtime 1.29 and newer writes a number of this machine and reports to its maker, unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle
    from vggdeploy.bundle.trust import Trust
    from vggdeploy.engine.async_engine import AsyncEngine, AsyncLimits
    from vggdeploy.engine.engine import Engine, Prediction, load
    from vggdeploy.errors import (
        BuildError,
        BundleError,
        CheckpointError,
        CudaError,
        DataError,
        DeadlineError,
        GpuMemoryError,
        IncompatibleError,
        InputError,
        IntegrityError,
        MissingDependencyError,
        Overloaded,
        ParityError,
        SignatureError,
        TargetError,
        TrainingError,
        UsageError,
        VggdeployError,
    )
    from vggdeploy.spec import ModelSpec, PreprocessSpec
    from vggdeploy.verbs import bench, export, train, verify

_HOMES = {
    "AsyncEngine": "engine.async_engine",
    "AsyncLimits": "engine.async_engine",
    "Bundle": "bundle",
    "Trust": "bundle.trust",
    "Engine": "engine.engine",
    "Prediction": "engine.predictions",
    "load": "engine.engine",
    "ModelSpec": "spec",
    "PreprocessSpec": "spec",
    "BuildError": "errors",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "CudaError": "errors",
    "GpuMemoryError": "errors",
    "DataError": "errors",
    "DeadlineError": "errors",
    "IncompatibleError": "errors",
    "InputError": "errors",
    "IntegrityError": "errors",
    "MissingDependencyError": "errors",
    "Overloaded": "errors",
    "ParityError": "errors",
    "SignatureError": "errors",
    "TargetError": "errors",
    "TrainingError": "errors",
    "UsageError": "errors",
    "VggdeployError": "errors",
}
# Folders of the package that can be called: see `vggdeploy.system.verbs`.
_VERBS = ("bench", "export", "train", "verify")

__all__ = [
    "AsyncEngine",
    "AsyncLimits",
    "BuildError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "CudaError",
    "DataError",
    "DeadlineError",
    "Engine",
    "GpuMemoryError",
    "IncompatibleError",
    "InputError",
    "IntegrityError",
    "MissingDependencyError",
    "ModelSpec",
    "Overloaded",
    "ParityError",
    "Prediction",
    "PreprocessSpec",
    "SignatureError",
    "TargetError",
    "TrainingError",
    "Trust",
    "UsageError",
    "VggdeployError",
    "__version__",
    "bench",
    "export",
    "load",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if _HOMES.get(name, "errors") not in ("errors", "spec"):
        from vggdeploy.system.interpreter import check_interpreter

        check_interpreter()
    if name in _VERBS:
        return import_module(f"vggdeploy.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vggdeploy' has no attribute {name!r}")
    return getattr(import_module(f"vggdeploy.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
