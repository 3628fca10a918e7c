"""`vggdeploy serve --ray` under load: replicas that are killed, the metrics of all of them, and as many as the queue needs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from attacks.processes import called
from serve.ray_server import ray_server

from vggdeploy.system.machine import usable_cores
from vggdeploy.system.optional import installed

_REPLICA = b"ray::ServeReplica"
pytestmark = [
    pytest.mark.late,
    pytest.mark.skipif(not installed("ray"), reason="pip install 'vggdeploy[ray]'"),
    pytest.mark.skipif(usable_cores() < 2, reason="two replicas take a core each"),
]
Golden = tuple[np.ndarray, np.ndarray]


@contextmanager
def serving(bundle: Path, *options: object) -> Iterator[tuple[str, int]]:
    """URL and process number of the command, which ends in order."""
    with ray_server(bundle, *options) as (url, process):
        yield url, process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


@dataclass
class Callers:
    """Threads that ask for golden images, one after the other, and look at every answer."""

    url: str
    golden: Golden
    count: int
    rows: int = 1
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Callers:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _ask(self, number: int) -> None:
        images, logits = self.golden
        with httpx.Client(base_url=self.url, timeout=100) as client:
            name = client.post("/v2/repository/index").json()[0]["name"]
            turn = number
            while not self._ended.is_set():
                at = np.arange(turn, turn + self.rows) % len(images)
                turn += self.count
                images_at = images[at]
                tensor = {"name": "image", "datatype": "UINT8", "shape": images_at.shape, "data": images_at.tolist()}
                try:
                    reply = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                    continue
                with self.lock:
                    self._judge(reply, logits[at])

    def _judge(self, reply: httpx.Response, expected: np.ndarray) -> None:
        if reply.status_code == 200:
            found = np.asarray(reply.json()["outputs"][0]["data"], np.float32).reshape(expected.shape)
            if not np.allclose(found, expected, atol=1e-3):
                self.wrong.append("another answer than the golden one")
            self.answers["200"] += 1
            self.latest = time.monotonic()
        elif reply.status_code == 503 and reply.headers.get("retry-after") and reply.text:
            self.answers["503"] += 1
        else:
            self.wrong.append(f"{reply.status_code} {reply.headers} {reply.text[:200]}")


def metric(client: httpx.Client, start: str, *parts: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(start) and all(p in x for p in parts))


def living(pid: int) -> set[int]:
    return set(called(_REPLICA, pid))


def until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.3)


def test_killed_replicas_lose_no_answer_and_the_metrics_are_of_all(bundle_dir: Path, golden: Golden) -> None:
    with (
        serving(bundle_dir, "--workers", 2, "--min-workers", 2, "--timeout", 60) as (url, pid),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        until(lambda: metric(client, "vggdeploy_ready") == 2)
        with Callers(url, golden, 4) as quiet:
            time.sleep(4)
        assert not quiet.wrong
        assert set(quiet.answers) == {"200"}
        asked = quiet.answers["200"]
        # Whichever replica is asked, and both have worked.
        for _ in range(8):
            until(lambda: metric(client, "vggdeploy_requests_total{", '"200"', "infer") == asked, 10)
        with Callers(url, golden, 16) as callers:
            time.sleep(2)
            before = living(pid)
            assert len(before) == 2
            os.kill(min(before), signal.SIGKILL)  # one of them
            until(lambda: len(living(pid) - before) == 1 and min(before) not in living(pid))
            until(lambda: metric(client, "vggdeploy_ready") == 2)
            time.sleep(3)
            before = living(pid)
            for one in before:  # all of them, at once
                os.kill(one, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: len(living(pid) - before) == 2)
            until(lambda: callers.latest > killed + 1)
            time.sleep(3)
        print(callers.answers)
        assert not callers.wrong, (len(callers.wrong), callers.wrong[:5])
        assert callers.answers["200"] > 100


def test_there_are_more_replicas_while_requests_wait_and_fewer_afterwards(bundle_dir: Path, golden: Golden) -> None:
    options = ("--workers", 2, "--queue-time", 2, "--max-batch", 8)
    with serving(bundle_dir, *options) as (url, pid), httpx.Client(base_url=url, timeout=60) as client:
        assert len(living(pid)) == 1
        with Callers(url, golden, 16, rows=8) as callers:
            until(lambda: metric(client, "vggdeploy_ready") == 2)
        assert not callers.wrong, (len(callers.wrong), callers.wrong[:5])
        assert set(callers.answers) == {"200"}
        until(lambda: len(living(pid)) == 1, 180)
        assert client.get("/v2/health/ready").status_code == 200
