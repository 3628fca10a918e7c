"""What the watch over drift says to Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from vggdeploy.records.drift import DriftReport


class DriftMetrics:
    """A gauge each, by statistic. Of several workers the highest is shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._alarm = self._gauge("alarm", "1: requests have changed.", registry)
        self._evidence = self._gauge("evidence", "Decimal logarithm of the evidence for a change.", registry)
        self._observed = self._gauge("observed", "Requests that were looked at.", registry)
        self._mean = self._gauge("mean", "Mean of the last requests, about 500.", registry)
        self._usual = self._gauge("usual_mean", "Mean of the test images.", registry)

    @staticmethod
    def _gauge(name: str, about: str, registry: CollectorRegistry) -> Gauge:
        return Gauge(f"vggdeploy_drift_{name}", about, ("statistic",), multiprocess_mode="livemax", registry=registry)

    def note(self, report: DriftReport) -> None:
        for one in report.statistics:
            self._alarm.labels(one.name).set(one.alarm)
            self._evidence.labels(one.name).set(one.evidence)
            self._observed.labels(one.name).set(one.observed)
            for gauge, value in ((self._mean, one.mean), (self._usual, one.usual)):
                if value is not None:
                    gauge.labels(one.name).set(value)
