"""Callers that each wait for their answer before they ask again: a closed loop.

A slow answer keeps its caller from asking, so the times are those of so many callers, and of no rate of arrivals.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from vggdeploy.bench.interference import CpuWatch
from vggdeploy.bench.loadgen.scenarios import Issued
from vggdeploy.bench.messages import ServerLoadReply
from vggdeploy.bench.remote.clients import Client, connect
from vggdeploy.bench.remote.questions import FAILURES, Questions, Tally
from vggdeploy.bench.stats import percentile
from vggdeploy.errors import VggdeployError

WINDOWS = 5  # equal parts of the time, whose rates have to agree
_WARM_SHARE = 0.1  # of the time, before anything is counted


class _Callers:
    def __init__(self, questions: Questions, tally: Tally, seconds: float) -> None:
        self._questions = questions
        self._tally = tally
        self.begin = time.perf_counter() + seconds * _WARM_SHARE
        self.end = self.begin + seconds
        self.times: list[float] = []  # of the requests that were sent while the clock ran, whenever their answers came
        self.ends: list[float] = []  # when answers came
        self.error: Exception | None = None

    def call(self, client: Client, first: int) -> None:
        """One caller, until the time is over and an answer counts: a slow server is slow, and no error."""
        row = first
        try:
            while self.error is None and (time.perf_counter() < self.end or not self.times):
                row = (row + 1) % len(self._questions)
                self._ask(client, row)
        except Exception as error:  # whatever it is: without this caller the others' times would look whole
            self.error = error

    def _ask(self, client: Client, row: int) -> None:
        start = time.perf_counter()
        try:
            answer = client.infer(self._questions.requests[row])
        except FAILURES as error:
            self._tally.failed(error)
            if time.perf_counter() >= self.end and not self.times:  # nobody waits for an answer that may never come
                raise VggdeployError(f"no answer came in time: {self._tally.words}", "see the server's log") from error
            return
        now = time.perf_counter()
        self.ends.append(now)
        # One that ends after the clock is among the slow ones: left out, every time would look shorter than it is.
        if self.begin <= start and (start < self.end or not self.times):
            self.times.append(now - start)
        self._tally.answered(row, client, answer)


def waiting(questions: Questions, callers: int, seconds: float) -> ServerLoadReply:
    """``callers`` for ``seconds``, after a warm-up.

    Raises:
        VggdeployError: the server answers nothing under load.
    """
    clients = [connect(questions.target) for _ in range(callers)]
    tally, watch = Tally(questions), CpuWatch()
    work = _Callers(questions, tally, seconds)
    threads = [
        threading.Thread(target=work.call, args=(client, number * len(questions) // callers), daemon=True)
        for number, client in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cores, others = tally.client_cores, watch.others()
    for client in clients:
        client.close()
    if work.error is not None:
        raise work.error
    times = [taken * 1e3 for taken in work.times]
    counts, _ = np.histogram(work.ends, np.linspace(work.begin, work.end, WINDOWS + 1))
    # Answers within the clock, whenever they were asked for; of a server that gives none, those that were waited for.
    rate = counts.sum() / seconds or len(times) / (max(work.ends) - work.begin)
    issued = Issued(
        valid=not tally.words,
        words="",
        queries=len(times),
        samples_per_second=float(rate),
        p50_ms=float(np.median(times)),
        p90_ms=percentile(times, 90),
        p99_ms=percentile(times, 99),
        others=others,
        failed=tally.words,
    )
    return ServerLoadReply(
        issued=issued, failed=tally.failures, misplaced=tally.misplaced, changed=tally.changed, foreign=tally.foreign,
        client_cores=cores, windows=tuple(float(count) * WINDOWS / seconds for count in counts),
    )  # fmt: skip
