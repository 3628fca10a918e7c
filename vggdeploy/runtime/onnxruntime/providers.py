"""ONNX Runtime's execution providers on NVIDIA GPUs: their devices here, their options, and whether they really run.

| device | provider | package |
|---|---|---|
| ``cpu`` | CPU | onnxruntime |
| ``cuda`` | CUDA (cuDNN, cuBLAS) | onnxruntime-gpu |
| ``cuda+tensorrt`` | TensorRT 10, over CUDA | onnxruntime-gpu, tensorrt 10 |
| ``cuda+rtx`` | TensorRT for RTX, a plugin | onnxruntime, onnxruntime-ep-nv-tensorrt-rtx-cu13 |

ONNX Runtime itself falls back to the CPU without a word. Here the CPU provider is switched off, and every convolution
and matrix product is asked for where it went.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from contextlib import redirect_stdout
from typing import Any

import onnxruntime as ort

from vggdeploy.errors import IncompatibleError, MissingDependencyError, counted, first_line
from vggdeploy.runtime import tiny_onnx
from vggdeploy.runtime.base import Availability, Source
from vggdeploy.runtime.gpu.cuda import check_driver
from vggdeploy.system.optional import installed
from vggdeploy.system.optional import version as package_version
from vggdeploy.types import Device, Precision

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cuda+tensorrt": "TensorrtExecutionProvider",
    "cuda+rtx": "NvTensorRTRTXExecutionProvider",
}
RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_TENSORRT = "libnvinfer.so.10"
_HEAVY = frozenset({"Conv", "Gemm", "MatMul"})
_RECORD_PLACES = "session.record_ep_graph_assignment_info"
# Exact INT8 products on x86 CPUs without VNNI, where files could saturate; slower there, and ignored on all others.
EXACT_INT8 = ("session.x64quantprecision", "1")
# Above this level ONNX Runtime 1.32 takes a ReLU before a pair of FP8 for done by it, as one of UINT8 with zero 0 does it.
EXACT_FP8 = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
_QUIET = 4  # ONNX Runtime's severity for what ends the process; the errors of an attempt are raised, too

Options = dict[str, str]


def cuda_options(source: Source, *, graphs: bool) -> Options:
    """For the CUDA provider: the best convolution algorithm, and FP32 that is FP32."""
    return {
        "device_id": str(source.device.index),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",  # TF32 has the 10 fraction bits of FP16: not what an FP32 variant promises
        "prefer_nhwc": "1" if source.precision is Precision.FP16 else "0",  # the layout of the FP16 tensor cores
        "enable_cuda_graph": "1" if graphs else "0",
    }


def tensorrt_options(source: Source) -> Options:
    """For the TensorRT provider. No engine cache: an engine is code, and only a verified bundle's is loaded."""
    return {
        "device_id": str(source.device.index),
        "trt_fp16_enable": "1" if source.precision is Precision.FP16 else "0",
        "trt_int8_enable": "1" if source.precision is Precision.INT8 else "0",
        **_profile("trt_profile", source),
    }


def rtx_options(source: Source) -> Options:
    """For the RTX plugin; precision is what the ONNX says."""
    return _profile("nv_profile", source)


def _profile(prefix: str, source: Source) -> Options:
    """The batch range, as both TensorRT providers want it: ``image:1x224x224x3``."""
    sizes = {"min": source.batch.min, "opt": source.batch.opt, "max": source.batch.max}
    return {
        f"{prefix}_{name}_shapes": ",".join(
            f"{spec.name}:{'x'.join(map(str, (size, *spec.item_shape)))}" for spec in source.inputs
        )
        for name, size in sizes.items()
    }


def open_on(source: Source, model: Any, options: Any, *, graphs: bool = False) -> Any:
    """An ``InferenceSession`` of the provider that ``source.device`` names.

    Raises:
        IncompatibleError: a convolution or matrix product would run elsewhere.
    """
    kind = source.device.kind
    name = PROVIDERS[kind]
    if kind == "cpu":
        return ort.InferenceSession(model, options, providers=[name])
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry(_RECORD_PLACES, "1")
    if kind == "cuda+rtx":
        options.add_provider_for_devices([_rtx_device(source.device)], rtx_options(source))
        session = ort.InferenceSession(model, options, enable_fallback=0)
    else:
        _preload()
        chosen: list[Any] = [(PROVIDERS["cuda"], cuda_options(source, graphs=graphs))]
        if kind == "cuda+tensorrt":
            chosen.insert(0, (name, tensorrt_options(source)))
        # Without enable_fallback=0 a provider that cannot start is dropped, and the next ones are tried.
        session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    check_places(session, name, source.device)
    return session


