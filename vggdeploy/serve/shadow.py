"""A second model that is asked what callers ask the first one, off their path, until it is known whether it may take over."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.bundle.store import now
from vggdeploy.bundle.trust import Trust
from vggdeploy.engine.async_engine import Answer
from vggdeploy.engine.engine import Engine, graph_input, load
from vggdeploy.engine.loading import OpenVariant
from vggdeploy.engine.predictions import need_scores, probabilities
from vggdeploy.errors import UsageError, VggdeployError, first_line
from vggdeploy.parity.bounds import flip_count
from vggdeploy.parity.judge import judge
from vggdeploy.records.shadow import ShadowReport, ShadowSide
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.serve.aside import Aside
from vggdeploy.serve.catalogue import Place, Stamp, shadow_place
from vggdeploy.serve.pictures import Pictures
from vggdeploy.serve.served import Served
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.shadow_metrics import ShadowMetrics
from vggdeploy.serve.telemetry import LOGGER, Metrics, say
from vggdeploy.types import Verdict

Payload = bytes | Mapping[str, NDArray[Any]]
_REMEMBERED = 200_000  # different inputs; by then every limit of 0.1% and above is decided
_TIMES = 1000
_CLOSE_SECONDS = 30.0
_AGAIN = 10.0  # seconds after which a version that could not be taken is tried again: it may still be copied


class _Question(msgspec.Struct, frozen=True):
    """A caller's question and the answer that was given."""

    payload: Any
    best: int
    manifest: Any
    variant: str
    ms: float


class Counts:
    """What was compared between two versions. ``key``: of both bundles' digests and variants."""

    def __init__(self, key: tuple[str, ...]) -> None:
        self.key = key
        self.since = now()
        self.compared = self.repeated = self.shed = self.errors = self.flips = 0
        self.last_error = ""
        self.seen: set[bytes] = set()
        self.salt = os.urandom(16)
        self.served_ms: deque[float] = deque(maxlen=_TIMES)
        self.shadow_ms: deque[float] = deque(maxlen=_TIMES)


