"""How a session uses a GPU, and what the sessions that have one can do beside ``run``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from vggdeploy.errors import UsageError

MAX_CONTEXTS = 64

# What a session on the CPU is set up for: a short answer, or many answers a second from several calls at once.
Hint = Literal["latency", "throughput"]


@dataclass(frozen=True)
class GpuOptions:
    """Settings of a session on a GPU.

    ``contexts``: how many batches run at the same time, each with buffers and scratch memory of its own; they are made
    when they are needed. ``graphs``: capture CUDA graphs. ``graph_batches``: of these batch sizes only; empty: those
    that the engine was built with, else every size that comes a second time. ``cache``: the directory of what was
    compiled on this machine; default: in the user's cache.
    """

    contexts: int = 4
    graphs: bool = True
    graph_batches: tuple[int, ...] = ()
    cache: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.contexts <= MAX_CONTEXTS:
            raise UsageError(f"{self.contexts} contexts", f"give 1 to {MAX_CONTEXTS}")
        if any(size < 1 for size in self.graph_batches):
            raise UsageError(f"CUDA graphs for batches of {self.graph_batches}", "give sizes above 0")


class Handle(Protocol):
    """A batch under way."""

    def result(self) -> dict[str, Any]: ...


@runtime_checkable
class GpuSession(Protocol):
    """What a session on a GPU has beside `vggdeploy.runtime.base.Session`."""

    def run_async(self, feeds: Mapping[str, Any]) -> Handle: ...
    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, stream: int | None = None
    ) -> dict[str, Any]: ...
