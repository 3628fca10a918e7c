"""Traces and metrics, as a collector receives them over OTLP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as rpc
from serve.conftest import Live, Starts, live_server

from vggdeploy.errors import UsageError
from vggdeploy.serve.grpc.server import reserved
from vggdeploy.serve.settings import Settings

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from serve.collector import Collector, attributes, collecting

from vggdeploy.serve.tracing import Tracing

PARTS = ["decode", "queue", "run", "encode"]
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=value"}


@pytest.fixture
def collected(bundle_dir: Path) -> Any:
    with (
        collecting() as collector,
        live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", otlp=collector.url)) as live,
    ):
        yield live, collector


Collected = tuple[Live, Collector]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


def test_a_request_is_a_span_within_the_callers_trace_and_its_parts_are_spans_within_it(
    collected: Collected, digit_png: Path
) -> None:
    live, collector = collected
    before = time.time_ns()
    reply = live.client.post("/classify", content=digit_png.read_bytes(), headers={**PARENT, "X-Request-Id": "mine"})
    took = reply.json()["time_ms"]
    spans = collector.wait_for(5)
    whole = spans["POST /classify"]
    assert sorted(spans) == sorted([*PARTS, "POST /classify"])
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert whole.parent_span_id.hex() == CALLER
    assert whole.trace_state == "vendor=value"
    assert whole.kind == whole.SPAN_KIND_SERVER
    about = attributes(whole)
    assert about["http.route"] == "/classify"
    assert about["http.response.status_code"] == 200
    assert about["vggdeploy.request_id"] == "mine"
    assert "?" not in about["url.path"]
    parts = [spans[name] for name in PARTS]
    assert {part.parent_span_id for part in parts} == {whole.span_id}
    assert len({span.span_id for span in spans.values()}) == 5
    # They follow each other, within the request, and last as long as the answer says.
    edges = [whole.start_time_unix_nano]
    for part in parts:
        edges += [part.start_time_unix_nano, part.end_time_unix_nano]
    edges.append(whole.end_time_unix_nano)
    assert edges == sorted(edges)
    assert before - 1e6 <= edges[0] < edges[-1] <= time.time_ns() + 1e6
    for name, told in (("queue", "queue"), ("run", "compute")):
        lasted = (spans[name].end_time_unix_nano - spans[name].start_time_unix_nano) / 1e6
        assert lasted == pytest.approx(took[told], abs=0.01)
    assert attributes(spans["run"])["vggdeploy.batch.rows"] == 1
    assert attributes(spans["run"])["vggdeploy.variant"] == "onnx-fp32"
    assert collector.resources[0]["service.name"] == "vggdeploy"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "vggdeploy"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=digits,service.namespace=shop"}, "digits"),
        ({"OTEL_SERVICE_NAME": "faces", "OTEL_RESOURCE_ATTRIBUTES": "service.name=digits"}, "faces"),
        ({"OTEL_SERVICE_NAME": ""}, "vggdeploy"),
    ],
)
def test_either_of_opentelemetrys_variables_names_the_service(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with collecting() as collector:
        tracing = Tracing(collector.url)
        tracing.begin("rpc", {}, {}).end("asked", {})
        tracing.close()
        assert [one["service.name"] for one in collector.resources] == [name]


def test_without_a_caller_a_trace_begins_here_and_a_damaged_one_is_none(collected: Collected, digit_png: Path) -> None:
    live, collector = collected
    for number, given in enumerate(
        ({}, {"traceparent": "00-zz-zz-01"}, {"traceparent": f"00-{'0' * 32}-{CALLER}-01"}), 1
    ):
        live.client.post("/classify", content=digit_png.read_bytes(), headers=given)
        collector.wait_for(5 * number)
    wholes = [span for span in collector.spans if span.name == "POST /classify"]
    assert all(not span.parent_span_id for span in wholes)
    assert len({span.trace_id for span in wholes}) == 3
    assert all(any(span.trace_id) for span in wholes)


def test_a_caller_who_does_not_record_is_not_recorded(collected: Collected, digit_png: Path) -> None:
    live, collector = collected
    unsampled = {"traceparent": f"00-{'1' * 32}-{CALLER}-00"}
    live.client.post("/classify", content=digit_png.read_bytes(), headers=unsampled)
    live.client.post("/classify", content=digit_png.read_bytes(), headers=PARENT)
    collector.wait_for(5)
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


def test_arrays_refusals_and_failures_are_traced_and_probes_are_not(
    collected: Collected, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, collector = collected
    data = np.zeros((2, 32, 32, 1), np.uint8)
    request = {
        "inputs": [{"name": "image", "shape": list(data.shape), "datatype": "UINT8", "data": data.ravel().tolist()}]
    }
    assert live.client.post("/v2/models/bundle/infer", json=request).status_code == 200
    spans = collector.wait_for(5)
    assert attributes(spans["run"])["vggdeploy.batch.rows"] == 2
    assert "POST /v2/models/{model}/infer" in spans
    live.client.get("/v2/health/ready")
    live.client.get("/metrics")
    assert live.client.post("/classify", content=b"none").status_code == 400
    assert live.client.get("/nowhere").status_code == 404
    spans = collector.wait_for(7)
    assert attributes(spans["POST /classify"])["http.response.status_code"] == 400
    assert spans["POST /classify"].status.code == 0
    assert "GET other" in spans
    monkeypatch.setattr(live.engine._session, "run", lambda feeds: 1 / 0)
    assert live.client.post("/v2/models/bundle/infer", json=request).status_code == 500
    collector.wait_for(8)
    last = collector.spans[-1]
    assert last.status.code == last.status.STATUS_CODE_ERROR
    assert len(collector.spans) == 8


def test_metrics_come_when_it_ends_if_not_before(bundle_dir: Path, digit_png: Path) -> None:
    with collecting() as collector:
        with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", otlp=collector.url + "/")) as live:
            for _ in range(3):
                live.client.post("/classify", content=digit_png.read_bytes())
        (requests,) = collector.metrics["http.server.request.duration"].histogram.data_points
        assert requests.count == 3
        assert attributes(requests) == {
            "http.request.method": "POST", "http.route": "/classify", "http.response.status_code": 200
        }  # fmt: skip
        assert 0 < requests.sum < 30
        stages = collector.metrics["vggdeploy.stage.duration"].histogram.data_points
        assert {attributes(point)["stage"]: point.count for point in stages} == dict.fromkeys(PARTS, 3)
        (rows,) = collector.metrics["vggdeploy.batch.rows"].histogram.data_points
        assert rows.sum == 3


def test_a_call_over_grpc_is_a_span_with_the_same_parts(bundle_dir: Path) -> None:
    data = np.zeros((2, 32, 32, 1), np.uint8)
    with collecting() as collector, reserved("127.0.0.1", 0) as port:
        settings = Settings(bundle=str(bundle_dir), variant="onnx-fp32", otlp=collector.url, grpc_port=port)
        with live_server(settings), rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            tensor = rpc.InferInput("image", list(data.shape), "UINT8")
            tensor.set_data_from_numpy(data)
            client.infer("bundle", [tensor], headers=PARENT)
            with pytest.raises(rpc.InferenceServerException):
                client.infer("another", [tensor], headers=PARENT)
        whole, refused = (span for span in collector.spans if span.name == "inference.GRPCInferenceService/ModelInfer")
        assert [attributes(span)["rpc.response.status_code"] for span in (whole, refused)] == ["OK", "NOT_FOUND"]
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
        assert whole.parent_span_id.hex() == CALLER
        parts = {span.name: span for span in collector.spans if span.parent_span_id == whole.span_id}
        assert sorted(parts) == sorted(PARTS)
        assert attributes(parts["run"])["vggdeploy.batch.rows"] == 2
        calls = collector.metrics["rpc.server.call.duration"].histogram.data_points
        assert {attributes(call)["rpc.response.status_code"]: call.count for call in calls} == {"OK": 1, "NOT_FOUND": 1}


def test_off_no_sdk_and_no_exporter_is_imported(bundle_dir: Path) -> None:
    code = """