class Shadow:
    """The shadow of the model that is served.

    It answers one image at a time, in a thread of the lowest priority, and is not asked at all while callers wait for more
    than the next batch. No input is kept: of each only a keyed hash, to count it once.

    Args:
        place: the shadow's bundle and settings. limit: the share of flips that is allowed; None: its manifest's.

    Raises:
        Errors of `vggdeploy.load`. UsageError: the two do not answer the same question.
    """

    def __init__(self, served: Served, place: Place, sample: float, limit: float | None, metrics: Metrics) -> None:
        self._served, self._place, self._sample, self._limit = served, place, sample, limit
        self._lock = threading.Lock()
        self._random = random.SystemRandom()
        self._metrics = ShadowMetrics(metrics.registry)
        self._stamp: Stamp | None = place.stamp()
        self._tried: Stamp | None = None  # the version that could not be taken,
        self._not_before = 0.0  # and until when it is left alone
        self._forced = False
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._pictures: Pictures | None = None
        self._opened = threading.Event()
        self._aside: Aside[_Question] = Aside("shadow", self._ask, begin=self._open, end=self._close)
        self._aside.start()
        self._opened.wait()
        if self._error is not None:
            raise self._error
        self._counts = Counts(_key(served.engine.bundle.manifest.digest, served.engine.variant.name, self.engine))
        try:
            _need_comparable(served.engine.bundle.manifest, self.engine.bundle.manifest)
        except UsageError:
            self.close()
            raise
        say("shadow", model=self.engine.bundle.manifest.name, variant=self.engine.variant.name, sample=sample)

    @property
    def engine(self) -> Engine:
        assert self._engine is not None  # noqa: S101  # for mypy: it is there when the constructor has returned
        return self._engine

    def offer(self, payload: Payload, answer: Answer) -> None:
        """Perhaps ask the shadow, later; never waits."""
        if self._random.random() >= self._sample or _scores(answer) is None:
            return
        if self._crowded():
            self._shed(1 + self._aside.clear())
            return
        whole = answer.decode_ms + answer.queue_ms + answer.compute_ms
        first = _first(payload)
        question = _Question(first, best_of(answer.outputs), answer.manifest, answer.variant, whole)
        size = len(first) if isinstance(first, bytes) else sum(array.nbytes for array in first.values())
        if not self._aside.offer(question, size):
            self._shed(1)

    def report(self) -> ShadowReport:
        """What is known so far, and what follows from it."""
        engine, served = self.engine, self._served.engine
        manifest = engine.bundle.manifest
        key = _key(served.bundle.manifest.digest, served.variant.name, engine)
        thresholds = msgspec.structs.replace(manifest.limits(engine.variant.precision), accuracy_drop=None)
        if self._limit is not None:
            thresholds = msgspec.structs.replace(thresholds, flip_rate=self._limit)
        with self._lock:  # only for the copy: the callers' path may want it
            counts = self._counts_of(key)
            numbers = {name: int(getattr(counts, name)) for name in ("compared", "repeated", "shed", "errors")}
            changed, last_error = counts.flips, counts.last_error
            served_ms, shadow_ms = list(counts.served_ms), list(counts.shadow_ms)
        flips = flip_count(changed, numbers["compared"]) if numbers["compared"] else None
        _, bounds, reasons = judge((), flips, thresholds)  # answers are compared by their classes alone
        verdict = bounds or Verdict.UNPROVEN
        if flips is None:
            verdict, reasons = Verdict.UNPROVEN, ("nothing was compared yet",)
        if reason := difference(served.bundle.manifest, manifest):
            verdict, reasons = Verdict.UNPROVEN, (f"the two cannot be compared: {reason}",)
        if numbers["errors"]:
            told = f"{numbers['errors']} of {numbers['compared']} were errors of the shadow, and count as changed"
            reasons = (*reasons, told)
        return ShadowReport(
            served=_side(self._served.model, served, served_ms), shadow=_side(manifest.name, engine, shadow_ms),
            sample=self._sample, since=counts.since, created=now(), last_error=last_error, flips=flips,
            limit=thresholds.flip_rate, verdict=verdict, reasons=reasons, **numbers,
        )  # fmt: skip

    def note(self) -> None:
        """Write the verdict into the metrics."""
        self._metrics.note(self.report())

    def renew(self, *, forced: bool = False) -> None:
        """Soon, take the version that now stands in the shadow's place, if it is another one, and count anew; one that cannot
        be proven is told in the log. Waits for nothing: under load it may take its time.

        Args:
            forced: open it again, whether it seems to have changed or not.
        """
        with self._lock:
            self._forced = self._forced or forced
        self._aside.do(self._renew)

    def settle(self, seconds: float = _CLOSE_SECONDS) -> bool:
        """Wait until all that was offered is compared, and a new version taken; whether that came about."""
        return self._aside.settle(seconds)

    def close(self) -> None:
        self._aside.close()

    def _crowded(self) -> bool:
        return self._served.batching.waiting > self._served.batching.max_batch

    def _shed(self, count: int) -> None:
        with self._lock:
            self._counts.shed += count
        self._metrics.requests.labels("shed").inc(count)

    def _open(self) -> None:
        """In the thread: the runtime's own threads have its priority, too."""
        settings = self._place.settings
        try:
            self._engine = _loaded(self._place)
            self._engine.warm_up((1,))
            self._pictures = Pictures(settings)
        except BaseException as error:  # the constructor raises it
            self._error = error
        self._opened.set()

    def _renew(self) -> None:
        """In the thread: what the new version starts has its priority, too."""
        with self._lock:
            stamp, forced, self._forced = self._place.stamp(), self._forced, False
        paused = stamp == self._tried and time.monotonic() < self._not_before
        if not forced and (stamp == self._stamp or paused):
            return
        try:
            self.engine.reload()
            self._stamp, self._tried = stamp, None
        except (VggdeployError, OSError) as error:
            self._tried, self._not_before = stamp, time.monotonic() + _AGAIN
            LOGGER.error("the reload of the shadow failed, the old one goes on", extra={"about": {"error": str(error)}})

    def _close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        if self._engine is not None:
            self._engine.close()

    def _counts_of(self, key: tuple[str, ...]) -> Counts:
        """Under the lock: where one of both is another version, what was counted holds for it no more."""
        if key != self._counts.key:
            self._counts = Counts(key)
        return self._counts

    def _ask(self, question: _Question) -> None:
        """In the thread: one question."""
        if self._crowded():
            self._shed(1)
            return
        held = self.engine.hold()  # what is counted is of the version that answers, also where a reload comes between
        try:
            self._compare(question, held.opened)
        finally:
            self.engine.release(held)

    def _compare(self, question: _Question, opened: OpenVariant) -> None:
        key = _key(question.manifest.digest, question.variant, opened)
        with self._lock:
            counts = self._counts_of(key)
        mark = _mark(question.payload, counts.salt)
        if mark in counts.seen or len(counts.seen) >= _REMEMBERED:
            with self._lock:
                counts.repeated += 1
            self._metrics.requests.labels("repeated").inc()
            return
        counts.seen.add(mark)
        started, error = time.perf_counter(), ""
        same = False
        try:
            outputs = self._answer(question, opened)
            same = _label(opened.bundle.manifest, best_of(outputs)) == _label(question.manifest, question.best)
        except Exception as caught:  # whatever it is: callers would have had it instead of an answer
            error = first_line(caught)
        took = (time.perf_counter() - started) * 1e3
        with self._lock:
            counts.compared += 1
            counts.flips += not same
            counts.errors += bool(error)
            counts.last_error = error or counts.last_error
            counts.served_ms.append(question.ms)
            counts.shadow_ms.append(took)
        self._metrics.requests.labels("error" if error else "same" if same else "flip").inc()
        self._metrics.seconds.observe(took / 1e3)

    def _answer(self, question: _Question, opened: OpenVariant) -> Mapping[str, NDArray[Any]]:
        manifest = opened.bundle.manifest
        if isinstance(question.payload, bytes) and self._pictures is not None:
            array = self._pictures.prepared(question.payload, manifest.preprocess)
            return run_batch(opened.session, graph_input(manifest, array[None]))
        return opened.session.run(question.payload)


