"""What is refused over gRPC, with which status and which words."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as rpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serve.conftest import live_server
from serve.grpc_calls import Golden, image, raw, settings, together

from vggdeploy.engine.engine import Engine
from vggdeploy.errors import UsageError, VggdeployError
from vggdeploy.protocol import messages
from vggdeploy.serve.grpc import calls as calls_module
from vggdeploy.serve.grpc.server import reserved
from vggdeploy.serve.settings import Settings

FEW = {"max_body": 2**20, "body_budget": 2**21}  # two messages at a time
TOKEN = "correct-horse-battery-staple"  # noqa: S105


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"datatype": "FP32"}, "4096|1024"),
        ({"datatype": "FP64"}, "none of UINT8, FP32"),
        ({"shape": [1, 31, 32, 1]}, "1024 bytes are no UINT8"),
        ({"shape": [-1, 32, 32, 1]}, "shape"),
        ({"shape": []}, "shape"),
        ({"name": "picture"}, r"\['picture'\]"),
        ({"raw": []}, "0 bytes are no UINT8"),
        ({"raw": [b"x" * 1024] * 2}, "2 raw contents were sent for 1 inputs"),
        ({"contents": [256] * 1024, "raw": []}, "whole numbers from 0 to 255"),
        ({"twice": True}, "given twice|2 raw contents|1 raw contents"),
        ({"output": "logit"}, "output 'logit' is unknown"),
        ({"classification": 0}, "above 0"),
        ({"parameter": "shared_memory_region"}, "shared memory is not served"),
    ],
)
def test_what_contradicts_the_protocol_is_an_invalid_argument_and_told(
    address: str, change: dict[str, Any], told: str
) -> None:
    request = messages.message("ModelInferRequest")(model_name="bundle")
    for _ in range(2 if change.get("twice") else 1):
        tensor = request.inputs.add(
            name=change.get("name", "image"),
            datatype=change.get("datatype", "UINT8"),
            shape=change.get("shape", [1, 32, 32, 1]),
        )
    tensor.contents.uint_contents.extend(change.get("contents", []))
    if "parameter" in change:
        tensor.parameters[change["parameter"]].string_param = "x"
    request.raw_input_contents.extend(change.get("raw", [b"x" * 1024]))
    if "output" in change or "classification" in change:
        wanted = request.outputs.add(name=change.get("output", "logits"))
        if "classification" in change:
            wanted.parameters["classification"].int64_param = change["classification"]
    code, details = raw(address, request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(told, details), details


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x00" * 100, b"\x0a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_no_message_are_an_invalid_argument(address: str, data: bytes) -> None:
    code, details = raw(address, data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not of the protocol" in details


def test_too_large_a_message_is_refused_also_where_it_comes_small(bundle_dir: Path) -> None:
    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port, max_body=2**20)):
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            code, details = raw(f"127.0.0.1:{port}", bytes(2**21), compression=compression)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, details


@pytest.mark.parametrize("method", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister"])
def test_shared_memory_is_not_served_and_told(address: str, method: str) -> None:
    code, details = raw(address, b"", method)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "shared memory is not served" in details


def test_without_the_token_only_probes_are_answered(bundle_dir: Path, tmp_path: Path, golden: Golden) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port, token_file=str(file))) as live:
        address = f"127.0.0.1:{port}"
        with rpc.InferenceServerClient(address) as client:
            assert client.is_server_ready()
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
                for ask in (
                    lambda h: client.infer("bundle", [image(golden[0][:1])], headers=h),
                    lambda h: client.get_model_metadata("bundle", headers=h),
                    lambda h: client.get_inference_statistics(headers=h),
                ):
                    with pytest.raises(rpc.InferenceServerException, match="no valid bearer token"):
                        ask(header)
            given = {"authorization": f"Bearer {TOKEN}"}
            assert client.infer("bundle", [image(golden[0][:1])], headers=given).as_numpy("logits").shape == (1, 10)
        assert raw(address, b"", "ModelInfer")[0] is grpc.StatusCode.UNAUTHENTICATED
        assert raw(address, b"", "Rubbish")[0] is grpc.StatusCode.UNAUTHENTICATED
        with grpc.insecure_channel(address) as channel:
            ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            with pytest.raises(grpc.RpcError, match="no valid bearer token"):
                list(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10))
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        text = live.client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert 'vggdeploy_requests_total{route="grpc/other",status="UNAUTHENTICATED"}' in text


def test_overload_is_unavailable_and_what_takes_too_long_ends(
    bundle_dir: Path, gated: tuple[Engine, Any], golden: Golden
) -> None:
    engine, gate = gated
    with reserved("127.0.0.1", 0) as port:
        one = settings(bundle_dir, port, max_batch=1, queue=2, timeout=2.0)
        with live_server(one, engine) as live, rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            gate.clear()
            told = [str(error) for error in together(client, [golden[0][:1]] * 8)]
            assert any("UNAVAILABLE" in text and "are waiting already" in text for text in told)
            assert any("DEADLINE_EXCEEDED" in text for text in told)
            gate.set()
            assert client.infer("bundle", [image(golden[0][:1])]).as_numpy("logits").shape == (1, 10)
            assert "vggdeploy_overloads_total" in live.client.get("/metrics").text


def test_callers_who_send_nothing_stop_nobody(
    bundle_dir: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: as many calls as are received at a time, and none of them sends its message."""
    monkeypatch.setattr(calls_module, "_PATIENCE", 0.3)
    ended = threading.Event()
    with (
        reserved("127.0.0.1", 0) as port,
        live_server(settings(bundle_dir, port, **FEW)),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        infer = channel.stream_unary(f"/{messages.SERVICE}/ModelInfer")
        silent = [infer.future(_nothing(ended)) for _ in range(2)]
        time.sleep(1)  # alone they may take their time
        assert not any(call.done() for call in silent)
        with rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            found = client.infer("bundle", [image(golden[0][:1])], client_timeout=15)
            assert found.as_numpy("logits").shape == (1, 10)
        end = time.monotonic() + 15
        while not any(call.done() for call in silent):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert {call.code() for call in silent if call.done()} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        ended.set()


@pytest.mark.parametrize(
    "method", [f"{messages.SERVICE}/ServerLive", f"{messages.HEALTH}/Check", f"{messages.HEALTH}/Watch"]
)
def test_who_asks_without_a_message_is_not_waited_for(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The attack: as many calls as there may be, without a token, and each of them would be waited for without end."""
    monkeypatch.setattr(calls_module, "_ARRIVAL", 0.5)
    ended = threading.Event()
    with (
        reserved("127.0.0.1", 0) as port,
        live_server(settings(bundle_dir, port, connections=4)),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        silent = [channel.stream_unary(f"/{method}").future(_nothing(ended)) for _ in range(4)]
        with pytest.raises(grpc.RpcError) as error:
            silent[-1].result(timeout=15)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "the message took too long to arrive" in error.value.details()
        for call in silent:
            assert call.exception(timeout=15) is not None
        with rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_live(client_timeout=15)
        ended.set()


@pytest.mark.parametrize("method", ["ModelMetadata", "RepositoryIndex"])
def test_bytes_that_are_no_message_of_another_method_are_an_invalid_argument_too(address: str, method: str) -> None:
    code, details = raw(address, b"\xff\xff", method)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not of the protocol" in details


def test_there_are_no_more_streams_than_messages_that_fit(bundle_dir: Path, golden: Golden) -> None:
    ended = threading.Event()
    with (
        reserved("127.0.0.1", 0) as port,
        live_server(settings(bundle_dir, port, **FEW)) as live,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stream = channel.stream_stream(f"/{messages.SERVICE}/ModelStreamInfer")
        kept = [stream(_nothing(ended, b"")) for _ in range(2)]
        assert all(next(one) for one in kept)  # they are open
        with pytest.raises(grpc.RpcError, match="too many streams are open already") as refused:
            list(stream(iter([b""]), timeout=15))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        text = live.client.get("/metrics").text
        assert 'vggdeploy_requests_total{route="grpc/ModelStreamInfer",status="RESOURCE_EXHAUSTED"} 1.0' in text
        ended.set()
        assert [list(one) for one in kept] == [[], []]
        with rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            found: list[Any] = []
            answered = threading.Event()
            client.start_stream(lambda result, error: (found.append(error or result), answered.set()))
            client.async_stream_infer("bundle", [image(golden[0][:1])])
            assert answered.wait(15)
            assert found[0].as_numpy("logits").shape == (1, 10)


def _nothing(ended: threading.Event, *before: bytes) -> Iterator[bytes]:
    """The messages of a caller who sends these, and then none."""
    yield from before
    ended.wait(60)


def test_a_call_that_its_caller_cancels_gives_its_place_back(
    bundle_dir: Path, gated: tuple[Engine, Any], golden: Golden
) -> None:
    engine, gate = gated
    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port, max_batch=1), engine) as live:
        client = rpc.InferenceServerClient(f"127.0.0.1:{port}")
        batching = live.app.state.models.first.seat.served.batching
        gate.clear()
        calls = [client.async_infer("bundle", [image(golden[0][:1])], lambda result, error: None) for _ in range(3)]
        end = time.monotonic() + 20
        while batching.waiting < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        for call in calls:
            call.cancel()
        while batching.waiting:
            assert time.monotonic() < end
            time.sleep(0.01)
        gate.set()


def test_when_it_ends_what_is_under_way_is_answered_and_who_only_watches_is_not_waited_for(
    bundle_dir: Path, gated: tuple[Engine, Any], golden: Golden
) -> None:
    engine, gate = gated
    before = threading.enumerate()
    with reserved("127.0.0.1", 0) as port:
        client = rpc.InferenceServerClient(f"127.0.0.1:{port}")
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        with live_server(settings(bundle_dir, port, timeout=300.0), engine):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            client.start_stream(lambda result, error: None)
            gate.clear()
            found: list[Any] = []
            client.async_infer("bundle", [image(golden[0][:1])], lambda result, error: found.append(error or result))
            end = time.monotonic() + 20
            while not engine.health().active:
                assert time.monotonic() < end
                time.sleep(0.01)
            threading.Timer(0.5, gate.set).start()
        assert not [t for t in threading.enumerate() if t.name.endswith("(run)") and t not in before]
        while not found:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert found[0].as_numpy("logits").shape == (1, 10)
        client.stop_stream()
        channel.close()


def test_a_bug_is_internal_without_a_word_about_itself(
    bundle_dir: Path, gated: tuple[Engine, Any], golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = gated
    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port), engine) as live:
        monkeypatch.setattr(live.app.state.models.first.seat.served.batching, "answer_arrays", lambda _: 1 / 0)
        client = rpc.InferenceServerClient(f"127.0.0.1:{port}")
        with pytest.raises(rpc.InferenceServerException) as error:
            client.infer("bundle", [image(golden[0][:1])])
        assert "internal error — see the server's log" in str(error.value)
        assert "ZeroDivision" not in str(error.value)


def test_clients_do_not_control_the_models_of_one_of_several_workers() -> None:
    with pytest.raises(UsageError, match="one of --workers"):
        Settings(bundle="b", grpc_port=1, model_control=True, workers=2)


def test_a_port_that_is_taken_is_told_also_where_its_owner_would_share_it() -> None:
    told = pytest.raises(VggdeployError, match="cannot listen on")
    with reserved("127.0.0.1", 0) as port, told, reserved("127.0.0.1", port):
        pass