import sys
from vggdeploy.serve.app import create_app
from vggdeploy.serve.settings import Settings
create_app(Settings(bundle=sys.argv[1]))
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
"""
    subprocess.run([sys.executable, "-c", code, bundle_dir], check=True)


@pytest.mark.parametrize(
    "url", ["", "collector", "localhost:4318", "ftp://h:1", "http://", "http://h:x", "http://[::1", "http://h?a=b"]
)
def test_what_is_no_collector_is_told(url: str) -> None:
    with pytest.raises(UsageError, match=r"--otlp is .* no URL of a collector"):
        Settings(bundle="b", otlp=url)


@pytest.mark.late
def test_the_command_logs_trace_ids_and_ends_in_time_where_no_collector_answers(
    start: Starts, bundle_dir: Path, digit_png: Path
) -> None:
    # Nobody listens on port 9.
    command = start(bundle_dir, "--variant", "onnx-fp32", "--drain", "0", "--otlp", "http://127.0.0.1:9")
    reply = httpx.post(
        f"{command.url}/classify", content=digit_png.read_bytes(), headers={**PARENT, "X-Request-Id": "a1"}
    )
    assert reply.status_code == 200
    line = json.loads(command.wait_for('"a1"'))
    assert line["trace_id"] == TRACE
    assert len(line["span_id"]) == 16
    before = time.monotonic()
    assert command.stop() == 0
    assert time.monotonic() - before < 20
    assert all(json.loads(entry) for entry in command.lines if not entry.startswith("serving "))
    assert any("export" in entry.lower() for entry in command.lines)
    assert "Traceback" not in "".join(command.lines)


@pytest.mark.late
def test_each_worker_sends_its_own(
    start: Starts, bundle_dir: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        command = start(bundle_dir, "--variant", "onnx-fp32", "--workers", "2", "--drain", "0", "--otlp", collector.url)
        end = time.monotonic() + 60
        while len({about["process.pid"] for about in collector.resources}) < 2:
            assert time.monotonic() < end
            httpx.post(f"{command.url}/classify", content=digit_png.read_bytes())  # each on a connection of its own
        assert command.stop() == 0
        assert len({about["service.instance.id"] for about in collector.resources}) == 2
