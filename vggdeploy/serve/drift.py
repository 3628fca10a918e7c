"""Whether callers send other images, or get other answers, than the model was tested on; no image is kept."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.bundle.store import now
from vggdeploy.engine.async_engine import Answer
from vggdeploy.engine.embedding import SCORES
from vggdeploy.engine.predictions import probabilities
from vggdeploy.parity.changes import ChangeTest
from vggdeploy.parity.population import (
    CLASS,
    OF_ANSWERS,
    OF_IMAGES,
    SIZE,
    Values,
    answer_statistics,
    bin_count,
    bins_of,
    image_statistics,
    size_statistic,
)  # fmt: skip
from vggdeploy.records.drift import DriftReport, DriftStatistic
from vggdeploy.serve.aside import Aside
from vggdeploy.serve.drift_metrics import DriftMetrics
from vggdeploy.serve.pictures import Pictures
from vggdeploy.serve.served import Served
from vggdeploy.serve.telemetry import Metrics, say

LEVEL = 0.01  # the chance of any false alarm, ever
PER_SECOND = 20.0  # requests that are looked at
STATISTICS = (*OF_IMAGES, SIZE, *OF_ANSWERS, CLASS)
_FIRST = "the server's first requests"
_RECENT = 500  # requests that a mean of now weighs, about
_NO_RECORD = "the bundle has no record of its test images: requests are compared with the first ones; export it again"


class _Look(NamedTuple):
    payload: Any  # bytes of an image file, or a row of pixels; None where there is nothing to be measured
    outputs: Mapping[str, NDArray[Any]]
    manifest: Manifest


class _Watched:
    """One statistic. ``usual``: the mean of what it is compared with."""

    def __init__(self, name: str, manifest: Manifest, random: np.random.Generator) -> None:
        classes = manifest.spec.classes or 1
        known = manifest.population
        counts = known.counts.get(name) if known else None
        self.fits = counts is not None and len(counts) == bin_count(name, classes)
        self.usual = known.means.get(name) if known and self.fits else None
        self.against = known.data if known and self.fits else _FIRST
        blank = (0,) * bin_count(name, classes)
        self.test = ChangeTest(counts if counts is not None and self.fits else blank, random)
        self.mean: float | None = None
        self.alarm_since = ""

    def observe(self, name: str, value: float) -> None:
        self.test.observe(int(bins_of(name, np.array([value]))[0]))
        if name != CLASS:
            weight = 1 / min(self.test.observed, _RECENT)
            self.mean = value if self.mean is None else self.mean + weight * (value - self.mean)


class Drift:
    """Watches the requests of one model.

    Up to 20 a second are looked at, in a thread of the lowest priority. A new version of the model begins anew.

    Args:
        processes: that watch the same requests: each may raise a false alarm, so each has its share of the level.
        seed: of the ties that are broken at random; None: the system's randomness.
    """

    def __init__(self, served: Served, metrics: Metrics, *, processes: int = 1, seed: int | None = None) -> None:
        self._served = served
        self._level = LEVEL / processes
        self._random = np.random.default_rng(seed)
        self._metrics = DriftMetrics(metrics.registry)
        self._pictures = Pictures(served.settings)
        self._lock = threading.Lock()
        self._tokens, self._filled = PER_SECOND, time.monotonic()
        self._skipped = 0
        self._begin(served.engine.bundle.manifest)
        self._aside: Aside[_Look] = Aside("drift", self._look, end=self._pictures.close)
        self._aside.start()

    @property
    def enough(self) -> float:
        """The natural logarithm of the capital that is an alarm: the level is shared by all statistics."""
        return math.log(len(STATISTICS) / self._level)

    def offer(self, question: Any, answer: Answer) -> None:
        """Perhaps look at a request, later; never waits."""
        moment = time.monotonic()
        self._tokens = min(PER_SECOND, self._tokens + (moment - self._filled) * PER_SECOND)
        self._filled = moment
        waiting = self._served.batching.waiting > self._served.batching.max_batch
        if self._tokens < 1 or waiting:
            self._skipped += 1
            return
        self._tokens -= 1
        outputs = {name: rows[:1].copy() for name, rows in answer.outputs.items() if name in SCORES}
        payload = question if isinstance(question, bytes) else _pixels(question, answer.manifest)
        if not self._aside.offer(_Look(payload, outputs, answer.manifest), len(payload) if payload is not None else 0):
            self._skipped += 1

    def report(self) -> DriftReport:
        """What is known so far."""
        with self._lock:
            manifest, since = self._manifest, self._since
            statistics = tuple(self._about(name, watched) for name, watched in self._watched.items())
        return DriftReport(
            model=self._served.model,
            digest=manifest.digest,
            since=since,
            created=now(),
            level=self._level,
            alarm=any(one.alarm for one in statistics),
            skipped=self._skipped,
            statistics=statistics,
            note="" if manifest.population else _NO_RECORD,
        )

    def note(self) -> None:
        """Write it into the metrics."""
        self._metrics.note(self.report())

    def settle(self, seconds: float = 30.0) -> bool:
        """Wait until all that was offered is looked at; whether it is."""
        return self._aside.settle(seconds)

    def close(self) -> None:
        self._aside.close()

    def _begin(self, manifest: Manifest) -> None:
        self._manifest, self._since = manifest, now()
        self._watched = {name: _Watched(name, manifest, self._random) for name in STATISTICS}

    def _about(self, name: str, watched: _Watched) -> DriftStatistic:
        return DriftStatistic(
            name=name,
            against=watched.against,
            observed=watched.test.observed,
            mean=None if watched.mean is None else round(watched.mean, 4),
            usual=watched.usual,
            evidence=round(watched.test.evidence / math.log(10), 4),
            enough=round(self.enough / math.log(10), 4),
            alarm=bool(watched.alarm_since),
            since_alarm=watched.alarm_since,
        )

    def _look(self, look: _Look) -> None:
        """In the thread: one request."""
        measured: dict[str, Values] = {}
        if isinstance(look.payload, bytes):
            measured |= image_statistics(self._pictures.prepared(look.payload, look.manifest.preprocess)[None])
            if size := self._pictures.size(look.payload):
                measured[SIZE] = np.array([size_statistic(*size)])
        elif look.payload is not None:
            measured |= image_statistics(look.payload)
        if look.outputs:
            measured |= answer_statistics(probabilities(look.outputs))
        with self._lock:
            if look.manifest.digest != self._manifest.digest:
                self._begin(look.manifest)
            for name, values in measured.items():
                watched = self._watched[name]
                watched.observe(name, float(values[0]))
                if watched.test.best >= self.enough and not watched.alarm_since:
                    watched.alarm_since = now()
                    say("drift", statistic=name, mean=watched.mean, usual=watched.usual, requests=watched.test.observed)


def _pixels(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> NDArray[np.uint8] | None:
    """The first row, ``uint8 [1, H, W, C]``; None where it is not pixels."""
    found = arrays.get(manifest.input.name)
    return found[:1].copy() if found is not None and found.dtype == np.uint8 else None
