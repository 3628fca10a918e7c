"""Which backends there are. Adding one: a file beside this one, and a row here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import IncompatibleError, UsageError, unknown_name
from vggdeploy.optional import require
from vggdeploy.runtime import preflight
from vggdeploy.runtime.base import Availability, CheckedSession, Session, Source
from vggdeploy.runtime.options import GpuOptions, Hint
from vggdeploy.types import Device, TensorSpec


@dataclass(frozen=True)
class Backend:
    """A row: which variants it runs (``format``), where its code is, and what it needs.

    The module has ``SESSION`` (a class that takes a `Source`) and ``probe(device) -> Availability``.
    """

    name: str
    format: str
    module: str
    requires: str
    extra: str
    devices: tuple[str, ...]
    hints: tuple[Hint, ...] = ("latency",)

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

    def probe(self, device: Device) -> Availability:
        """Whether this machine can run it, found out for real: a library that is only installed does not count."""
        if device.kind not in self.devices:
            return Availability(
                False,
                str(device),
                f"{self.name} runs on {' and '.join(self.devices)}, not on {device.kind}",
                f"use --device {self.devices[0]}",
            )
        try:
            require(self.requires, to=f"run the {self.name} backend", extra=self.extra)
        except IncompatibleError as error:
            return Availability(False, str(device), error.cause, error.hint)
        found: Availability = self.load().probe(device)
        return found


_ORT_DEVICES = ("cpu", "cuda", "cuda+tensorrt", "cuda+rtx")

BACKENDS: tuple[Backend, ...] = (
    Backend("torch", "checkpoint", "vggdeploy.runtime.torch", "torch", "train", ("cpu", "cuda")),
    Backend("torchscript", "torchscript", "vggdeploy.runtime.torchscript", "torch", "train", ("cpu", "cuda")),
    Backend("onnxruntime", "onnx", "vggdeploy.runtime.onnxruntime", "onnxruntime", "cpu", _ORT_DEVICES),
    Backend(
        "openvino", "openvino", "vggdeploy.runtime.openvino", "openvino", "cpu", ("cpu",), ("latency", "throughput")
    ),
    Backend("tensorrt", "tensorrt", "vggdeploy.runtime.tensorrt", "tensorrt", "gpu", ("cuda",)),
    Backend("tensorrt-rtx", "tensorrt-rtx", "vggdeploy.runtime.tensorrt_rtx", "tensorrt_rtx", "rtx", ("cuda",)),
)

# What people type for a backend, and its name here.
_ALIASES = {
    "ort": "onnxruntime",
    "onnx": "onnxruntime",
    "ov": "openvino",
    "pytorch": "torch",
    "trt": "tensorrt",
    "rtx": "tensorrt-rtx",
}


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    wanted = name.lower().replace("_", "-")
    wanted = _ALIASES.get(wanted, wanted)
    for backend in BACKENDS:
        if backend.name == wanted:
            return backend
    raise unknown_name("backend", name, [b.name for b in BACKENDS])


def backend_for(variant: Variant) -> Backend:
    """The backend that runs a variant's format.

    Raises:
        IncompatibleError: this version of vggdeploy has none.
    """
    for backend in BACKENDS:
        if backend.format == variant.format:
            return backend
    raise IncompatibleError(f"nothing here runs the format '{variant.format}'", "update vggdeploy")


def default_device(backend: Backend) -> Device:
    return Device(backend.devices[0])


def runnable(variant: Variant, device: Device | None = None) -> Availability:
    """Whether this machine can run a variant, and why not: its backend has to run here and to have its precision, and
    an engine has to fit."""
    backend = backend_for(variant)
    where = device or default_device(backend)
    found = backend.probe(where)
    if found.runs and variant.precision in found.lacks:
        reason = (
            f"this {where.kind} has no {variant.precision} arithmetic: {backend.name} would compute in another type"
        )
        return replace(found, runs=False, reason=reason, fix="use another variant of the bundle")
    if not found.runs or variant.build is None:
        return found
    wrong = preflight.mismatch(variant, preflight.host_of(variant, where))
    return replace(found, runs=False, reason=wrong.cause, fix=wrong.fix) if wrong else found


def open_session(
    bundle: Bundle,
    variant: Variant,
    *,
    device: Device | None = None,
    threads: int | None = None,
    file: tuple[Path, str] | None = None,
    outputs: tuple[TensorSpec, ...] = (),
    gpu: GpuOptions | None = None,
    hint: Hint = "latency",
) -> CheckedSession:
    """A session of one variant, ready to be entered. The bundle's hashes were checked when it was opened.

    Args:
        file: path and SHA-256 of the variant's file where it is not in the bundle, but in the engine cache.
        outputs: in place of the manifest's; only the reference, which is a model and no graph, can give others.
        gpu: contexts, CUDA graphs and caches of a session on a GPU.
        hint: what the session is set up for, on a backend that can be told.

    Raises:
        UsageError: fewer than one thread; settings of a GPU for a session on the CPU; a hint for a backend without.
        IncompatibleError: this machine cannot run it; cause and remedy are the probe's or the preflight's.
        IntegrityError: the file is no engine of the library that its record names.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads", "give at least 1")
    backend = backend_for(variant)
    where = device or default_device(backend)
    if gpu is not None and where.kind == "cpu":
        raise UsageError(f"settings of a GPU for {variant.name} on the CPU", "leave them out, or give --device cuda")
    if hint not in backend.hints:
        raise UsageError(
            f"{variant.name} cannot be set up for {hint}: {backend.name} has no such setting", "leave the hint out"
        )
    found = runnable(variant, where)
    if not found.runs:
        raise IncompatibleError(f"{variant.name} cannot run here: {found.reason}", found.fix)
    manifest = bundle.manifest
    path, sha256 = file or (bundle.path(variant.path), bundle.sha256(variant.path))
    preflight.check_file(variant, path)
    source = Source(
        path=path,
        sha256=sha256,
        spec=manifest.spec,
        preprocess=manifest.preprocess,
        inputs=(manifest.input,),
        outputs=outputs or manifest.outputs,
        batch=variant.batch,
        device=where,
        threads=threads,
        gpu=gpu or GpuOptions(),
        build=variant.build,
        precision=variant.precision,
        hint=hint,
    )
    session: Session = backend.load().SESSION(source)
    return CheckedSession(session, name=variant.name, batch=variant.batch)
