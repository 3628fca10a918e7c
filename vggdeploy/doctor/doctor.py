"""Every backend on every device it knows, tried for real on this machine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bench.gpu.nvml import GpuWatch
from vggdeploy.bench.gpu.roof import measure_roof
from vggdeploy.build.targets import DEFAULT_TARGETS, resolve_targets, set_targets
from vggdeploy.build.tensorrt import build_engine, open_library
from vggdeploy.errors import IncompatibleError, VggdeployError, first_line
from vggdeploy.records import Machine, Record
from vggdeploy.runtime import tiny_onnx
from vggdeploy.runtime.exact import exact_fp32
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.registry import BACKENDS, ENGINES, Backend
from vggdeploy.system.drafts import temporary_directory
from vggdeploy.system.machine import machine
from vggdeploy.system.optional import require, version
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, OnProgress, Precision, silent

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


TOLERANCE = 1e-3  # of answers near one; FP32 differs by 1e-6, and TF32, which nobody asked for, by 1e-3
_BATCHES = (1, 3, 4, 3, 3)  # a size that comes again gets a CUDA graph
_BATCH = BatchRange(1, 2, 4)
_SEED = 7
_COPY_BYTES = 1 << 20


class Outcome(StrEnum):
    """``not here``: this machine lacks something, and the proof's reason says what."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_HERE = "not here"


class Proof(Record, frozen=True, kw_only=True):
    """One thing that was tried. ``detail`` is what was seen, ``reason`` why it failed or was not tried."""

    what: str
    device: str
    outcome: Outcome
    seconds: float
    detail: str = ""
    reason: str = ""
    fix: str = ""


class SelfTest(Record, frozen=True, kw_only=True):
    """What ``vggdeploy doctor --self-test --json`` prints."""

    schema_version: int = 1
    diagnosis: Diagnosis
    proofs: tuple[Proof, ...]

    @property
    def failed(self) -> bool:
        return any(proof.outcome is Outcome.FAILED for proof in self.proofs)


def self_test(on_progress: OnProgress = silent) -> SelfTest:
    """Try everything. Files lie in a directory that is removed; what AOTInductor compiles stays in the user's cache.

    Args:
        on_progress: called with the name of each proof before it starts.
    """
    with temporary_directory("vggdeploy-self-test-") as home:
        plan, proofs = list(_plan(home)), list[Proof]()
        for what, device, work in plan:
            on_progress(len(proofs) / len(plan), f"{what} on {device}")
            proofs.append(_prove(what, device, work))
    return SelfTest(diagnosis=diagnose(), proofs=tuple(proofs))


def _plan(home: Path) -> Iterator[tuple[str, str, Callable[[], str]]]:
    for backend in BACKENDS:
        for kind in backend.devices:
            yield backend.name, kind, partial(_run_backend, backend, Device(kind), home)
    for engine in ENGINES:
        device = "any" if "cpu" in engine.builds_on else "cuda"
        yield f"{engine.name} build", device, partial(_build, engine, home)
    yield "copies, streams and events", "cuda", _cuda
    yield "NVML", "cuda", _nvml
    yield "matrix product (cuBLAS, FP16)", "cuda", _roof


def _prove(what: str, device: str, work: Callable[[], str]) -> Proof:
    start = time.perf_counter()
    detail, outcome, reason, fix = "", Outcome.PASSED, "", ""
    try:
        detail = work()
    except IncompatibleError as error:
        outcome, reason, fix = Outcome.NOT_HERE, error.cause, error.hint
    except VggdeployError as error:
        outcome, reason, fix = Outcome.FAILED, error.cause, error.hint
    except Exception as error:  # whatever a library throws is what this is here to find
        outcome, reason = Outcome.FAILED, f"{type(error).__name__}: {first_line(error)}"
    seconds = time.perf_counter() - start
    return Proof(what=what, device=device, outcome=outcome, seconds=seconds, detail=detail, reason=reason, fix=fix)


def _run_backend(backend: Backend, device: Device, home: Path) -> str:
    """The tiny network on a backend, as the backend's own session runs it, against NumPy."""
    availability = backend.probe(device)
    if not availability.runs:
        raise IncompatibleError(availability.reason, availability.fix)
    if backend.format == "checkpoint":  # its session takes a VGG of ours; the operations are the same
        torch = require("torch", to="run the reference", extra="train")
        return _compare(lambda image: torch_logits(torch, image, tiny_onnx.weights(), str(device)))
    path = home / f"{backend.name}.{'onnx' if backend.format == 'openvino' else backend.format}"
    if backend.format == "torchscript":
        write_torchscript(path)
    elif backend.format in ("torch-export", "aoti"):
        write_program(path)
    elif backend.format in ("onnx", "openvino"):
        path.write_bytes(tiny_onnx.onnx_bytes(tiny_onnx.weights()))
    elif backend.builds_on:
        _build_to(backend, path, home, here=device)
    else:
        raise IncompatibleError(
            f"there is no self-test of {backend.name} yet",
            "prove a bundle: vggdeploy verify BUNDLE",
        )
    source = tiny_onnx.source(device, file=HashedFile.of(path), batch=_BATCH)
    with backend.load().SESSION(source) as session:
        return _compare(lambda image: session.run({tiny_onnx.INPUT.name: image})[tiny_onnx.OUTPUT.name])


