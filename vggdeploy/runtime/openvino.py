"""The OpenVINO backend, for CPUs. It reads the bundle's ONNX files: OpenVINO's own format would hold the weights twice.

What takes long to compile is kept in the user's cache: the exported model, and behind it the SHA-256 of its bytes, since
OpenVINO itself runs on damaged weights. It is read through a memory map.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import BundleError, VggdeployError
from vggdeploy.runtime.base import Array, Availability, Kernel, Source, shareable
from vggdeploy.system.cache import Cache, cache_home, key_of
from vggdeploy.system.forks import SharedThreads
from vggdeploy.system.machine import fingerprint, usable_cores
from vggdeploy.system.optional import import_silent
from vggdeploy.types import Device, Precision

ov = import_silent("openvino")  # a plain import sends a report to Intel

WORTHWHILE_SECONDS = 0.3  # a model that compiles faster is not kept
LIMIT_BYTES = 4 * 2**30  # of all models that are kept
_DIGEST = hashlib.sha256().digest_size
_DEVICE = "CPU"
# What OpenVINO computes in where a graph does not say it. Left alone it takes BF16 for FP32 graphs on CPUs that have it.
_INFERENCE = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16", Precision.INT8: "f32"}
# In the names of oneDNN's instruction sets that have arithmetic in 16 bits.
_NARROW_ISAS = ("BF16", "FP16", "AMX", "AVX10", "VNNI_2", "ALL", "DEFAULT")
_CAPABILITIES = {Precision.BF16: "BF16", Precision.FP16: "FP16"}
_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")
_threads = SharedThreads("OpenVINO", remedy="use another backend there")


@functools.cache
def core() -> Any:
    """The one `openvino.Core` of the process. It is thread-safe."""
    return ov.Core()


def probe(device: Device) -> Availability:
    """The CPU plugin has to load. ``lacks`` names the precisions that this CPU has no arithmetic for."""
    try:
        found = core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        return Availability(False, str(device), told(error), "reinstall it: pip install --force-reinstall openvino")
    kept = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    narrow = any(word in kept for word in _NARROW_ISAS)  # OpenVINO asks the CPU, whatever its kernels may use of it
    lacks = tuple(precision for precision, name in _CAPABILITIES.items() if name not in found or not narrow)
    return Availability(True, str(device), version=ov.__version__.partition("-")[0], lacks=lacks)


class OpenVinoSession:
    """One compiled model. ``run`` may be called from several threads at once: each call takes an infer request that is
    free, or makes one.

    OpenVINO reads the caller's array where it lies (see `shareable`), and writes into the arrays that are returned.
    """

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self._source = source
        self._compiled: Any = None
        self._free: deque[Any] = deque()  # its pop and append are atomic
        self._memory: Any = None
        self._calls: list[tuple[Kernel, ...]] = []

    def __enter__(self) -> Self:
        source = self._source
        _threads.take()
        config = {
            "PERFORMANCE_HINT": source.hint.upper(),
            "INFERENCE_NUM_THREADS": source.thread_count,
            "INFERENCE_PRECISION_HINT": _INFERENCE[source.precision],
            # Two sessions that are pinned take the same first cores, and leave the others idle.
            "ENABLE_CPU_PINNING": source.thread_count >= usable_cores(),
            **({"PERF_COUNT": True} if source.profile else {}),
        }
        try:
            compiled, self._memory = _compile(source, config)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot open {source.name}: {told(error)}", "run: vggdeploy doctor") from error
        names = {name for port in compiled.outputs for name in port.names}
        inputs = {name for port in compiled.inputs for name in port.names}
        if not {s.name for s in self.inputs} <= inputs or not {s.name for s in self.outputs} <= names:
            raise BundleError(f"{source.name} has not the inputs and outputs of the manifest", "export it again")
        self._compiled = compiled
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.clear()
        self._compiled = None
        self._memory = None  # after what reads it

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        given = {name: shareable(array) for name, array in feeds.items()}
        batch = len(next(iter(given.values())))
        answers: dict[str, Array] = {
            spec.name: np.empty((batch, *spec.item_shape), spec.dtype) for spec in self.outputs
        }
        try:
            for name, array in (*given.items(), *answers.items()):
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            request.infer()
        except RuntimeError as error:
            raise VggdeployError(
                f"OpenVINO failed: {told(error)}", "try a smaller batch, or verify the bundle"
            ) from error
        if self._source.profile:
            self._calls.append(_timed(request, self._compiled))
        self._free.append(request)  # not after an error: it may be broken
        return answers

    def kernels(self) -> list[tuple[Kernel, ...]]:
        """See `vggdeploy.runtime.base.ProfiledSession`."""
        return self._calls

    def computes_in(self) -> dict[str, int]:
        """Convolutions and matrix products of the compiled model by the type they compute in, as OpenVINO names it."""
        return computed_types(self._compiled)


def computed_types(compiled: Any) -> dict[str, int]:
    """Convolutions and matrix products of a compiled model by type: ``{"int8": 13, "fp32": 3}``."""
    found: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        if "layerType" in about and about["layerType"].astype(str) in _PRODUCTS:
            text = about["runtimePrecision"].astype(str)
            name = _NAMES.get(text, text)
            found[name] = found.get(name, 0) + 1
    return found


def _timed(request: Any, compiled: Any) -> tuple[Kernel, ...]:
    """The kernels of a request's last call. Those that it fused away or folded are in its list, and did not run."""
    made_of = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        made_of[node.get_friendly_name()] = about["originalLayersNames"].astype(str).split(",")
    return tuple(
        Kernel(
            found.node_name,
            found.node_type,
            tuple(name for name in made_of.get(found.node_name, ()) if name),
            found.real_time.total_seconds() * 1e3,
        )
        for found in request.get_profiling_info()
        if found.status == ov.ProfilingInfo.Status.EXECUTED
    )