def check_places(session: Any, name: str, device: Device) -> None:
    """Refuse a session that computes elsewhere than asked.

    Raises:
        IncompatibleError: the provider is not there, or did not get all convolutions and matrix products.
    """
    if name not in session.get_providers():
        raise IncompatibleError(
            f"ONNX Runtime fell back from {device} to {session.get_providers()[0]}", "run: vggdeploy doctor"
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before ONNX Runtime 1.24
        return
    elsewhere = [
        f"{node.op_type} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != name
        for node in part.get_nodes()
        if node.op_type in _HEAVY
    ]
    if elsewhere:
        raise IncompatibleError(
            f"on {device} ONNX Runtime runs {counted(len(elsewhere), 'layer')} elsewhere, the first: {elsewhere[0]}",
            "use --device cuda, or export another precision",
        )


@functools.cache
def _preload() -> None:
    """Find the CUDA and cuDNN libraries of the ``nvidia-*`` packages, which are on no search path. Once a process."""
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it does not find; stdout may be somebody's JSON
            ort.preload_dlls(directory="")


@functools.cache
def _register_rtx() -> str:
    """Load the plugin; returns its provider's name. Once a process: a second registration is an error."""
    _check_packages("cuda+rtx")
    plugin = importlib.import_module(RTX_MODULE)
    name = str(plugin.get_ep_name())
    ort.register_execution_provider_library(name, plugin.get_library_path())
    return name


def _rtx_device(device: Device) -> Any:
    name = _register_rtx()
    devices = [d for d in ort.get_ep_devices() if d.ep_name == name]
    if device.index >= len(devices):
        raise IncompatibleError(
            f"the TensorRT for RTX plugin finds {len(devices)} GPUs, not {device}",
            "it needs an NVIDIA RTX GPU (Ampere or newer) and its driver",
        )
    return devices[device.index]


def probe(device: Device) -> Availability:
    """Whether a provider runs here: a tiny network has to be computed by it. ONNX Runtime lists what it was built with."""
    version = str(ort.__version__)
    if device.kind == "cpu":
        return Availability(True, "cpu", version=version, lacks=(Precision.BF16,))  # its convolutions and pools
    try:
        _check_packages(device.kind)
        check_driver()  # first, since ONNX Runtime writes lines of its own on stderr when its libraries do not load
        _check_runs(device)
    except IncompatibleError as error:
        return Availability(False, str(device), error.cause, error.hint, version)
    return Availability(True, str(device), version=version)


def _check_packages(kind: str) -> None:
    version = ort.__version__
    if kind == "cuda+rtx":
        if not hasattr(ort, "register_execution_provider_library"):
            raise IncompatibleError(f"onnxruntime {version} has no plugins", "pip install -U onnxruntime")
        if not installed(RTX_MODULE):
            raise MissingDependencyError(f"the plugin {_RTX_PACKAGE} is not installed", f"pip install {_RTX_PACKAGE}")
    elif PROVIDERS[kind] not in ort.get_available_providers():
        raise IncompatibleError(
            f"the installed onnxruntime is built without {PROVIDERS[kind]}",
            "pip uninstall onnxruntime && pip install 'vggdeploy[gpu]'",
        )
    elif kind == "cuda+tensorrt":
        _check_tensorrt()


def _check_tensorrt() -> None:
    """The provider is linked with TensorRT 10; vggdeploy[gpu] brings what is newest, and that cannot serve it."""
    here = package_version("tensorrt") or "none"
    if here.startswith("10."):
        return
    try:
        ctypes.CDLL(_TENSORRT)
    except OSError:
        raise IncompatibleError(
            f"ONNX Runtime's TensorRT provider needs {_TENSORRT}; the installed tensorrt is {here}",
            "pip install 'tensorrt==10.*' (beside it TensorRT 11's own engines cannot run), or use --device cuda",
        ) from None


def _check_runs(device: Device) -> None:
    wrong = _attempt(device)
    if wrong:
        raise IncompatibleError(wrong, "check nvidia-smi and the driver, or use --device cpu")


@functools.cache
def _attempt(device: Device) -> str:
    """Why the tiny network does not run on the device; empty when it does. Once a process: it takes a second."""
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    try:
        session = open_on(tiny_onnx.source(device), tiny_onnx.onnx_bytes(tiny_onnx.weights()), options)
        session.run(None, {tiny_onnx.INPUT.name: tiny_onnx.images(1)})
    except IncompatibleError as error:
        return error.cause
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        return f"ONNX Runtime cannot use {device}: {first_line(error)}"
    return ""
