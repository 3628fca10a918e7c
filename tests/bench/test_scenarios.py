"""The real LoadGen issues the load, and what it says is what is reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vggdeploy.bench.scenarios import Load, SystemUnderTest, read_log, run_scenario
from vggdeploy.bundle import Bundle
from vggdeploy.errors import UsageError, VggdeployError
from vggdeploy.pipeline.bench import bench_bundle
from vggdeploy.runtime import CheckedSession, open_session
from vggdeploy.types import BatchRange, TensorSpec, Verdict

ABOUT = {"variant": "x", "backend": "x", "device": "cpu", "verdict": Verdict.PASS}


class Echo:
    """A session that answers at once, and remembers the batches; ``fail`` makes it refuse."""

    inputs = (TensorSpec("image", "uint8", ("N", 1)),)
    outputs = (TensorSpec("logits", "float32", ("N", 1)),)

    def __init__(self, *, fail: bool = False) -> None:
        self.fail = fail
        self.batches: list[int] = []
        self.seen: set[int] = set()

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        pass

    def run(self, feeds):
        if self.fail and len(self.batches) > 20:
            raise VggdeployError("broken under load")
        self.batches.append(len(feeds["image"]))
        self.seen.update(feeds["image"][:, 0].tolist())
        return {"logits": np.zeros((len(feeds["image"]), 1), np.float32)}


def row_of(echo: Echo, **load):
    images = np.arange(64, dtype=np.uint8)[:, None]
    with CheckedSession(echo, name="echo", batch=BatchRange(1, 8, 64)) as session:
        return run_scenario(session, images, Load(seconds=0.3, **load), **ABOUT)


def test_single_stream_sends_one_sample_a_query_from_the_whole_pool() -> None:
    echo = Echo()
    row = row_of(echo, scenario="single_stream")
    assert set(echo.batches) == {1}
    assert echo.seen == set(range(64))
    assert row.queries >= 64
    assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
    assert row.unique_over_same is not None


def test_multi_stream_sends_eight() -> None:
    echo = Echo()
    row = row_of(echo, scenario="multi_stream", min_queries=700)
    assert set(echo.batches) == {8}
    assert row.batch == 8
    assert row.estimate_ms is not None and row.estimate_ms >= row.p50_ms


def test_offline_is_one_query_in_batches() -> None:
    echo = Echo()
    row = row_of(echo, scenario="offline", batch=16)
    assert row.queries == 1
    assert max(echo.batches) == 16
    assert row.p50_ms is None
    assert row.samples_per_second > 0


def test_server_holds_the_rate_it_was_given() -> None:
    echo = Echo()
    row = row_of(echo, scenario="server", target_qps=300.0, latency_bound_ms=50.0, min_queries=300, batch=4)
    assert max(echo.batches) <= 8  # the calibration's call included
    assert 150 < row.samples_per_second < 600
    assert row.latency_bound_ms == 50


def test_an_unmet_bound_is_invalid_with_loadgens_words() -> None:
    row = row_of(Echo(), scenario="server", target_qps=100.0, latency_bound_ms=0.0001, min_queries=20)
    assert not row.valid
    assert any("QPS" in reason or "latency" in reason for reason in row.reasons)


def test_a_session_that_breaks_under_load_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(VggdeployError, match="broken under load"):
        row_of(Echo(fail=True), scenario="single_stream")
    with pytest.raises(VggdeployError, match="broken under load"):
        row_of(Echo(fail=True), scenario="server", target_qps=200.0, latency_bound_ms=50.0)


def test_a_session_that_keeps_answers_is_found_out() -> None:
    import time

    class Caching(Echo):
        last = -1

        def run(self, feeds):
            if feeds["image"][0, 0] != self.last:
                time.sleep(0.002)
            self.last = feeds["image"][0, 0]
            return super().run(feeds)

    row = row_of(Caching(), scenario="single_stream")
    assert row.unique_over_same > 2
    assert any("cached" in reason for reason in row.reasons)


def test_the_latency_is_that_of_the_session() -> None:
    import time

    class Slow(Echo):
        def run(self, feeds):
            time.sleep(0.005)
            return super().run(feeds)

    row = row_of(Slow(), scenario="single_stream")
    assert 5 <= row.p50_ms < 15


@pytest.mark.parametrize(
    "load",
    [
        {"scenario": "singlestream"},
        {"scenario": "server"},
        {"scenario": "server", "target_qps": 5.0},
        {"scenario": "offline", "seconds": 0},
        {"scenario": "offline", "batch": 0},
    ],
)
def test_a_load_that_cannot_be_is_refused(load: dict) -> None:
    with pytest.raises(UsageError):
        Load(**load)


def test_the_log_is_read_line_by_line(tmp_path: Path) -> None:
    lines = [":::MLLOG " + json.dumps({"key": "a", "value": v}) for v in (1, 2)] + ["noise", ""]
    (tmp_path / "log").write_text("\n".join(lines))
    assert read_log(tmp_path / "log") == {"a": 2}


def test_a_bundle_under_load(bundle: Bundle) -> None:
    report = bench_bundle(
        bundle, variants=["onnx-fp32"], batches=[8], seconds=0.3, scenarios=["single_stream", "offline"]
    )
    assert [(r.scenario, r.variant) for r in report.scenarios] == [
        ("single_stream", "onnx-fp32"),
        ("offline", "onnx-fp32"),
    ]
    assert report.rows == ()


def test_the_worker_ends_with_what_was_queued_answered(bundle: Bundle) -> None:
    variant = bundle.manifest.variant("onnx-fp32")
    with open_session(bundle, variant) as session:
        system = SystemUnderTest(session, bundle.golden()[0]["image"], Load("server", target_qps=1, latency_bound_ms=1))
        system.stop()
        system.serve()  # returns
    assert system.error is None
