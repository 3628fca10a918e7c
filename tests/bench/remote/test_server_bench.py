"""``bench --url``: a server under load, whose answers are checked before its speed is told."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from serve.conftest import Live, live_server
from serve.grpc_calls import settings

import vggdeploy
from vggdeploy.bench.loadgen.scenarios import Load
from vggdeploy.bench.remote import arrivals, callers
from vggdeploy.bench.remote.clients import HttpClient, connect
from vggdeploy.bench.remote.questions import Questions
from vggdeploy.bench.remote.run import ServerPlan, bench_server
from vggdeploy.bench.remote.target import Target, parse_url, token_from
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.engine.engine import Engine
from vggdeploy.errors import IncompatibleError, VggdeployError
from vggdeploy.serve.grpc.server import reserved
from vggdeploy.serve.settings import Settings
from vggdeploy.types import Precision, Verdict

TOLERANCE = 1e-3
ODD = 3  # images a request


@pytest.fixture(scope="module")
def both(bundle_dir: Path) -> Iterator[tuple[str, str]]:
    """A server of the digits, by HTTP and by gRPC."""
    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port)) as live:
        yield live.url, f"grpc://127.0.0.1:{port}"


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, both: tuple[str, str]) -> str:
    return both[request.param == "grpc"]


@pytest.fixture
def engine(bundle_dir: Path) -> Iterator[Engine]:
    """An open engine, into whose session a test puts a fault."""
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as found:
        yield found


def faulty(engine: Engine, change: Any) -> Engine:
    """``change``: (outputs, feeds) → outputs, in place of what the session says."""
    real = engine._session.run
    engine._session.run = lambda feeds: change(real(feeds), feeds)  # type: ignore[method-assign]
    return engine


def asked(live: Live) -> Target:
    return replace(parse_url(live.url), model="bundle")


def images_of(bundle: Bundle) -> np.ndarray:
    return np.asarray(bundle.golden()[0]["image"])


def test_callers_and_rates_are_measured_and_proven_by_the_bundle(bundle: Bundle, url: str) -> None:
    plan = ServerPlan(batch=ODD, callers=(1, 2), rates=(20.0,), seconds=0.5, connections=8)
    report = bench_server(parse_url(url), bundle, plan)
    assert report.server is not None
    assert (report.server.url, report.server.same_machine) == (url, True)
    assert report.server.judged_as is Precision.FP32
    assert bundle.manifest.variant(report.server.held_against).precision is Precision.FP32
    assert report.server.server.startswith("vggdeploy ")
    assert [(r.scenario, r.connections, r.target_qps) for r in report.scenarios] == [
        ("callers", 1, None),
        ("callers", 2, None),
        ("server", 8, 20.0),
    ]
    for row in report.scenarios:
        assert (row.verdict, row.batch, row.failed) == (Verdict.PASS, ODD, 0)
        assert row.answers is not None
        assert (row.answers.verdict, row.answers.misplaced, row.answers.changed) == (Verdict.PASS, 0, 0)
        assert row.answers.outputs[0].output == "logits"
        assert row.p50_ms is not None
        assert row.server is not None
        assert row.server.requests >= row.queries  # its own count has the warm-up too
        assert row.server.run_ms > 0
        assert row.client_cores is not None


def test_without_a_bundle_nothing_is_proven(url: str) -> None:
    report = bench_server(parse_url(url), None, ServerPlan(callers=(1,), seconds=0.2))
    assert [row.verdict for row in report.scenarios] == [Verdict.UNPROVEN]
    assert report.server is not None and report.server.judged_as is None


@pytest.mark.late
def test_a_server_of_other_weights_fails_however_fast_it_is(engine: Engine, bundle: Bundle, bundle_dir: Path) -> None:
    faulty(engine, lambda outputs, feeds: {name: -array for name, array in outputs.items()})
    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:
        report = bench_server(asked(live), bundle, ServerPlan(callers=(1,), seconds=0.2))
        assert report.server is not None and report.server.judged_as is None
        (row,) = report.scenarios
        assert (row.verdict, row.valid) == (Verdict.FAIL, False)
        assert row.reasons[0].startswith("wrong output, by the limits of ")
        line = ["bench", str(bundle_dir), "--url", live.url, "--concurrency", "1", "--duration", "0.2", "--json"]
        assert run(line) == 3


def test_a_server_that_knows_the_golden_pair_only_is_found(engine: Engine, bundle: Bundle, bundle_dir: Path) -> None:
    known = {image.tobytes() for image in images_of(bundle)}

    def learnt(outputs: Any, feeds: Any) -> Any:
        others = [n for n, image in enumerate(feeds["image"]) if image.tobytes() not in known]
        changed = {name: array.copy() for name, array in outputs.items()}
        for array in changed.values():
            array[others] = np.roll(array[others], 1, axis=1)
        return changed

    with live_server(Settings(bundle=str(bundle_dir)), faulty(engine, learnt)) as live:
        report = bench_server(asked(live), bundle, ServerPlan(callers=(1,), seconds=0.2))
    assert report.server is not None and report.server.judged_as is Precision.FP32  # by the golden pair
    (row,) = report.scenarios
    assert (row.verdict, row.valid) == (Verdict.FAIL, False)
    assert any(f"otherwise than by {report.server.held_against} here" in reason for reason in row.reasons)


def test_a_request_that_ends_after_the_clock_is_among_the_times(
    engine: Engine, bundle: Bundle, bundle_dir: Path
) -> None:
    real, began = engine._session.run, threading.Event()

    def stalled(feeds: Any) -> Any:
        time.sleep(1.5 if began.is_set() else 0.1)
        return real(feeds)

    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:
        questions = Questions(asked(live), images_of(bundle)[:8], 1, TOLERANCE)
        engine._session.run = stalled  # type: ignore[method-assign]
        threading.Timer(0.7, began.set).start()
        issued = callers.waiting(questions, 16, 0.8).issued
    assert issued.p90_ms is not None
    assert issued.p90_ms > 1000  # each of the callers had one of them


@pytest.mark.late
def test_answers_that_are_given_to_the_wrong_caller_are_found(engine: Engine, bundle: Bundle, bundle_dir: Path) -> None:
    """They are right one by one: only callers that share a batch get each other's."""
    faulty(engine, lambda outputs, feeds: {name: array[::-1].copy() for name, array in outputs.items()})
    slow = engine._session.run
    engine._session.run = lambda feeds: (time.sleep(0.02), slow(feeds))[1]  # type: ignore[method-assign]  # so that batches form
    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:
        questions = Questions(asked(live), images_of(bundle), 1, TOLERANCE)
        assert callers.waiting(questions, 1, 0.2).misplaced == 0
        found = callers.waiting(questions, 6, 1.0)
        assert found.misplaced > 0
        plan = ServerPlan(callers=(6,), seconds=1.0)
        (row,) = bench_server(asked(live), bundle, plan).scenarios
    assert row.verdict is Verdict.FAIL
    assert any("belong to other requests" in reason for reason in row.reasons)


