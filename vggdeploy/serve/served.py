"""One open model as the routes see it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vggdeploy.engine.async_engine import Answer, AsyncEngine
from vggdeploy.engine.engine import Engine
from vggdeploy.errors import Overloaded, VggdeployError
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.statistics import Statistics
from vggdeploy.serve.telemetry import Metrics

if TYPE_CHECKING:
    from vggdeploy.serve.tracing import Trace


@dataclass
class Served:
    """The engine that is served, and whether it still takes requests."""

    batching: AsyncEngine
    settings: Settings
    metrics: Metrics
    draining: bool = False
    name: str = ""  # of a model of several; else it is the manifest's
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # milliseconds of the last answers
    # Who is told of each question and its answer, on the event loop: they take no time, and change nothing.
    watchers: list[Callable[[Any, Answer], None]] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def engine(self) -> Engine:
        return self.batching.engine

    @property
    def model(self) -> str:
        return self.name or self.engine.bundle.manifest.name

    @property
    def ready(self) -> bool:
        """Whether requests are taken. A failure of the last one changes nothing: a server that is left out by its
        balancer for that would get no request that could show it to be well.
        """
        return not self.draining and not self.engine.closed

    def answered(self, question: Any, answer: Answer, trace: Trace | None) -> None:
        """Count the graph's answer to a request, and tell who watches.

        Args:
            question: the bytes of an image file, or arrays by their names.
        """
        self.metrics.answer(answer)
        self.recent.append(answer.decode_ms + answer.queue_ms + answer.compute_ms)
        self.statistics.answered(answer)
        if trace is not None:
            trace.answered(answer)
        for tell in self.watchers:
            tell(question, answer)

    def refuse_when_full(self) -> None:
        """Before a body is read: one that nobody has room for need not arrive.

        Raises:
            Overloaded: the queue is full.
        """
        waiting = self.batching.waiting
        if waiting >= self.settings.queue:
            raise Overloaded(f"{waiting} requests are waiting already", "try again a little later")


class NotLoaded(VggdeployError):
    """A model that is not open at present."""


def unloaded(name: str) -> NotLoaded:
    """What is said to who asks for a model that somebody closed."""
    return NotLoaded(f"the model '{name}' is unloaded", "load it first")
