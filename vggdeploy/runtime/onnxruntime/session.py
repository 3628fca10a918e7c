"""The ONNX Runtime backend. A GPU that was asked for and not given is an error, never a silent CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from vggdeploy.errors import BundleError, IncompatibleError, VggdeployError, first_line
from vggdeploy.runtime.base import Array, Kernel, Source
from vggdeploy.runtime.gpu.graphs import MAX_GRAPHS
from vggdeploy.runtime.onnxruntime.profile import read_calls
from vggdeploy.runtime.onnxruntime.providers import EXACT_FP8, EXACT_INT8, open_on, probe
from vggdeploy.types import Precision

# ONNX Runtime's severity for what ends the process: errors are raised, and its log could hold a model's escape codes.
_QUIET = 4
_SMALL = 16 * 2**20  # bytes of a file


class OnnxRuntimeSession:
    """One ONNX file in ONNX Runtime. ``run`` may be called from several threads at once.

    On ``cuda`` the work of a batch size is captured as a CUDA graph. ``graphs_refused`` has the reason where that
    could not be, and the session runs without.
    """

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self.graphs_refused = ""
        self._source = source
        self._session: Any = None
        self._graphs: GraphRunner | None = None
        self._profile: tempfile.TemporaryDirectory[str] | None = None
        self._names = [spec.name for spec in source.outputs]

    def __enter__(self) -> Self:
        source = self._source
        graphs = source.device.kind == "cuda" and source.gpu.graphs
        session = self._open(graphs=True) if graphs else None
        if session is None:
            graphs, session = False, self._open(graphs=False)
        names = {t.name for t in session.get_inputs()}, {t.name for t in session.get_outputs()}
        if names[0] != {s.name for s in self.inputs} or not set(self._names) <= names[1]:
            raise BundleError(f"{source.name} has not the inputs and outputs of the manifest", "export it again")
        self._session = session
        self._graphs = GraphRunner(session, source) if graphs else None
        return self

    def _open(self, *, graphs: bool) -> Any:
        """A session; with ``graphs`` None, and the reason noted, where the graph cannot be captured."""
        source = self._source
        options = ort.SessionOptions()
        options.intra_op_num_threads = source.thread_count
        # The arena keeps what every batch size needed, rounded up to powers of two: of VGG-16 more than its weights.
        options.enable_cpu_mem_arena = source.hint != "memory"
        options.log_severity_level = _QUIET
        if source.profile:
            self._profile = tempfile.TemporaryDirectory(prefix="vggdeploy-profile-")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profile.name) / "calls")
        if source.precision is Precision.INT8 and source.device.kind == "cpu" and not source.cannot_saturate:
            options.add_session_config_entry(*EXACT_INT8)
        if source.precision is Precision.FP8:
            options.graph_optimization_level = EXACT_FP8
        try:
            with source.open() as file:
                # A pattern is a block for a batch size beside what the arena holds already. It spares a call some
                # microseconds, which only a tiny network notices, and takes 0.7 GiB of memory for VGG-16.
                options.enable_mem_pattern = source.device.kind != "cpu" or file.size < _SMALL
                return open_on(source, file.path, options, graphs=graphs)
        except VggdeployError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if graphs:
                self.graphs_refused = first_line(error)
                return None
            kind = BundleError if source.device.kind == "cpu" else IncompatibleError
            raise kind(
                f"ONNX Runtime cannot open {source.name}: {first_line(error)}", "run: vggdeploy doctor"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._graphs = None
        self._session = None
        if self._profile is not None:
            self._profile.cleanup()

    def kernels(self) -> list[tuple[Kernel, ...]]:
        """See `vggdeploy.runtime.base.ProfiledSession`."""
        return read_calls(Path(self._session.end_profiling()).read_bytes())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            if self._graphs is not None:
                return self._graphs.run(feeds)
            results = self._session.run(self._names, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise VggdeployError(
                f"ONNX Runtime failed: {first_line(error)}", "try a smaller batch, or verify the bundle"
            ) from error
        return dict(zip(self._names, results, strict=True))


SESSION = OnnxRuntimeSession
__all__ = ["SESSION", "OnnxRuntimeSession", "probe"]


@dataclass
class _Bound:
    """The buffers of one batch size, and the options of its runs."""

    binding: Any
    options: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class GraphRunner:
    """Runs an ``InferenceSession`` that was opened with ``enable_cuda_graph``."""

    def __init__(self, session: Any, source: Source) -> None:
        self._session = session
        self._source = source
        self._lock = Lock()
        self._bound: dict[int, _Bound] = {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        source = self._source
        batch = len(feeds[source.inputs[0].name])
        with self._lock:
            bound = self._bound.get(batch)
            if bound is None:
                graph = len(self._bound) < MAX_GRAPHS and batch in (source.gpu.graph_batches or (batch,))
                bound = self._bind(batch, graph=batch if graph else -1)
                if graph:
                    self._bound[batch] = bound
            for name, value in bound.inputs.items():
                value.update_inplace(np.ascontiguousarray(feeds[name]))
            self._session.run_with_iobinding(bound.binding, bound.options)
            return {name: value.numpy() for name, value in bound.outputs.items()}

    def _bind(self, batch: int, *, graph: int) -> _Bound:
        source = self._source
        binding = self._session.io_binding()
        values = {}
        for spec in (*source.inputs, *source.outputs):
            values[spec.name] = ort.OrtValue.ortvalue_from_shape_and_type(
                (batch, *spec.item_shape), np.dtype(spec.dtype).type, "cuda", source.device.index
            )
        for spec in source.inputs:
            binding.bind_ortvalue_input(spec.name, values[spec.name])
        for spec in source.outputs:
            binding.bind_ortvalue_output(spec.name, values[spec.name])
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        inputs = {s.name: values[s.name] for s in source.inputs}
        return _Bound(binding, options, inputs, {s.name: values[s.name] for s in source.outputs})
