"""Which backends there are. Adding one: a file beside this one, and a row here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType

from vggdeploy.bundle import Variant
from vggdeploy.errors import IncompatibleError, unknown_name
from vggdeploy.runtime.base import Availability, Hint
from vggdeploy.system.optional import require
from vggdeploy.types import Device


@dataclass(frozen=True)
class Backend:
    """A row: its names, which variants it runs (``format``), where its code is, and what it needs.

    ``title`` is the library's name as its makers write it, ``aliases`` are what people type for ``name``. The module
    has ``SESSION`` (a class that takes a `Source`) and ``probe(device) -> Availability``. ``library`` is the Python
    module that does the work, ``extra`` what installs it, and ``builds_on`` the devices on which that library builds
    engines; it is empty for a backend that runs what others wrote. ``exact_int8``: its INT8 products are right on every
    CPU, or can be made so. ``profiles_on``: the devices on which it can time its kernels. ``by_machine``: it chooses its
    FP32 kernels by the CPU, so that a proof holds for the CPU that it was made on. ``compiles``: it makes native code of
    the file where it opens it, which takes a minute the first time and which nobody proved elsewhere. ``any_batch_on``:
    the devices on which a first run of a batch size costs nothing once its largest has been run. ``own_threads_on``: the
    devices on which each session starts its threads when it is opened, so that they keep the priority of who opened it.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    format: str
    module: str
    library: str
    extra: str
    devices: tuple[str, ...]
    hints: tuple[Hint, ...] = ("latency",)
    builds_on: tuple[str, ...] = ()
    exact_int8: bool = True
    profiles_on: tuple[str, ...] = ()
    by_machine: bool = False
    compiles: bool = False
    any_batch_on: tuple[str, ...] = ()
    own_threads_on: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

    def import_library(self, *, to: str) -> ModuleType:
        """The library's module. ``to`` says what it is needed for.

        Raises:
            MissingDependencyError: it is not installed; the remedy names the extra.
            IncompatibleError: it is installed and does not import.
        """
        return require(self.library, to=to, extra=self.extra)

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
            self.import_library(to=f"run the {self.name} backend")
        except IncompatibleError as error:
            return Availability(False, str(device), error.cause, error.hint)
        availability: Availability = self.load().probe(device)
        return availability


_ORT_DEVICES = ("cpu", "cuda", "cuda+tensorrt", "cuda+rtx")

BACKENDS: tuple[Backend, ...] = (
    Backend(
        "torch", "PyTorch", ("pytorch",), "checkpoint", "vggdeploy.runtime.torch", "torch", "train", ("cpu", "cuda")
    ),
    Backend(
        "torchscript", "TorchScript", (), "torchscript", "vggdeploy.runtime.torchscript", "torch", "train",
        ("cpu", "cuda"), by_machine=True,
    ),
    Backend(
        "torch-export", "torch.export", ("pt2",), "torch-export", "vggdeploy.runtime.torch_export", "torch", "train",
        ("cpu",), by_machine=True,
    ),
    Backend(
        "aoti", "AOTInductor", ("aotinductor", "inductor"), "aoti", "vggdeploy.runtime.aoti.session", "torch", "train",
        ("cpu",), by_machine=True, compiles=True,
    ),
    Backend(
        "onnxruntime", "ONNX Runtime", ("ort", "onnx"), "onnx", "vggdeploy.runtime.onnxruntime.session", "onnxruntime", "cpu",
        _ORT_DEVICES, hints=("latency", "memory"), profiles_on=("cpu",), any_batch_on=("cpu",),
        own_threads_on=("cpu",),
    ),
    Backend(
        "openvino", "OpenVINO", ("ov",), "openvino", "vggdeploy.runtime.openvino", "openvino", "cpu", ("cpu",),
        hints=("latency", "throughput"), exact_int8=False, profiles_on=("cpu",), by_machine=True,
    ),
    Backend(
        "tensorrt", "TensorRT", ("trt",), "tensorrt", "vggdeploy.runtime.tensorrt.session", "tensorrt", "gpu", ("cuda",),
        builds_on=("cuda",), profiles_on=("cuda",),
    ),
    Backend(
        "tensorrt-rtx", "TensorRT for RTX", ("rtx", "trt-rtx"), "tensorrt-rtx", "vggdeploy.runtime.tensorrt.rtx",
        "tensorrt_rtx", "rtx", ("cuda",), builds_on=("cpu", "cuda"), profiles_on=("cuda",),
    ),
)  # fmt: skip
# The backends whose library also builds what they run.
ENGINES = tuple(backend for backend in BACKENDS if backend.builds_on)


def get_backend(name: str) -> Backend:
    """The backend of that name, or of one of its aliases.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    return _named(name, BACKENDS, "backend")


def get_engine(name: str) -> Backend:
    """As `get_backend`, of those that build engines."""
    return _named(name, ENGINES, "engine")


def _named(name: str, among: tuple[Backend, ...], what: str) -> Backend:
    wanted = name.strip().lower().replace("_", "-")
    for backend in among:
        if wanted in (backend.name, *backend.aliases):
            return backend
    aliases = [alias for backend in among for alias in (backend.name, *backend.aliases)]
    meant = get_close_matches(wanted, aliases, n=1, cutoff=0.5)
    near = next((b.name for b in among if meant and meant[0] in (b.name, *b.aliases)), name)
    raise unknown_name(what, name, [backend.name for backend in among], meant=near)


def library_title(library: str) -> str:
    """The name that a library's makers give it: ``tensorrt_rtx`` is ``TensorRT for RTX``."""
    return next((backend.title for backend in ENGINES if backend.library == library), library)


def backend_for(variant: Variant) -> Backend:
    """The backend that runs a variant's format.

    Raises:
        IncompatibleError: this version of vggdeploy has none.
    """
    for backend in BACKENDS:
        if backend.format == variant.format:
            return backend
    raise IncompatibleError(
        f"nothing here runs the format '{variant.format}'", "install a newer vggdeploy, from its repository or a wheel"
    )


def default_device(backend: Backend) -> Device:
    return Device(backend.devices[0])
