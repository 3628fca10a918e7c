"""What a server of several models counts of each."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class ModelMetrics:
    """Counters and gauges by model. The names are the operator's, so there are only so many."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "vggdeploy_model_requests", "Requests that were given to a model.", ("model",), registry=registry
        )
        self.changes = Counter(
            "vggdeploy_model_changes",
            "loaded, unloaded, reloaded, failed, reload_failed.",
            ("model", "what"),
            registry=registry,
        )
        self._open = self._gauge("vggdeploy_model_open", "Processes in which a model is open.", registry)
        self._bytes = self._gauge("vggdeploy_model_bytes", "Memory that a model takes.", registry)
        self._waiting = self._gauge("vggdeploy_model_waiting", "Requests waiting for a model.", registry)

    @staticmethod
    def _gauge(name: str, about: str, registry: CollectorRegistry) -> Gauge:
        return Gauge(name, about, ("model",), multiprocess_mode="livesum", registry=registry)

    def note(self, name: str, *, taken: int | None, waiting: int) -> None:
        """What is so now: the bytes that an open model takes, None of a closed one, and the requests that wait for it."""
        self._open.labels(name).set(taken is not None)
        self._bytes.labels(name).set(taken or 0)
        self._waiting.labels(name).set(waiting)
