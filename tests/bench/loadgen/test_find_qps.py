"""The search for the highest rate that keeps its bound."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vggdeploy.bench.loadgen.drive import issue
from vggdeploy.bench.loadgen.rates import CLOSE_ENOUGH, MAX_CONFIRMATIONS, MAX_PROBES, QUERIES, Search, no_rate
from vggdeploy.bench.loadgen.scenarios import Issued, Load
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.runtime import CheckedSession
from vggdeploy.types import BatchRange, TensorSpec

LOAD = Load("server", seconds=20, latency_bound_ms=10, find_qps=True)


class Machine:
    """A session in theory: it holds every rate up to ``limit``, and time passes as LoadGen would need it."""

    def __init__(self, limit: float, *, probes_flatter: float = 1.0) -> None:
        self.limit = limit
        self.flattery = probes_flatter
        self.now = 0.0
        self.loads: list[Load] = []

    def issue(self, load: Load) -> Issued:
        assert load.target_qps is not None
        queries = math.ceil(max(load.min_queries, load.seconds * load.target_qps))
        self.now += queries / load.target_qps
        self.loads.append(load)
        limit = self.limit * (self.flattery if load.seconds < LOAD.seconds else 1)
        p99 = 10 * load.target_qps / limit
        return Issued(
            valid=p99 <= 10,
            words="",
            queries=queries,
            samples_per_second=load.target_qps,
            p50_ms=1,
            p90_ms=p99,
            p99_ms=p99,
            bound_met=p99 <= 10,
            piled_up=p99 > 15,
        )

    def search(self, start: float) -> Search:
        return Search(self.issue, LOAD, start, clock=lambda: self.now)


@pytest.mark.parametrize("limit", [60, 150, 400, 401, 1000, 2500])
@pytest.mark.parametrize("start", [100.0, 400.0, 1600.0])
def test_the_rate_is_found_within_a_few_percent_and_within_the_time_said(limit: float, start: float) -> None:
    machine = Machine(limit)
    search = machine.search(start)
    said = search.limit_seconds
    found, load, issued = search.run()
    assert found.qps is not None
    assert limit / CLOSE_ENOUGH / 1.001 <= found.qps <= limit
    assert machine.now <= said
    assert len(found.tries) <= MAX_PROBES + MAX_CONFIRMATIONS
    assert load.target_qps == found.qps
    assert issued.valid


def test_the_last_run_is_a_whole_one_and_every_run_has_enough_queries() -> None:
    machine = Machine(400)
    found, load, _ = machine.search(100.0).run()
    assert load.seconds == LOAD.seconds
    assert found.tries[-1].confirms
    assert [t.confirms for t in found.tries].count(True) == 1
    assert all(t.queries >= QUERIES for t in found.tries)


def test_a_rate_that_only_probes_hold_is_taken_back() -> None:
    found, _, _ = Machine(400, probes_flatter=1.08).search(200.0).run()
    assert found.qps is not None
    assert 360 <= found.qps <= 400
    assert [t.valid for t in found.tries if t.confirms] == [*[False] * (sum(t.confirms for t in found.tries) - 1), True]


def test_one_hiccup_is_not_the_end_of_the_search() -> None:
    machine = Machine(1000)
    calm = machine.issue
    hiccups = [2, 5]

    def issue_with_hiccups(load: Load) -> Issued:
        found = calm(load)
        if len(machine.loads) in hiccups:
            return msgspec.structs.replace(found, valid=False, bound_met=False, p99_ms=12.0)
        return found

    found, _, _ = Search(issue_with_hiccups, LOAD, 100.0, clock=lambda: machine.now).run()
    assert found.qps is not None
    assert found.qps > 900


def test_without_a_rate_the_closest_is_named_and_the_time_still_holds() -> None:
    machine = Machine(1e-6)
    search = machine.search(200.0)
    found, load, _ = search.run()
    assert found.qps is None
    assert machine.now <= search.limit_seconds
    assert load.target_qps == min(t.qps for t in found.tries)
    assert no_rate(found).startswith("no rate holds p99 ≤ 10 ms; closest: p99 of")


def test_a_probe_that_a_whole_run_takes_back_is_not_the_closest() -> None:
    found, load, issued = Machine(1.0, probes_flatter=300).search(200.0).run()
    assert found.qps is None
    assert load.seconds == LOAD.seconds
    assert not issued.valid


class Sleeper:
    """A session that takes two milliseconds a batch, however large."""

    inputs = (TensorSpec("image", "uint8", ("N", 1)),)
    outputs = (TensorSpec("logits", "float32", ("N", 1)),)

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        pass

    def run(self, feeds):
        import time

        time.sleep(0.002)
        return {"logits": np.zeros((len(feeds["image"]), 1), np.float32)}


@pytest.mark.slow
def test_the_real_loadgen_finds_a_rate_below_what_the_server_can_do() -> None:
    """One at a time, at 2 ms and a little each, the server answers fewer than 500 a second. With a bound of 50 ms and an
    idle machine the rate found is near that; a busy test machine gets a part of it."""
    images = np.arange(64, dtype=np.uint8)[:, None]
    with CheckedSession(Sleeper(), name="sleeper", batch=BatchRange(1, 1, 8)) as session:
        load = Load("server", seconds=8, batch=1, latency_bound_ms=50, find_qps=True)
        loadgen = partial(issue, session, images)
        found, _, issued = Search(lambda wanted: loadgen(wanted, "unique"), load, 200.0).run()
    assert found.qps is not None
    assert 50 < found.qps < 500
    assert issued.p99_ms is not None and issued.p99_ms <= 50


@pytest.mark.alone
def test_find_qps_end_to_end(bundle_dir: Path, capsys) -> None:
    """A bound of a microsecond holds at no rate: exit 4, with the rates that were tried in the record."""
    line = ["bench", str(bundle_dir), "--variant", "onnx-fp32", "--scenario", "server", "--find-qps"]
    quick = ["--latency-bound", "0.001", "--target-qps", "20000", "--duration", "0.2", "--batch", "8"]
    assert run([*line, *quick, "--json"]) == 4
    said = capsys.readouterr()
    assert "at most 16 runs" in said.err
    (row,) = json.loads(said.out)["scenarios"]
    assert row["search"]["qps"] is None
    assert len(row["search"]["tries"]) >= 2
    assert row["reasons"][0].startswith("no rate holds")


@pytest.mark.parametrize(
    "options",
    [
        ["--find-qps"],
        ["--find-qps", "--scenario", "offline", "--latency-bound", "5"],
        ["--find-qps", "--scenario", "server"],
        ["--target-qps", "5", "--scenario", "offline"],
    ],
)
def test_find_qps_needs_the_server_and_a_bound(bundle_dir: Path, options: list[str]) -> None:
    assert run(["bench", str(bundle_dir), *options]) == 2


def test_a_search_needs_no_rate_but_a_bound() -> None:
    assert Load("server", latency_bound_ms=5, find_qps=True).target_qps is None
    with pytest.raises(UsageError):
        Load("server", find_qps=True)
