"""The server's log: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from vggdeploy._version import __version__
from vggdeploy.engine.async_engine import Answer
from vggdeploy.engine.engine import Engine
from vggdeploy.engine.microbatch import BatchDone
from vggdeploy.records import json_text

LOGGER = logging.getLogger("vggdeploy.serve")


class JsonLines(logging.Formatter):
    """``time`` (UTC), ``level``, ``message``, and what the call gave as ``extra={"about": {…}}``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_text(msgspec.json.encode(line))


def write_to_stderr() -> None:
    """Send the server's and uvicorn's lines there in this form. Other loggers and handlers of the process stay as they
    are: `logging.config` would first close all that there are, an application's own among them."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("vggdeploy.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    exporting = logging.getLogger("opentelemetry")  # which says when a collector cannot be reached
    exporting.handlers[:] = [handler]
    exporting.propagate = False


def say(message: str, **about: Any) -> None:
    """One line of information."""
    LOGGER.info(message, extra={"about": about})


# prometheus_client's own name; it has to stand in the environment before that package is first imported.
SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server process."""

    also_told: Callable[[BatchDone], None] | None = None  # of each batch

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("vggdeploy_requests", "Answers, by route and status.", ("route", "status"), registry=r)
        self.seconds = Histogram(
            "vggdeploy_request_seconds",
            "From the first byte of a request to its answer.",
            ("route",),
            buckets=SECONDS_BUCKETS,
            registry=r,
        )
        self.stages = Histogram(
            "vggdeploy_stage_seconds",
            "Parts of a request: decode, queue, compute.",
            ("stage",),
            buckets=SECONDS_BUCKETS,
            registry=r,
        )
        self.batches = Histogram(
            "vggdeploy_batch_rows", "Rows of the batches that were run.", buckets=ROWS_BUCKETS, registry=r
        )
        self.failures = Counter("vggdeploy_batch_failures", "Batches whose run failed.", registry=r)
        self.overloads = Counter("vggdeploy_overloads", "Requests refused because too many were waiting.", registry=r)
        self.broken_off = Counter(
            "vggdeploy_uploads_broken_off", "Requests whose client left before it had sent them.", registry=r
        )
        self.waiting = Gauge("vggdeploy_queue_waiting", "Requests waiting.", multiprocess_mode="livesum", registry=r)
        self.ready = Gauge("vggdeploy_ready", "Workers that take requests.", multiprocess_mode="livesum", registry=r)
        self.model = Gauge(
            "vggdeploy_model_info", "What is served.", ("model", "variant", "device", "digest", "version"),
            multiprocess_mode="livemax", registry=r,
        )  # fmt: skip

    @property
    def shared(self) -> bool:
        """Whether other processes have it on their pages, as it was last written here."""
        return bool(os.environ.get(SHARED_DIRECTORY))

    def served(self, *engines: Engine) -> None:
        """Name what is served from now on."""
        if not self.shared:  # there a label cannot be taken back
            self.model.clear()
        for engine in engines:
            manifest = engine.bundle.manifest
            self.model.labels(
                manifest.name, engine.variant.name, str(engine.device), manifest.digest[:12], __version__
            ).set(1)

    def batch(self, done: BatchDone) -> None:
        self.batches.observe(done.rows)
        if done.failed:
            self.failures.inc()
        if self.also_told is not None:
            self.also_told(done)

    def answer(self, answer: Answer) -> None:
        for stage, ms in (("decode", answer.decode_ms), ("queue", answer.queue_ms), ("compute", answer.compute_ms)):
            self.stages.labels(stage).observe(ms / 1e3)

    def text(self) -> bytes:
        """The page of /metrics, in Prometheus' text format."""
        if not self.shared:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