def test_answers_that_change_under_load_are_found_though_they_are_nobody_elses(
    engine: Engine, bundle: Bundle, bundle_dir: Path
) -> None:
    count = itertools.count()

    def drift(outputs: Any, feeds: Any) -> Any:
        late = next(count) >= 60  # calls: after those without load
        return {name: array + np.float32(0.1 * late * np.abs(array).max()) for name, array in outputs.items()}

    faulty(engine, drift)
    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:
        questions = Questions(asked(live), images_of(bundle), 1, TOLERANCE)
        found = callers.waiting(questions, 4, 1.0)
    assert found.changed > 0


@pytest.mark.parametrize("load", [None, Load("server", seconds=0.3, batch=1, target_qps=40, latency_bound_ms=30_000)])
@pytest.mark.parametrize(
    "answer", [b'{"outputs": []}', b'{"outputs": [{"name": "a", "datatype": "UINT8", "data": [300]}]}']
)
def test_answers_that_nothing_can_be_read_from_are_wrong_and_silence_no_caller(
    both: tuple[str, str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch, load: Load | None, answer: bytes
) -> None:
    questions = Questions(replace(parse_url(both[0]), model="bundle"), images_of(bundle), 1, TOLERANCE)
    real, count = HttpClient.infer, itertools.count()
    monkeypatch.setattr(
        HttpClient, "infer", lambda self, asked: real(self, asked) if next(count) % 2 else (answer, None)
    )
    found = arrivals.arriving(questions, 2, load) if load else callers.waiting(questions, 2, 0.3)
    assert found.changed > 0


def test_a_server_that_dies_before_the_clock_runs_is_not_waited_for(
    both: tuple[str, str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = Questions(replace(parse_url(both[0]), model="bundle"), images_of(bundle), 1, TOLERANCE)
    real, first = HttpClient.infer, itertools.count()

    def dies(self: HttpClient, request: Any) -> Any:
        if next(first):
            time.sleep(0.01)
            raise ConnectionRefusedError("refused")
        return real(self, request)

    monkeypatch.setattr(HttpClient, "infer", dies)
    with pytest.raises(VggdeployError, match=r"no answer came in time: .*refused"):
        callers.waiting(questions, 1, 2.0)


def test_a_fault_of_the_client_itself_ends_the_measurement(
    both: tuple[str, str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = Questions(replace(parse_url(both[0]), model="bundle"), images_of(bundle), 1, TOLERANCE)
    monkeypatch.setattr(Questions, "judge", lambda *given: 1 // 0)
    load = Load("server", seconds=0.3, batch=1, target_qps=40, latency_bound_ms=30_000)
    with pytest.raises(ZeroDivisionError):
        callers.waiting(questions, 2, 0.3)
    with pytest.raises(ZeroDivisionError):
        arrivals.arriving(questions, 2, load)


def test_the_strictest_limits_are_named_though_the_bundle_has_a_looser_fp32(
    both: tuple[str, str], bundle: Bundle
) -> None:
    looser = msgspec.structs.replace(bundle.manifest.reference(), name="torch-tf32", precision=Precision.TF32)
    other = Bundle(bundle.root, bundle.manifest.with_variants(looser))
    report = bench_server(parse_url(both[0]), other, ServerPlan(callers=(1,), seconds=0.2))
    assert report.server is not None and report.server.judged_as is Precision.FP32


def test_limits_that_were_missed_once_stay_missed(engine: Engine, bundle: Bundle, bundle_dir: Path) -> None:
    measuring = threading.Event()  # the golden pair before the load is answered coarsely; the one behind it exactly

    def coarse(outputs: Any, feeds: Any) -> Any:
        return {name: array * np.float32(1 if measuring.is_set() else 1 + 1e-3) for name, array in outputs.items()}

    faulty(engine, coarse)
    golden = len(images_of(bundle))
    with live_server(Settings(bundle=str(bundle_dir), max_batch=golden), engine) as live:
        plan = ServerPlan(batch=golden, callers=(1,), seconds=0.2)
        report = bench_server(asked(live), bundle, plan, on_progress=lambda *_: measuring.set())
    assert report.server is not None and report.server.judged_as is Precision.FP16


@pytest.mark.late
def test_requests_that_are_refused_are_counted_and_make_the_run_invalid(
    engine: Engine, bundle: Bundle, bundle_dir: Path
) -> None:
    real = engine._session.run
    engine._session.run = lambda feeds: (time.sleep(0.05), real(feeds))[1]  # type: ignore[method-assign]
    with live_server(Settings(bundle=str(bundle_dir), queue=1, max_batch=1), engine) as live:
        (row,) = bench_server(asked(live), bundle, ServerPlan(callers=(8,), seconds=0.5)).scenarios
    assert row.failed > 0
    assert not row.valid
    assert any("had no answer: HTTP 503" in reason for reason in row.reasons)
    assert row.verdict is Verdict.PASS  # what was answered was right


@pytest.mark.late
def test_a_stall_is_in_the_times_of_all_who_arrived_meanwhile(engine: Engine, bundle: Bundle, bundle_dir: Path) -> None:
    """No coordinated omission: one call takes a second and a half, and a third of the requests of four seconds wait for it; a
    caller that waits for its answer would have told of one slow request."""
    began = threading.Event()
    real = engine._session.run

    def stalled(feeds: Any) -> Any:
        if began.is_set():
            began.clear()
            time.sleep(1.5)
        return real(feeds)

    engine._session.run = stalled  # type: ignore[method-assign]
    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:
        questions = Questions(asked(live), images_of(bundle)[:8], 1, TOLERANCE)
        threading.Timer(2.0, began.set).start()
        load = Load("server", seconds=4, batch=1, target_qps=40, latency_bound_ms=30_000)
        issued = arrivals.arriving(questions, 64, load).issued
    assert issued.p90_ms is not None
    assert issued.p90_ms > 300


@pytest.mark.late
def test_more_than_the_server_answers_is_said_to_pile_up(engine: Engine, bundle: Bundle, bundle_dir: Path) -> None:
    real = engine._session.run
    engine._session.run = lambda feeds: (time.sleep(0.05), real(feeds))[1]  # type: ignore[method-assign]
    with live_server(Settings(bundle=str(bundle_dir), max_batch=1), engine) as live:
        plan = ServerPlan(rates=(100.0,), seconds=1.0, connections=16)
        (row,) = bench_server(asked(live), bundle, plan).scenarios
    assert not row.valid
    assert any("they pile up" in reason for reason in row.reasons)


def test_a_server_slower_than_the_time_is_measured_by_its_one_answer(
    engine: Engine, bundle: Bundle, bundle_dir: Path
) -> None:
    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:
        questions = Questions(asked(live), images_of(bundle)[:2], 1, TOLERANCE)
        real = engine._session.run
        engine._session.run = lambda feeds: (time.sleep(0.3), real(feeds))[1]  # type: ignore[method-assign]
        found = callers.waiting(questions, 1, 0.05)
    assert found.issued.queries == 1
    assert found.issued.samples_per_second < 1 / 0.3
    assert min(found.windows) == 0  # which makes the row invalid


def test_a_server_without_the_binary_extension_is_asked_in_json(both: tuple[str, str], bundle: Bundle) -> None:
    client = connect(replace(parse_url(both[0]), model="bundle"))
    inputs, outputs = bundle.golden()
    about = replace(client.model(), binary=False)
    request = client.prepare(about, inputs["image"][:2])
    assert json.loads(request[0])["inputs"][0]["data"][:3] == inputs["image"][0].ravel()[:3].tolist()
    answer = client.infer(request)
    assert answer[1] is None
    assert np.allclose(client.outputs(answer)["logits"], outputs["logits"][:2], atol=TOLERANCE)
    client.close()


def test_a_token_is_sent_and_its_lack_is_told(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("correct-horse-battery-staple\n")
    file.chmod(0o600)
    monkeypatch.delenv("VGGDEPLOY_TOKEN", raising=False)
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", token_file=str(file))) as live:
        target = asked(live)
        with pytest.raises(VggdeployError, match="HTTP 401"):
            bench_server(target, None, ServerPlan(callers=(1,), seconds=0.1))
        report = bench_server(replace(target, token=token_from(file)), None, ServerPlan(callers=(1,), seconds=0.1))
    assert report.scenarios[0].failed == 0


def test_a_bundle_of_another_input_is_refused_before_anything_is_measured(
    both: tuple[str, str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = replace(parse_url(both[0]), model="bundle")
    client = connect(target)
    real = client.model()
    client.close()
    other = replace(real, input=replace(real.input, item=(224, 224, 3)))
    monkeypatch.setattr("vggdeploy.bench.remote.clients.HttpClient.model", lambda self: other)
    with pytest.raises(IncompatibleError, match=r"takes image: UINT8\[N, 224, 224, 3\]"):
        bench_server(target, bundle, ServerPlan(callers=(1,)))


@pytest.mark.late
def test_the_command_finds_the_highest_rate_and_a_page_shows_it(
    both: tuple[str, str],
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vggdeploy.bench.loadgen.rates.QUERIES", 64)  # the search itself has tests of its own
    monkeypatch.setattr("vggdeploy.bench.loadgen.rates.MAX_PROBES", 3)
    line = ["bench", str(bundle_dir), "--url", both[1], "--concurrency", "1:2"]
    code = run(["--quiet", *line, "--find-qps", "--latency-bound", "5000", "--duration", "0.3", "--json"])
    found = json.loads(capsys.readouterr().out)
    *_, row = found["scenarios"]
    assert code == (4 if row["search"]["qps"] is None else 0)
    assert row["search"]["tries"]
    assert (
        row["server"]["requests"] <= row["queries"] + row["connections"]
    )  # of this run and its warm-up, not of the search
    assert found["command"].startswith("vggdeploy ")
    file = tmp_path / "server.json"
    file.write_text(json.dumps(found))
    assert run(["--quiet", "report", str(file), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "2 callers" in page
    assert both[1] in page
    capsys.readouterr()
    assert run(["--quiet", *line, "--duration", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "its golden pair is kept within the limits of fp32" in " ".join(shown.split())
