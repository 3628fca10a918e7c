"""One model of a server, and its seat while it is open."""

from __future__ import annotations

import asyncio
import time

from vggdeploy.bundle.store import now
from vggdeploy.errors import VggdeployError
from vggdeploy.serve.catalogue import Place, Stamp
from vggdeploy.serve.served import Served

READY, LOADING, UNLOADED, UNAVAILABLE = "READY", "LOADING", "UNLOADED", "UNAVAILABLE"  # the words of Triton's index


class Seat:
    """An open model: who uses it, since when it is there, and what it takes."""

    def __init__(self, served: Served, taken: int) -> None:
        self.served = served
        self.bytes = taken
        self.since = now()
        self.opened = time.monotonic()
        self.users = 0
        self.idle = asyncio.Event()
        self.idle.set()


class Model:
    """One model, open or not."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.seat: Seat | None = None
        self.loading: asyncio.Task[VggdeployError | None] | None = None
        self.waiting = 0  # requests that wait until it is open
        self.used = time.monotonic()
        self.stamp: Stamp | None = place.stamp()
        self.reason = ""  # why it is not there
        self.failed = 0.0  # when it could not be opened
        self.tried: Stamp | None = None  # the version that could not be taken,
        self.pause = 0.0  # and how long it was left alone after that
        self.not_before = 0.0
        self.unloaded = False  # because somebody said so: no request opens it

    @property
    def name(self) -> str:
        return self.place.name or (self.seat.served.model if self.seat else "")

    @property
    def busy(self) -> bool:
        """Whether requests use it, or have waited for it and are about to."""
        return self.waiting > 0 or (self.seat is not None and self.seat.users > 0)

    @property
    def why(self) -> str:
        """Why it is not open, without what the log alone may say."""
        if self.state == UNAVAILABLE:
            return "unloaded" if self.unloaded else "it could not be opened; the server's log has the reason"
        return "it is opened when it is asked for" if self.state == UNLOADED else ""

    @property
    def state(self) -> str:
        if self.seat is not None:
            return READY
        if self.loading is not None:
            return LOADING
        return UNAVAILABLE if self.reason else UNLOADED
