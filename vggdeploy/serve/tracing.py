"""OpenTelemetry: a trace of each request, and the durations of all, sent to a collector by OTLP over HTTP.

What is not set here is read from OpenTelemetry's own variables: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_METRIC_EXPORT_INTERVAL and others.
Names of attributes are those of its semantic conventions.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vggdeploy._version import __version__
from vggdeploy.engine.async_engine import Answer
from vggdeploy.engine.microbatch import BatchDone
from vggdeploy.serve.telemetry import ROWS_BUCKETS, SECONDS_BUCKETS

_SENDING_SECONDS = 5.0  # of one export, with its retries
_CLOSING_SECONDS = 3.0  # for what has not been sent when the server ends
_INTERNAL = SpanKind.INTERNAL


class Tracing:
    """What sends the traces and metrics of one process. Nothing of it is on OpenTelemetry's global providers.

    A request never waits for the collector: spans that cannot be sent in time are dropped, and the log says so.

    Args:
        collector: its base URL, as OTEL_EXPORTER_OTLP_ENDPOINT is: ``/v1/traces`` and ``/v1/metrics`` are appended.
    """

    def __init__(self, collector: str) -> None:
        base = collector.rstrip("/")
        given = OTELResourceDetector().detect().attributes  # what stands here would be stronger than the variables
        resource = Resource.create(
            {
                "service.name": given.get("service.name", "vggdeploy"),
                "service.version": __version__,
                "service.instance.id": str(uuid.uuid4()),
                "process.pid": os.getpid(),
            }
        )
        self._exporter = OTLPSpanExporter(f"{base}/v1/traces", timeout=_SENDING_SECONDS)
        self._processor = BatchSpanProcessor(self._exporter)
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(self._processor)
        self.tracer = self._spans.get_tracer("vggdeploy", __version__)
        self._resource = self._spans.resource
        self._scope = InstrumentationScope("vggdeploy", __version__)
        self._ids = RandomIdGenerator()
        self._incoming = TraceContextTextMapPropagator()

        self._metric_exporter = OTLPMetricExporter(f"{base}/v1/metrics", timeout=_SENDING_SECONDS)
        reader = PeriodicExportingMetricReader(self._metric_exporter)
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        meter = self._metrics.get_meter("vggdeploy", __version__)
        self.requests = meter.create_histogram(
            "http.server.request.duration", "s", "From the first byte of a request to its answer.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )  # fmt: skip
        self.calls = meter.create_histogram(
            "rpc.server.call.duration", "s", "From the start of a call to its answer.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )  # fmt: skip
        self.stages = meter.create_histogram(
            "vggdeploy.stage.duration", "s", "Parts of a request.", explicit_bucket_boundaries_advisory=SECONDS_BUCKETS
        )
        self._batches = meter.create_histogram(
            "vggdeploy.batch.rows", "{row}", "Rows of the batches that were run.",
            explicit_bucket_boundaries_advisory=ROWS_BUCKETS,
        )  # fmt: skip

    def begin(self, kind: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Trace:
        """The trace of a request that has just come, within the caller's where ``headers`` name one.

        Args:
            kind: ``http`` or ``rpc``: what its attributes are about.
            headers: W3C's ``traceparent`` and ``tracestate`` among them; names in lower case.
        """
        return Trace(self, kind, headers, attributes)

    def child(
        self, parent: Any, name: str, times: tuple[int, int], attributes: Mapping[str, Any] | None = None
    ) -> None:
        """A part of a request, whose times (nanoseconds since 1970) are known afterwards: much cheaper than `start_span`."""
        above = parent.get_span_context()
        here = SpanContext(above.trace_id, self._ids.generate_span_id(), False, above.trace_flags, above.trace_state)
        span = ReadableSpan(
            name, here, above, self._resource, attributes, kind=_INTERNAL, start_time=times[0], end_time=times[1],
            instrumentation_scope=self._scope,
        )  # fmt: skip
        self._processor.on_end(span)

    def batch(self, done: BatchDone) -> None:
        """Count a batch."""
        self._batches.record(done.rows)

    def close(self) -> None:
        """Send what is left; it takes a few seconds at most, also where no collector answers."""
        late = threading.Timer(_CLOSING_SECONDS, self._give_up)
        late.start()
        try:
            self._spans.shutdown()
            self._metrics.shutdown(timeout_millis=_CLOSING_SECONDS * 1e3)
        finally:
            late.cancel()

    def _give_up(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        self._metric_exporter.shutdown(timeout_millis=0)


class Trace:
    """One request: a span for all of it, and one each for decode, queue, run and encode.

    ``decode``: from the last byte of the body until the image, or the arrays, stand in the queue. ``queue``: until their batch
    starts. ``run``: that of the batch. ``encode``: from the graph's answer to the first byte of the response.
    """

    def __init__(self, tracing: Tracing, kind: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> None:
        self._tracing = tracing
        self._kind = kind
        self._clock = time.time_ns() - time.perf_counter_ns()
        self._started = self._received = time.perf_counter_ns()
        context = tracing._incoming.extract(headers) if "traceparent" in headers else None
        self._span = tracing.tracer.start_span(
            kind, context, SpanKind.SERVER, attributes, start_time=self._clock + self._started
        )
        self._recording = self._span.is_recording()
        self._answer: Answer | None = None
        self._answered = self._responded = 0
        about = self._span.get_span_context()
        self.ids = {"trace_id": f"{about.trace_id:032x}", "span_id": f"{about.span_id:016x}"}

    def received(self) -> None:
        """The whole request is there."""
        self._received = time.perf_counter_ns()

    def answered(self, answer: Answer) -> None:
        """The graph has given its answer."""
        self._answer, self._answered = answer, time.perf_counter_ns()

    def responding(self) -> None:
        """The response begins."""
        self._responded = time.perf_counter_ns()

    def end(self, name: str, attributes: dict[str, Any], *, failed: bool = False) -> None:
        """The response has been sent, or nobody waits for it any more.

        Args:
            name: of the span: of few possible ones, so not the path but the route.
            attributes: what is known only now; also of the duration's metric, so of few possible values.
        """
        now = time.perf_counter_ns()
        tracing, answer = self._tracing, self._answer
        durations = tracing.requests if self._kind == "http" else tracing.calls
        durations.record((now - self._started) / 1e9, attributes)
        if answer is not None:
            self._stages(answer, self._responded or now)
        if self._recording:
            self._span.update_name(name)
            self._span.set_attributes(attributes)
            if failed:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._clock + now)

    def _stages(self, answer: Answer, responded: int) -> None:
        ready = int((answer.arrived + answer.decode_ms / 1e3) * 1e9)
        started = ready + int(answer.queue_ms * 1e6)
        finished = started + int(answer.compute_ms * 1e6)
        parts = {
            "decode": (self._received, ready),
            "queue": (ready, started),
            "run": (started, finished),
            "encode": (self._answered, responded),
        }
        run = {
            "vggdeploy.model": answer.manifest.name,
            "vggdeploy.variant": answer.variant,
            "vggdeploy.batch.rows": answer.batch,
        }
        for name, (begin, end) in parts.items():
            self._tracing.stages.record((end - begin) / 1e9, {"stage": name})
            if self._recording:
                times = self._clock + begin, self._clock + end
                self._tracing.child(self._span, name, times, run if name == "run" else None)
