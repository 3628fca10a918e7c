"""The page of metrics of several replicas is their sum, and no count of it falls when one of them ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vggdeploy.serve import replicas
from vggdeploy.serve.replicas import Ledger
from vggdeploy.serve.telemetry import Metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def replica(requests: int, waiting: int, *, seconds: float = 0.003) -> Metrics:
    metrics = Metrics()
    for _ in range(requests):
        metrics.requests.labels("/classify", "200").inc()
        metrics.seconds.labels("/classify").observe(seconds)
    metrics.waiting.set(waiting)
    metrics.ready.set(1)
    manifest = SimpleNamespace(name="digits", digest="0" * 64)
    metrics.served(
        SimpleNamespace(
            bundle=SimpleNamespace(manifest=manifest), variant=SimpleNamespace(name="onnx-fp32"), device="cpu"
        )
    )  # type: ignore[arg-type]
    return metrics


def samples(page: bytes) -> dict[str, float]:
    """Name with labels → value."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_counts_and_gauges_of_living_replicas_add_up() -> None:
    ledger = Ledger(Clock())
    ledger.tell("a", generate_latest(replica(3, 2, seconds=0.003).registry))
    ledger.tell("b", generate_latest(replica(5, 1, seconds=3).registry))
    page = samples(ledger.page())
    assert page["vggdeploy_requests_total{route=/classify,status=200}"] == 8
    assert page["vggdeploy_queue_waiting{}"] == 3
    assert page["vggdeploy_ready{}"] == 2
    assert page["vggdeploy_request_seconds_count{route=/classify}"] == 8
    assert page["vggdeploy_request_seconds_sum{route=/classify}"] == pytest.approx(3 * 0.003 + 5 * 3)
    assert page["vggdeploy_request_seconds_bucket{le=0.005,route=/classify}"] == 3
    assert page["vggdeploy_request_seconds_bucket{le=+Inf,route=/classify}"] == 8
    assert [value for name, value in page.items() if name.startswith("vggdeploy_model_info")] == [1]


def test_what_is_told_again_is_not_counted_twice() -> None:
    ledger, one = Ledger(Clock()), replica(3, 0)
    for _ in range(4):
        ledger.tell("a", generate_latest(one.registry))
    assert samples(ledger.page())["vggdeploy_requests_total{route=/classify,status=200}"] == 3


def test_a_replica_that_ended_keeps_its_counts_and_loses_its_gauges() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.tell("a", generate_latest(replica(3, 7).registry))
    clock.now = 100
    ledger.tell("b", generate_latest(replica(1, 0).registry))
    page = samples(ledger.page())
    assert page["vggdeploy_requests_total{route=/classify,status=200}"] == 4
    assert (page["vggdeploy_queue_waiting{}"], page["vggdeploy_ready{}"]) == (0, 1)


def test_many_that_ended_become_one_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a load that comes and goes starts replicas for ever, and each would be read for every page."""
    monkeypatch.setattr(replicas, "_ENDED", 4)
    clock = Clock()
    ledger, page = Ledger(clock), generate_latest(replica(3, 7).registry)
    for number in range(1, 31):
        clock.now += 20
        ledger.tell(str(number), page)
        found = samples(ledger.page())
        assert found["vggdeploy_requests_total{route=/classify,status=200}"] == 3 * number
        assert found["vggdeploy_request_seconds_bucket{le=0.005,route=/classify}"] == 3 * number
        assert (found["vggdeploy_queue_waiting{}"], found["vggdeploy_ready{}"]) == (7, 1)
    assert len(ledger._told) <= 6


def test_one_page_is_the_replicas_own() -> None:
    own = generate_latest(replica(2, 1).registry)
    ledger = Ledger(Clock())
    ledger.tell("a", own)
    expected = {name: value for name, value in samples(own).items() if "_created" not in name}
    assert samples(ledger.page()) == expected
