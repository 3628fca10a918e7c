"""What a shadow says to Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vggdeploy.records.shadow import ShadowReport
from vggdeploy.serve.telemetry import SECONDS_BUCKETS
from vggdeploy.types import Verdict


class ShadowMetrics:
    """Counters of comparisons, the bounds of the share of flips, and the verdict as one of four gauges that is 1."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "vggdeploy_shadow_requests",
            "Sampled requests: same, flip, error, repeated, shed.",
            ("outcome",),
            registry=registry,
        )
        self.seconds = Histogram(
            "vggdeploy_shadow_seconds",
            "Of the shadow, from the bytes to its answer.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._bounds = Gauge(
            "vggdeploy_shadow_flip_bound",
            "95% bounds of the share of flips, at any look.",
            ("side",),
            registry=registry,
        )
        self._verdict = Gauge("vggdeploy_shadow_verdict", "1 for the verdict of now.", ("verdict",), registry=registry)

    def note(self, report: ShadowReport) -> None:
        if report.flips is None:  # a new version of either: what was known of the one before says nothing
            self._bounds.clear()
        else:
            self._bounds.labels("lower").set(report.flips.lower)
            self._bounds.labels("upper").set(report.flips.upper)
        for verdict in Verdict:
            self._verdict.labels(str(verdict)).set(verdict is report.verdict)