def _compare(run: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> str:
    worst = 0.0
    for seed, batch in enumerate(_BATCHES):
        image = tiny_onnx.images(batch, seed)
        answer, wanted = run(image), tiny_onnx.reference(image, tiny_onnx.weights())
        if answer.shape != wanted.shape:
            raise VggdeployError(f"the answer has the shape {answer.shape}, not {wanted.shape}", "report this")
        worst = float(np.maximum(worst, np.abs(answer - wanted).max()))  # max() would lose a NaN
    if not worst <= TOLERANCE:  # a NaN, too
        raise VggdeployError(
            f"the answer differs from NumPy's by {worst:.1e}, more than {TOLERANCE:.0e}",
            "do not deploy on this machine",
        )
    return f"max |Δ| {worst:.1e} from NumPy"


def torch_logits(torch: Any, image: NDArray[np.uint8], weights: tiny_onnx.Weights, device: str) -> NDArray[Any]:
    """The tiny network in PyTorch's functions, exact FP32."""
    w = {name: torch.from_numpy(values).to(device) for name, values in weights.items()}
    with torch.inference_mode(), exact_fp32(torch):
        logits = _torch_network(torch, torch.from_numpy(image).to(device), w)
    return np.asarray(logits.cpu().numpy())


def _torch_network(torch: Any, image: Any, w: dict[str, Any]) -> Any:
    x = image.float().permute(0, 3, 1, 2) / 255
    x = torch.nn.functional.conv2d(x, w["conv_w"], w["conv_b"], padding=1).relu()
    x = torch.nn.functional.max_pool2d(x, 2).flatten(1)
    return torch.nn.functional.linear(x, w["fc_w"], w["fc_b"])


def write_torchscript(path: Path) -> None:
    """The tiny network as a TorchScript file."""
    torch = require("torch", to="write TorchScript", extra="train")
    w = {name: torch.from_numpy(values) for name, values in tiny_onnx.weights().items()}
    with exact_fp32(torch), warnings.catch_warnings():  # a trace keeps whether TF32 was allowed
        warnings.simplefilter("ignore")  # torch.jit is deprecated since 2.14; what is tried here is the file
        traced = torch.jit.trace(lambda image: _torch_network(torch, image, w), torch.from_numpy(tiny_onnx.images(2)))
        torch.jit.save(traced, str(path))


def write_program(path: Path) -> None:
    """The tiny network as a program of torch.export."""
    torch = require("torch", to="write a program of torch.export", extra="train")
    w = {name: torch.from_numpy(values) for name, values in tiny_onnx.weights().items()}

    class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, image: Any) -> Any:
            return _torch_network(torch, image, w)

    size = torch.export.Dim("N", min=1, max=2**10)
    program = torch.export.export(Tiny(), (torch.from_numpy(tiny_onnx.images(2)),), dynamic_shapes={"image": {0: size}})
    torch.export.save(program, str(path.with_suffix(".pt2")))
    path.with_suffix(".pt2").rename(path)


def _build_to(engine: Backend, path: Path, home: Path, *, here: Device | None) -> Any:
    """Build an FP32 engine: for this machine's GPU, or (here=None) for the default targets."""
    library = open_library(engine)
    onnx = home / "tiny.onnx"
    onnx.write_bytes(tiny_onnx.onnx_bytes(tiny_onnx.weights()))
    configure = None
    if "cpu" in engine.builds_on:
        names = DEFAULT_TARGETS if here is None else [cuda.find_gpu(here).capability]
        targets = resolve_targets(library, names)
        configure = partial(set_targets, library, targets=targets)
    return build_engine(library, onnx, path, precision=Precision.FP32, profiles=[_BATCH], configure=configure)


def _build(engine: Backend, home: Path) -> str:
    """Building alone, which RTX does without a GPU."""
    if "cpu" not in engine.builds_on:
        open_library(engine)
        cuda.find_gpu(Device("cuda"))
    path = home / f"{engine.name}-built.engine"
    built = _build_to(engine, path, home, here=None)
    layers = ", ".join(f"{count} in {kind}" for kind, count in built.proof.layers.items())
    return f"{path.stat().st_size:,} bytes; convolutions and matrix products: {layers}"


def _cuda() -> str:
    device = Device("cuda")
    gpu = cuda.find_gpu(device)
    cuda.use(device)
    with ExitStack() as stack:
        up, down = cuda.open_stream(stack), cuda.open_stream(stack)
        there, back = (cuda.pinned_array(stack, (_COPY_BYTES,), "uint8") for _ in range(2))
        there[:] = np.random.default_rng(_SEED).integers(0, 256, _COPY_BYTES, dtype=np.uint8)
        back[:] = 0
        address = cuda.device_memory(stack, _COPY_BYTES)
        start, end = cuda.Event(timing=True), cuda.Event(timing=True)
        start.record(up)
        cuda.upload(address, there, up)
        end.record(up)
        end.hold(down)
        cuda.download(back, address, down)
        cuda.wait(down)
        if not np.array_equal(there, back):
            raise VggdeployError("what came back from the GPU is not what went there", "check nvidia-smi -q, dmesg")
        gbps = _COPY_BYTES / max(end.since(start), 1e-6) / 1e6
    return f"{gpu.name} ({gpu.capability}), driver for CUDA {gpu.driver}, 1 MiB up at {gbps:.1f} GB/s"


def _nvml() -> str:
    cuda.find_gpu(Device("cuda"))
    with GpuWatch(Device("cuda")) as watch:
        pass
    seen = watch.result()
    if seen.missing:
        raise IncompatibleError(seen.missing, "pip install nvidia-ml-py, and check nvidia-smi")
    power = "power unknown" if seen.power_watts_mean is None else f"{seen.power_watts_mean:.0f} W"
    return f"SM at {seen.sm_clock_mhz_max} MHz, {seen.temperature_c_max} °C, {power}"


def _roof() -> str:
    cuda.find_gpu(Device("cuda"))
    roof = measure_roof(Device("cuda"), Precision.FP16, seconds=0.1)
    return f"{roof.tera_ops:,.0f} TOP/s ({roof.side}³)"
