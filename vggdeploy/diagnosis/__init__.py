"""Every backend on every device it knows, tried for real on this machine."""

from __future__ import annotations

from vggdeploy.machine import machine
from vggdeploy.optional import version
from vggdeploy.records import Machine, Record
from vggdeploy.runtime.registry import BACKENDS
from vggdeploy.types import Device

_PACKAGES = (
    "vggdeploy", "numpy", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino",
    "tensorrt", "tensorrt-rtx", "cuda-bindings", "nvidia-ml-py",
)  # fmt: skip


class BackendStatus(Record, frozen=True, kw_only=True):
    """One backend on one device."""

    backend: str
    device: str
    runs: bool
    builds: bool
    version: str
    reason: str
    fix: str


class Diagnosis(Record, frozen=True, kw_only=True):
    """What ``vggdeploy doctor --json`` prints."""

    schema_version: int = 1
    machine: Machine
    packages: dict[str, str]
    backends: tuple[BackendStatus, ...]
    warnings: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Probe every backend. A GPU provider that would silently run on the CPU counts as one that cannot run."""
    packages = {name: found for name in _PACKAGES if (found := version(name))}
    statuses = []
    for backend in BACKENDS:
        for kind in backend.devices:
            state = backend.probe(Device(kind))
            statuses.append(
                BackendStatus(
                    backend=backend.name,
                    device=kind,
                    runs=state.runs,
                    builds=state.builds,
                    version=state.version,
                    reason=state.reason,
                    fix=state.fix,
                )
            )
    warnings = []
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
        )
    return Diagnosis(machine=machine(), packages=packages, backends=tuple(statuses), warnings=tuple(warnings))
