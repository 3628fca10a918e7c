"""What the routes of one server process share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Request

from vggdeploy.batching import AsyncEngine
from vggdeploy.engine import Engine
from vggdeploy.errors import Overloaded
from vggdeploy.serve.metrics import Metrics
from vggdeploy.serve.settings import Settings


@dataclass
class Served:
    """The engine that is served, and whether it still takes requests."""

    many: AsyncEngine
    settings: Settings
    metrics: Metrics
    draining: bool = False

    @property
    def engine(self) -> Engine:
        return self.many.engine

    @property
    def model(self) -> str:
        return self.engine.bundle.manifest.name

    @property
    def ready(self) -> bool:
        """Whether requests are taken. A failure of the last one changes nothing: a server that is left out by its
        balancer for that would get no request that could show it to be well.
        """
        return not self.draining and not self.engine.closed

    def refuse_when_full(self) -> None:
        """Before a body is read: one that nobody has room for need not arrive.

        Raises:
            Overloaded: the queue is full.
        """
        waiting = self.many.waiting
        if waiting >= self.settings.queue:
            raise Overloaded(f"{waiting} requests are waiting already", "try again a little later")


def served(request: Request) -> Served:
    """The state of the application that a request came to."""
    return cast(Served, request.app.state.served)
