"""Requests that arrive when they are due, whether earlier ones are answered or not: LoadGen's ``server`` scenario.

LoadGen counts a latency from the moment at which the request was due, so what waits, anywhere, is in it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from http.client import HTTPException
from threading import local
from typing import Any

import msgspec
import numpy as np

from vggdeploy.bench.loadgen.drive import issue_to
from vggdeploy.bench.loadgen.scenarios import Load
from vggdeploy.bench.loadgen.sut import Answering
from vggdeploy.bench.messages import ServerLoadReply
from vggdeploy.bench.remote.clients import Client, connect
from vggdeploy.bench.remote.questions import FAILURES, Questions, Tally, no_answer
from vggdeploy.parity.reference import Array

_WARM_CALLS = 5


class ServerUnderTest(Answering):
    """A server, asked over so many connections at a time; a request that finds none free waits in here, and ``queue_ms`` says
    how long."""

    def __init__(self, questions: Questions, load: Load, connections: int) -> None:
        super().__init__(load, workers=connections)
        self._questions = questions
        self._clients: deque[Client] = deque(connect(questions.target) for _ in range(connections))
        self._mine = local()
        self.tally = Tally(questions)

    def _run(self, rows: list[int]) -> Array | None:
        (row,) = rows
        client = self._clients.pop()  # the one that was used last: it is warm
        try:
            self._mine.answer = (row, client, client.infer(self._questions.requests[row]))
        except FAILURES as error:
            self.tally.failed(error)
        finally:
            self._clients.append(client)
        return None

    def _answer(self, samples: Sequence[Any]) -> None:
        self._mine.answer = None
        super()._answer(samples)
        if self._mine.answer is None:
            return
        try:
            self.tally.answered(*self._mine.answer)  # read only now, when LoadGen has its time
        except Exception as error:  # whatever it is: without this worker LoadGen may wait for ever
            self.error = error

    def milliseconds(self, samples: int) -> float:
        times, clients = [], list(self._clients)
        for number in range(max(_WARM_CALLS, len(clients))):  # every connection is opened before the clock runs
            start = time.perf_counter()
            try:
                clients[number % len(clients)].infer(self._questions.requests[number % len(self._questions)])
            except (OSError, HTTPException) as error:
                raise no_answer(self._questions.target, error) from error
            times.append(time.perf_counter() - start)
        self.tally = Tally(self._questions)
        return float(np.median(times)) * 1e3

    def close(self) -> None:
        for client in self._clients:
            client.close()


def arriving(questions: Questions, connections: int, load: Load) -> ServerLoadReply:
    """LoadGen's ``load``; each of its queries is one request.

    Raises:
        VggdeployError: the server answers nothing under load.
    """
    system = ServerUnderTest(questions, load, connections)
    try:
        issued = issue_to(system, len(questions), load)
    finally:
        system.close()
    tally = system.tally
    if tally.words:
        issued = msgspec.structs.replace(issued, valid=False, failed=tally.words)
    return ServerLoadReply(
        issued=issued, failed=tally.failures, misplaced=tally.misplaced, changed=tally.changed, foreign=tally.foreign,
        client_cores=tally.client_cores,
    )  # fmt: skip
