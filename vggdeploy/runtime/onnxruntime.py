"""The ONNX Runtime backend. A GPU that was asked for and not given is an error, never a silent CPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import onnxruntime as ort

from vggdeploy.errors import BundleError, IncompatibleError, VggdeployError
from vggdeploy.optional import first_line
from vggdeploy.runtime.base import Array, Source
from vggdeploy.runtime.onnxruntime_graphs import GraphRunner
from vggdeploy.runtime.onnxruntime_providers import open_on, probe

_QUIET = 3  # ONNX Runtime's severity for errors only
_UNTOLD = 4  # … for what ends the process: of an attempt that may fail


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
        self._names = [spec.name for spec in source.outputs]

    def __enter__(self) -> Self:
        source = self._source
        graphs = source.device.kind == "cuda" and source.gpu.graphs
        session = self._open(graphs=True) if graphs else None
        if session is None:
            graphs, session = False, self._open(graphs=False)
        found = {t.name for t in session.get_inputs()}, {t.name for t in session.get_outputs()}
        if found[0] != {s.name for s in self.inputs} or not set(self._names) <= found[1]:
            raise BundleError(f"{source.path.name} has not the inputs and outputs of the manifest", "export it again")
        self._session = session
        self._graphs = GraphRunner(session, source) if graphs else None
        return self

    def _open(self, *, graphs: bool) -> Any:
        """A session; with ``graphs`` None, and the reason noted, where the graph cannot be captured."""
        source = self._source
        options = ort.SessionOptions()
        options.intra_op_num_threads = source.thread_count
        options.log_severity_level = _UNTOLD if graphs else _QUIET
        try:
            return open_on(source, source.path, options, graphs=graphs)
        except VggdeployError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if graphs:
                self.graphs_refused = first_line(error)
                return None
            kind = BundleError if source.device.kind == "cpu" else IncompatibleError
            raise kind(
                f"ONNX Runtime cannot open {source.path.name}: {first_line(error)}", "run: vggdeploy doctor"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._graphs = None
        self._session = None

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
