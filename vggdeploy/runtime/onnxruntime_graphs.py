"""CUDA graphs in ONNX Runtime: the same buffers at the same addresses every time, one graph for each batch size.

ONNX Runtime tells graphs apart by the run's ``gpu_graph_id``; −1 runs without one. It captures on the first runs of an
id, and does not allow runs at the same time while graphs are on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort

from vggdeploy.runtime.base import Array, Source
from vggdeploy.runtime.graphs import MAX_GRAPHS


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