def _compile(source: Source, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The compiled model, from the user's cache or from the file, and the memory that it reads its weights from."""
    cache = Cache(cache_home() / "openvino", suffix=".model", limit=LIMIT_BYTES)
    settings = {name: str(value) for name, value in config.items()}
    key = key_of([source.sha256, ov.__version__, fingerprint(), settings])
    kept = _kept(cache, key)
    if kept is not None:
        with contextlib.suppress(RuntimeError):  # of another build with the same version: then it is made anew
            return core().import_model(ov.Tensor(kept, shared_memory=True), _DEVICE, dict(config)), kept
    start = time.perf_counter()
    with source.open() as file:
        compiled = core().compile_model(str(file.path), _DEVICE, dict(config))
    if time.perf_counter() - start >= WORTHWHILE_SECONDS and not source.profile and cache.writable():
        data = compiled.export_model().getbuffer()
        cache.write(key, b"".join((data, hashlib.sha256(data).digest())))
    return compiled, None


def _kept(cache: Cache, key: str) -> NDArray[np.uint8] | None:
    """The exported model of that key, if it is whole."""
    file = cache.open(key)
    if file is None:
        return None
    with file:
        try:
            # Copy on write: OpenVINO takes no read-only arrays, and nothing of it reaches the file.
            data = np.memmap(file, dtype=np.uint8, mode="c")
        except (OSError, ValueError):  # ValueError: the file is empty
            return None
    model, digest = data[:-_DIGEST], data[-_DIGEST:].tobytes()
    return model if len(model) and hashlib.sha256(model.data).digest() == digest else None


def told(error: RuntimeError) -> str:
    """What OpenVINO's text says after the places in its source; one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "While validating", "Check '"))]
    return (said or lines or [type(error).__name__])[-1]


SESSION = OpenVinoSession
__all__ = ["SESSION", "OpenVinoSession", "probe"]
