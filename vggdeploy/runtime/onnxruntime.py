"""The ONNX Runtime backend. A GPU that was asked for and not given is an error, never a silent CPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import onnxruntime as ort

from vggdeploy.errors import BundleError, IncompatibleError, VggdeployError
from vggdeploy.optional import first_line
from vggdeploy.runtime.base import Array, Availability, Source
from vggdeploy.types import Device

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_QUIET = 3  # ONNX Runtime's severity for errors only


class OnnxRuntimeSession:
    """One ONNX file in ONNX Runtime. ``run`` may be called from several threads at once."""

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self._source = source
        self._session: Any = None
        self._names = [spec.name for spec in source.outputs]

    def __enter__(self) -> Self:
        source = self._source
        options = ort.SessionOptions()
        options.intra_op_num_threads = source.thread_count
        options.log_severity_level = _QUIET
        provider: Any = _PROVIDERS[source.device.kind]
        if source.device.kind == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            provider = (provider, {"device_id": source.device.index, "cudnn_conv_algo_search": "EXHAUSTIVE"})
        try:
            session = ort.InferenceSession(source.path, options, providers=[provider])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            kind = IncompatibleError if source.device.kind == "cuda" else BundleError
            raise kind(
                f"ONNX Runtime cannot open {source.path.name}: {first_line(error)}", "run: vggdeploy doctor"
            ) from error
        if _PROVIDERS[source.device.kind] not in session.get_providers():
            raise IncompatibleError(
                f"ONNX Runtime fell back from {source.device} to {session.get_providers()[0]}", "run: vggdeploy doctor"
            )
        found = {t.name for t in session.get_inputs()}, {t.name for t in session.get_outputs()}
        if found[0] != {s.name for s in self.inputs} or not set(self._names) <= found[1]:
            raise BundleError(f"{source.path.name} has not the inputs and outputs of the manifest", "export it again")
        self._session = session
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._session.run(self._names, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise VggdeployError(
                f"ONNX Runtime failed: {first_line(error)}", "try a smaller batch, or verify the bundle"
            ) from error
        return dict(zip(self._names, results, strict=True))


def probe(device: Device) -> Availability:
    """The CPU always works. CUDA counts only after a session really ran there."""
    if device.kind == "cpu":
        return Availability(True, "cpu", version=ort.__version__)
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        return Availability(
            False, str(device), "the installed onnxruntime is the CPU build (no CUDA provider)",
            "pip uninstall onnxruntime && pip install 'vggdeploy[gpu]'", ort.__version__,
        )
    if not ort.get_ep_devices() or not any(d.ep_name == _PROVIDERS["cuda"] for d in ort.get_ep_devices()):
        return Availability(
            False, str(device), "ONNX Runtime lists the CUDA provider, but finds no CUDA device",
            "install the NVIDIA driver, or run on the CPU: --device cpu", ort.__version__,
        )
    return Availability(True, str(device), version=ort.__version__)


SESSION = OnnxRuntimeSession