def _key(digest: str, variant: str, shadow: Engine | OpenVariant) -> tuple[str, ...]:
    """Of the served digest and variant, and of the shadow's."""
    return digest, variant, shadow.bundle.manifest.digest, shadow.variant.name


def check_shadow(settings: Settings, served: Engine) -> None:
    """Find out before a server starts whether its shadow could be opened and compared.

    Raises:
        Errors of `Shadow`.
    """
    place = shadow_place(settings)
    if place is not None:
        with _loaded(place) as engine:
            _need_comparable(served.bundle.manifest, engine.bundle.manifest)


def _loaded(place: Place) -> Engine:
    settings = place.settings
    engine = load(
        place.path, backend=settings.backend, variant=settings.variant, device=settings.device,
        threads=settings.threads or 1, verify="always",
        trust=Trust(settings.trusted_keys) if settings.trusted_keys else None,
    )  # fmt: skip
    try:
        need_scores(engine.bundle.manifest)
    except BaseException:
        engine.close()
        raise
    return engine


def _need_comparable(served: Manifest, shadow: Manifest) -> None:
    if reason := difference(served, shadow):
        raise UsageError(f"the shadow cannot be compared: {reason}", "give a bundle of the same classes")


def best_of(outputs: Mapping[str, NDArray[Any]]) -> int:
    """The class with the highest score, of the first row."""
    return int(np.argmax(probabilities(outputs)[0]))


def difference(served: Manifest, shadow: Manifest) -> str:
    """Why two models' classes cannot be compared; "" where they can."""
    if not served.spec.classes or not shadow.spec.classes:
        return "one of them has no classes"
    if served.labels and shadow.labels:
        if sorted(served.labels) == sorted(shadow.labels) and len(set(served.labels)) == len(served.labels):
            return ""
        return "their labels are not the same" if served.labels != shadow.labels else ""
    same = served.spec.classes == shadow.spec.classes and not (served.labels or shadow.labels)
    return "" if same else "one of them has labels, or another number of classes"


def _label(manifest: Manifest, index: int) -> str | int:
    """What a class is told apart by: its label, or its index where labels are missing or appear twice."""
    labels = manifest.labels
    return labels[index] if labels and len(set(labels)) == len(labels) else index


def _scores(answer: Answer) -> Any:
    return next((answer.outputs[name] for name in ("probabilities", "logits") if name in answer.outputs), None)


def _first(payload: Payload) -> Any:
    """Of arrays only the first row, copied: the others are the caller's to change, and would be looked at together."""
    if isinstance(payload, bytes):
        return payload
    return {name: array[:1].copy() for name, array in payload.items()}


def _mark(payload: Any, salt: bytes) -> bytes:
    mark = hashlib.blake2b(key=salt, digest_size=8)
    for part in [payload] if isinstance(payload, bytes) else [payload[name] for name in sorted(payload)]:
        mark.update(part if isinstance(part, bytes) else part.tobytes())
    return mark.digest()


def _side(model: str, engine: Engine, times: list[float]) -> ShadowSide:
    p50, p99 = (float(np.percentile(times, p)) for p in (50, 99)) if times else (None, None)
    return ShadowSide(
        model=model,
        variant=engine.variant.name,
        digest=engine.bundle.manifest.digest,
        precision=engine.variant.precision,
        p50_ms=p50 if p50 is None else round(p50, 3),
        p99_ms=p99 if p99 is None else round(p99, 3),
    )
