"""A worker of `bench` in the test's own process, for backends that are fakes themselves and so are in no other process."""

from __future__ import annotations

import os
import time

from vggdeploy.bench.messages import StartRequest
from vggdeploy.bench.worker import Desk


class InlineWorker:
    """What `vggdeploy.bench.crew.Worker` does, without its process."""

    def __init__(self, start: StartRequest, descriptor: int) -> None:
        self.spawned, self.pid = time.monotonic_ns(), os.getpid()
        self._desk = Desk(start)

    def ask(self, request, answer):
        found = self._desk.answer(request)
        assert isinstance(found, answer)
        return found

    def close(self, *, kill: bool = False) -> None:
        self._desk.close()
