"""One page of metrics for all replicas of a Ray Serve deployment, whichever of them is asked."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vggdeploy.engine.async_engine import Answer
from vggdeploy.engine.microbatch import BatchDone
from vggdeploy.errors import DeadlineError
from vggdeploy.serve.queue_time import Load
from vggdeploy.serve.telemetry import Metrics
from vggdeploy.system.ray import ray_module

_EVERY_SECONDS = 2.0  # a replica that is killed takes the counts of so long with it
_LIVING_SECONDS = 15.0  # since a replica was heard of
_ANSWER_SECONDS = 5.0
_ENDED = 64  # pages of replicas that ended are kept singly: a page takes 15 ms to read, and a busy deployment has many


class Ledger:
    """What each replica last said of itself; one actor a deployment.

    What a replica counted stays when it ends, as a counter must never fall. What it only had, such as requests that wait, goes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, str]] = {}

    def tell(self, replica: str, page: bytes) -> None:
        self._told[replica] = (self._clock(), page.decode())
        silent = sorted((moment, name) for name, (moment, _) in self._told.items() if not self._lives(moment))
        if len(silent) > _ENDED:  # those that ended long ago become one
            ended = [(self._told.pop(name)[1], False) for _, name in silent[: _ENDED // 2]]
            self._told[""] = -math.inf, _together(ended).decode()

    def page(self) -> bytes:
        """All of them together, in Prometheus' text format."""
        return _together([(text, self._lives(moment)) for moment, text in self._told.values()])

    def _lives(self, moment: float) -> bool:
        return self._clock() - moment < _LIVING_SECONDS


def _together(pages: Iterable[tuple[str, bool]]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Together(pages))
    return generate_latest(registry)


class _Together:
    """A collector of the sums over several pages, each with whether its replica lives."""

    def __init__(self, pages: Iterable[tuple[str, bool]]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for text, living in self._pages:
            for family in text_string_to_metric_families(text):
                if family.type == "gauge" and (not living or family.name.endswith("_created")):
                    continue
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                sums = values.setdefault(family.name, {})
                for sample in family.samples:
                    key = sample.name, tuple(sample.labels.items())
                    # An information is a 1 with labels, however many say it.
                    sums[key] = 1.0 if family.name.endswith("_info") else sums.get(key, 0.0) + sample.value
        for name, family in families.items():
            for (sample_name, labels), value in values[name].items():
                family.add_sample(sample_name, dict(labels), value)
            yield family


class ReplicaMetrics(Metrics):
    """The counters of one replica, whose page is that of all. It tells the ledger every two seconds, and when it is asked."""

    def __init__(self, ledger: Any, load: Load) -> None:
        super().__init__()
        self._load = load
        self._ledger, self._name = ledger, uuid.uuid4().hex
        threading.Thread(target=self._go_on_telling, name="vggdeploy-metrics", daemon=True).start()

    @property
    def shared(self) -> bool:
        return True

    def answer(self, answer: Answer) -> None:
        super().answer(answer)
        self._load.answered(answer.queue_ms / 1e3)

    def batch(self, done: BatchDone) -> None:
        super().batch(done)
        self._load.computed(done.seconds)

    def text(self) -> bytes:
        """Raises DeadlineError where the ledger does not answer in time."""
        ray = ray_module()
        try:
            ray.get(self._tell(), timeout=_ANSWER_SECONDS)
            return bytes(ray.get(self._ledger.page.remote(), timeout=_ANSWER_SECONDS))
        except (ray.exceptions.RayError, TimeoutError):
            raise DeadlineError("the counts of the other replicas cannot be read", "try again a little later") from None

    def _tell(self) -> Any:
        return self._ledger.tell.remote(self._name, generate_latest(self.registry))

    def _go_on_telling(self) -> None:
        while True:
            self._tell()
            time.sleep(_EVERY_SECONDS)


def new_ledger() -> Any:
    """The actor, which lives as long as what holds it; another node starts it again where its own is lost."""
    return ray_module().remote(Ledger).options(num_cpus=0, max_restarts=-1).remote()
