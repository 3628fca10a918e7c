"""What an engine's layers are made of, by the library's inspector, and what each takes, by its profiler.

Unproven: no engine was profiled on a GPU yet. The names' forms are those that engine dumps of TensorRT 10 and 11 show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vggdeploy.errors import VggdeployError
from vggdeploy.runtime.base import Kernel

# Metadata: "[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_relu]".
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
# A layer that copies into another format is named after the one that reads it: "Reformatting CopyNode for … to node_conv2d".
_COPIES = "Reformatting CopyNode"
# "{ForeignNode[node_permute...node_linear_2]}": from the first to the last.
_FOREIGN = re.compile(r"\{ForeignNode\[(.+)\.\.\.(.+)\]\}")


@dataclass(frozen=True)
class EngineLayer:
    """A layer as the inspector describes it: all that it says, by its own names for it."""

    name: str
    kind: str
    about: dict[str, Any]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The ONNX operators that it computes."""
        return onnx_nodes(self.name, str(self.about.get("Metadata") or ""))


def onnx_nodes(name: str, metadata: str = "") -> tuple[str, ...]:
    """The ONNX operators of an engine's layer: those of its metadata, else those that it is named after."""
    if name.startswith(_COPIES):
        return ()
    if found := _ONNX.findall(metadata):
        return tuple(dict.fromkeys(found))
    return tuple(_named(name))


def _named(name: str) -> Iterator[str]:
    for part in name.split(" + "):
        ends = _FOREIGN.search(part)
        yield from (ends[1], ends[2]) if ends else (part.strip(),)


def inspected(library: Any, engine: Any, context: Any = None) -> tuple[EngineLayer, ...]:
    """An engine's layers in order. With a context whose shapes are set, a dynamic batch has formats and types, too.

    Raises:
        VggdeployError: the library's answer is no list of layers.
    """
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    text = inspector.get_engine_information(library.LayerInformationFormat.JSON)
    try:
        return tuple(_layer(each) for each in json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise VggdeployError(
            "the engine inspector's answer is no list of layers", "run with --debug and report it"
        ) from error


def _layer(described: Any) -> EngineLayer:
    if isinstance(described, str):  # an engine that was built without details
        return EngineLayer(described, "", {})
    return EngineLayer(str(described["Name"]), str(described.get("LayerType") or ""), described)


class LayerTimes:
    """The times of an engine's layers, call by call. ``bridge`` is the library's ``IProfiler``, for a context."""

    def __init__(self, library: Any) -> None:
        self._under_way: list[tuple[str, float]] = []
        self._calls: list[list[tuple[str, float]]] = []

        def start(profiler: Any) -> None:
            library.IProfiler.__init__(profiler)

        def note(profiler: Any, layer_name: str, ms: float) -> None:
            self._under_way.append((layer_name, float(ms)))

        members = {"__init__": start, "report_layer_time": note}
        self.bridge: Any = type("ProfilerBridge", (library.IProfiler,), members)()

    def attach(self, context: Any) -> None:
        context.profiler = self.bridge
        context.enqueue_emits_profile = False  # else each launch would wait for its own end

    def end_call(self) -> None:
        """What was reported since the last call is one call's."""
        self._calls.append(self._under_way[:])
        self._under_way.clear()

    def kernels(self, layers: tuple[EngineLayer, ...]) -> list[tuple[Kernel, ...]]:
        """See `vggdeploy.runtime.base.ProfiledSession`."""
        known = {told.name: told for told in layers}

        def kernel(name: str, ms: float) -> Kernel:
            told = known.get(name) or EngineLayer(name, "", {})
            return Kernel(name, told.kind, told.nodes, ms)

        return [tuple(kernel(name, ms) for name, ms in call) for call in self._calls]
