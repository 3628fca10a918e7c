"""The real LoadGen issues the load, and what it says is what is reported."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vggdeploy.bench.loadgen.drive import SEEDS, issue, queries_wanted, read_log
from vggdeploy.bench.loadgen.scenarios import Issued, Load, invalid_reasons, run_scenario
from vggdeploy.bench.loadgen.sut import SystemUnderTest
from vggdeploy.bench.run import BenchPlan, Scenarios, bench_bundle
from vggdeploy.bundle import Bundle
from vggdeploy.errors import UsageError, VggdeployError
from vggdeploy.runtime import CheckedSession, open_session
from vggdeploy.types import BatchRange, TensorSpec, Verdict

pytestmark = pytest.mark.alone

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
        return run_scenario(partial(issue, session, images), Load(**{"seconds": 0.3, **load}), **ABOUT)


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


def test_a_rate_beyond_the_session_ends_early_and_says_so() -> None:
    import time

    class Slow(Echo):
        def run(self, feeds):
            time.sleep(0.005)
            return super().run(feeds)

    slow = Slow()
    load = {"scenario": "server", "target_qps": 2000.0, "latency_bound_ms": 20.0, "batch": 1, "seconds": 5}
    row = row_of(slow, **load)
    assert len(slow.batches) < 5000  # of 10,000 queries
    assert row.reasons[0] == "queries piled up: 2000 a second are more than the session answers"


def test_too_few_queries_for_the_percentile_says_how_long_it_takes() -> None:
    row = row_of(Echo(), scenario="server", target_qps=100.0, latency_bound_ms=100.0, min_queries=20)
    # 459 queries without a late one are the fewest for p99: (1 - 0.99) at 99% confidence, as LoadGen has it.
    assert row.reasons[0] == f"too few queries for p99: {row.queries} of 459; give --duration 6"
    assert row.p99_ms is None
    assert not row.valid


def test_the_server_splits_its_latency_into_queue_and_run() -> None:
    import time

    class Slow(Echo):
        def run(self, feeds):
            time.sleep(0.004)
            return super().run(feeds)

    row = row_of(Slow(), scenario="server", target_qps=300.0, latency_bound_ms=100.0, batch=1, seconds=1.5)
    assert row.run_p50_ms >= 4
    assert row.queue_p99_ms > 4  # at 300 a second and 4 ms a query some wait for one before them, at least
    # Each query takes as long as its batch and as its wait, at least, and so does the median one.
    assert row.p50_ms >= max(row.run_p50_ms, row.queue_p50_ms)
    assert row_of(Echo(), scenario="single_stream").queue_p50_ms is None


def test_loadgens_version_and_seeds_stand_in_the_row() -> None:
    row = row_of(Echo(), scenario="single_stream")
    assert row.loadgen[0].isdigit()
    assert row.seeds == SEEDS


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (" * Only processed 251 queries. * Need to process at least 662 queries for early stopping.", 662),
        (" * Processed 100 queries. * Would need to run at least 359 more queries, with the run", 459),
        ("", None),
    ],
)
def test_loadgens_sentences_are_understood(words: str, wanted: int | None) -> None:
    assert queries_wanted(words, 100) == wanted


def test_a_valid_run_has_no_reason_and_an_unknown_one_is_named() -> None:
    found = Issued(valid=True, words="", queries=1, samples_per_second=1, p50_ms=None, p90_ms=None, p99_ms=None)
    assert invalid_reasons(Load("offline"), found) == []
    wordless = msgspec.structs.replace(found, valid=False)
    assert invalid_reasons(Load("offline"), wordless) == ["LoadGen calls it INVALID, and gives no reason"]


def test_a_session_that_breaks_under_load_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(VggdeployError, match="broken under load"):
        row_of(Echo(fail=True), scenario="single_stream")
    with pytest.raises(VggdeployError, match="broken under load"):
        row_of(Echo(fail=True), scenario="server", target_qps=200.0, latency_bound_ms=50.0)


def test_an_error_under_load_does_not_wait_for_the_end_of_the_load() -> None:
    import time

    class Slow(Echo):
        def run(self, feeds):
            time.sleep(0.001)
            return super().run(feeds)

    for load in ({"scenario": "server", "target_qps": 200.0, "latency_bound_ms": 50.0}, {"scenario": "single_stream"}):
        slow = Slow(fail=True)
        with pytest.raises(VggdeployError, match="broken under load"):
            row_of(slow, **load, seconds=30)
        assert len(slow.batches) == 21


def test_an_error_that_is_not_ours_is_no_hang_either() -> None:
    class Bug(Echo):
        def run(self, feeds):
            if len(self.batches) > 5:  # 64 queries are eight batches at least
                raise ZeroDivisionError("a bug")
            return super().run(feeds)

    with pytest.raises(ZeroDivisionError):
        row_of(Bug(), scenario="server", target_qps=200.0, latency_bound_ms=50.0)


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


def issued(milliseconds: float) -> Issued:
    return Issued(
        valid=True, words="", queries=9000, samples_per_second=1.0, p50_ms=milliseconds, p90_ms=milliseconds,
        p99_ms=milliseconds, others=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("again", "cached"), [((1.0, 1.02), False), ((2.0, 1.0), True)])
def test_a_machine_that_changed_its_speed_between_the_two_runs_keeps_no_answers(
    again: tuple[float, float], cached: bool
) -> None:
    """'Something is cached' was said of a session that keeps nothing: the machine was slower in the first run."""
    fakes = {"unique": iter([2.0, *[again[0]] * 3]), "same": iter([1.0, *[again[1]] * 3])}
    row = run_scenario(lambda load, samples: issued(next(fakes[samples])), Load("single_stream"), **ABOUT)
    assert any("cached" in reason for reason in row.reasons) is cached
    assert row.unique_over_same == pytest.approx(2.0 if cached else 1 / 1.02)


def test_the_latency_is_that_of_the_session() -> None:
    import time

    class Slow(Echo):
        def run(self, feeds):
            time.sleep(0.005)
            return super().run(feeds)

    started = time.monotonic()
    row = row_of(Slow(), scenario="single_stream")
    seconds = time.monotonic() - started
    assert row.p50_ms >= 5
    assert row.queries / 2 * row.p50_ms / 1e3 <= seconds  # half of them took that long, one after another


@pytest.mark.parametrize(
    "load",
    [
        {"scenario": "singlestream"},
        {"scenario": "server"},
        {"scenario": "server", "target_qps": 5.0},
        {"scenario": "server", "target_qps": float("inf"), "latency_bound_ms": 5.0},
        {"scenario": "server", "target_qps": 5.0, "latency_bound_ms": -1.0},
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
        bundle,
        plan=BenchPlan(variants=["onnx-fp32"], batches=[8], seconds=0.3),
        method=Scenarios(["single_stream", "offline"]),
    )
    assert [(r.scenario, r.variant) for r in report.scenarios] == [
        ("single_stream", "onnx-fp32"),
        ("offline", "onnx-fp32"),
    ]
    assert report.rows == ()
    for row in report.scenarios:
        assert row.answers is not None
        assert row.answers.verdict is Verdict.PASS
        assert row.answers.images >= 32
        assert row.answers.outputs[0].relative_l2 < 1e-4


def test_the_worker_ends_with_what_was_queued_answered(bundle: Bundle) -> None:
    variant = bundle.manifest.variant("onnx-fp32")
    with open_session(bundle, variant) as session:
        system = SystemUnderTest(session, bundle.golden()[0]["image"], Load("server", target_qps=1, latency_bound_ms=1))
        system.stop()
        system.serve()  # returns
    assert system.error is None
