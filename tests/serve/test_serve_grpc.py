"""The Open Inference Protocol over gRPC, spoken by Triton's own clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as rpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serve.conftest import live_server
from serve.grpc_calls import TOLERANCE, Golden, image, settings, together

from vggdeploy.protocol import messages
from vggdeploy.serve.grpc.server import reserved
from vggdeploy.serve.settings import Settings


@pytest.fixture(scope="module")
def triton(address: str) -> Iterator[Any]:
    with rpc.InferenceServerClient(address) as client:
        yield client


def test_tritons_client_finds_server_and_model(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("bundle")
    assert triton.is_model_ready("bundle", "1")
    assert triton.get_server_metadata(as_json=True)["name"] == "vggdeploy"
    about = triton.get_model_metadata("bundle", as_json=True)
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "32", "32", "1"]}]
    assert about["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]}]
    config = triton.get_model_config("bundle").config
    assert config.max_batch_size == 32
    assert (config.input[0].name, config.input[0].data_type, list(config.input[0].dims)) == ("image", 2, [32, 32, 1])
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    index = triton.get_model_repository_index(as_json=True)["models"]
    assert index == [{"name": "bundle", "version": "1", "state": "READY"}]
    with pytest.raises(rpc.InferenceServerException, match="no model 'another' here"):
        triton.is_model_ready("another")
    with pytest.raises(rpc.InferenceServerException, match="no version '2'"):
        triton.get_model_metadata("bundle", "2")


@pytest.mark.parametrize("rows", [1, 5])
def test_tritons_client_gets_the_reference_answers(triton: Any, golden: Golden, rows: int) -> None:
    images, logits = golden
    for outputs in (None, [rpc.InferRequestedOutput("logits")]):
        found = triton.infer("bundle", [image(images[:rows])], outputs=outputs, request_id="mine")
        assert found.get_response().id == "mine"
        assert found.get_response().model_name == "bundle"
        assert np.allclose(found.as_numpy("logits"), logits[:rows], atol=TOLERANCE)


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_tritons_client_may_compress(triton: Any, golden: Golden, how: str) -> None:
    found = triton.infer("bundle", [image(golden[0][:3])], compression_algorithm=how)
    assert np.allclose(found.as_numpy("logits"), golden[1][:3], atol=TOLERANCE)


def test_tritons_client_gets_classes(triton: Any, golden: Golden) -> None:
    images, logits = golden
    wanted = rpc.InferRequestedOutput("logits", class_count=3)
    classes = triton.infer("bundle", [image(images[:2])], outputs=[wanted]).as_numpy("logits")
    assert classes.shape == (2, 3)
    score, index, label = classes[0, 0].decode().split(":")
    assert int(index) == int(logits[0].argmax())
    assert label == index
    assert float(score) == pytest.approx(float(logits[0].max()), abs=1e-3)


def test_many_requests_of_tritons_client_at_once_are_each_answered_with_its_own(triton: Any, golden: Golden) -> None:
    images, logits = golden
    found = together(triton, [images[n % 8 : n % 8 + 1] for n in range(24)])
    for number, one in enumerate(found):
        assert np.allclose(one.as_numpy("logits")[0], logits[number % 8], atol=TOLERANCE)


def test_a_stream_answers_one_after_the_other_and_goes_on_after_what_it_cannot(triton: Any, golden: Golden) -> None:
    images, logits = golden
    found: list[tuple[Any, Any]] = []
    triton.start_stream(lambda result, error: found.append((result, error)))
    for name in ("bundle", "another", "bundle"):
        triton.async_stream_infer(name, [image(images[:2])], request_id=name)
    triton.stop_stream()
    first, second, third = found
    assert np.allclose(first[0].as_numpy("logits"), logits[:2], atol=TOLERANCE)
    assert "no model 'another' here" in str(second[1])
    assert np.allclose(third[0].as_numpy("logits"), logits[:2], atol=TOLERANCE)


ASYNCIO = """
import asyncio, sys
import numpy as np
import tritonclient.grpc.aio as triton
async def main():
    async with triton.InferenceServerClient(sys.argv[1]) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("bundle")).inputs[0].name == "image"
        image = np.load(sys.argv[2])
        def tensor(n):
            found = triton.InferInput("image", [1, 32, 32, 1], "UINT8")
            found.set_data_from_numpy(image[n : n + 1])
            return found
        found = await asyncio.gather(*(client.infer("bundle", [tensor(n % 8)]) for n in range(24)))
        np.save(sys.argv[3], np.concatenate([one.as_numpy("logits") for one in found]))
        async def asked():
            for n in range(2):
                yield {"model_name": "bundle", "inputs": [tensor(n)]}
        assert [error async for _, error in client.stream_infer(asked())] == [None, None]
asyncio.run(main())
"""


def test_tritons_asyncio_client_gets_the_reference_answers(address: str, golden: Golden, tmp_path: Path) -> None:
    images, logits = golden
    np.save(tmp_path / "images.npy", images[:8])
    command = [sys.executable, "-c", ASYNCIO, address, tmp_path / "images.npy", tmp_path / "logits.npy"]
    subprocess.run(command, check=True, timeout=60)
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits[np.arange(24) % 8], atol=TOLERANCE)


def test_statistics_are_those_of_what_was_asked(bundle_dir: Path, golden: Golden) -> None:
    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port)) as live:
        with rpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            for rows in (1, 3, 3):
                client.infer("bundle", [image(golden[0][:rows])])
            with pytest.raises(rpc.InferenceServerException):
                client.infer("bundle", [image(golden[0][:1])], outputs=[rpc.InferRequestedOutput("logit")])
            (found,) = client.get_inference_statistics("bundle").model_stats
            assert client.get_inference_statistics().model_stats[0].name == "bundle"
        assert (found.inference_count, found.execution_count) == (7, 3)
        stats = found.inference_stats
        assert (stats.success.count, stats.fail.count) == (3, 1)
        parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
        assert 0 < stats.compute_infer.ns < stats.success.ns
        assert parts == pytest.approx(stats.success.ns, rel=0.01)
        batches = {one.batch_size: one.compute_infer.count for one in found.batch_stats}
        assert batches == {1: 1, 3: 2}
        (same,) = live.client.get("/v2/models/bundle/stats").json()["model_stats"]
        assert same["inference_count"] == 7
        assert same["batch_stats"][0]["batch_size"] == 1
        assert live.client.get("/v2/models/stats").json() == {"model_stats": [same]}
        assert live.client.get("/v2/models/another/stats").status_code == 404


def test_trace_and_log_settings_are_told_and_changed_only_where_it_starts(triton: Any) -> None:
    now = triton.get_trace_settings(model_name="bundle", as_json=True)["settings"]
    assert now["trace_level"]["value"] == ["OFF"]
    same = triton.update_trace_settings(settings={"trace_level": ["OFF"], "trace_rate": "1"}, as_json=True)
    assert same["settings"] == now
    for wrong in ({"trace_level": ["TIMESTAMPS"]}, {"trace_file": "/etc/passwd"}, {"trace_rate": "5"}):
        with pytest.raises(rpc.InferenceServerException, match="is set when the server starts"):
            triton.update_trace_settings(settings=wrong)
    logs = triton.get_log_settings()
    assert logs.settings["log_info"].bool_param is True
    assert logs.settings["log_verbose_level"].uint32_param == 0
    assert triton.update_log_settings({"log_info": True, "log_verbose_level": 0}) == logs
    for wrong in ({"log_file": "log"}, {"log_info": False}, {"log_verbose_level": 1}, {"rubbish": True}):
        with pytest.raises(rpc.InferenceServerException, match="is set when the server starts"):
            triton.update_log_settings(wrong)


def test_models_are_loaded_and_unloaded_by_clients_where_that_is_allowed(
    bundle_dir: Path, triton: Any, golden: Golden
) -> None:
    for wish in (triton.load_model, triton.unload_model):
        with pytest.raises(rpc.InferenceServerException, match="--model-control"):
            wish("bundle")
    two = {"bundle": f"one={bundle_dir}", "also": (f"two={bundle_dir}",), "variant": "onnx-fp32"}
    with reserved("127.0.0.1", 0) as port, live_server(Settings(**two, grpc_port=port, model_control=True)):
        client = rpc.InferenceServerClient(f"127.0.0.1:{port}")
        if client.is_server_ready():
            client.unload_model("two")
            assert not client.is_model_ready("two")
            ready = client.get_model_repository_index(as_json=True)["models"]
            assert {model["name"]: model["state"] for model in ready} == {"one": "READY", "two": "UNAVAILABLE"}
            with pytest.raises(rpc.InferenceServerException, match="unloaded"):
                client.infer("two", [image(golden[0][:1])])
            client.load_model("two")
            found = client.infer("two", [image(golden[0][:1])])
            assert found.get_response().model_name == "two"
            assert np.allclose(found.as_numpy("logits"), golden[1][:1], atol=TOLERANCE)
            with pytest.raises(rpc.InferenceServerException, match="no model 'three' here"):
                client.load_model("three")
            with pytest.raises(rpc.InferenceServerException, match="with its own configuration"):
                client.load_model("two", config="{}", files={"file:1/model.onnx": b"anything"})


def test_numbers_that_do_not_come_raw_are_read_too(address: str, golden: Golden) -> None:
    request = messages.message("ModelInferRequest")(model_name="bundle")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=[2, 32, 32, 1])
    tensor.contents.uint_contents.extend(golden[0][:2].ravel().tolist())
    with grpc.insecure_channel(address) as channel:
        reply = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")(request.SerializeToString(), timeout=20)
    found = messages.message("ModelInferResponse").FromString(reply)
    logits = np.frombuffer(found.raw_output_contents[0], "<f4").reshape(2, 10)
    assert np.allclose(logits, golden[1][:2], atol=TOLERANCE)


def test_health_and_reflection_are_grpcs_own(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", messages.SERVICE):
            status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            health.Check(health_pb2.HealthCheckRequest(service="rubbish"), timeout=10)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=messages.SERVICE),
        ]
        services, file = ask(iter(requests), timeout=10)
        names = {service.name for service in services.list_services_response.service}
        assert names == {messages.SERVICE, messages.HEALTH, messages.REFLECTION}
        assert file.file_descriptor_response.file_descriptor_proto == [
            one.SerializeToString() for one in messages.compiled().file
        ]


def test_the_compiled_description_is_that_of_the_proto(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    source = Path(messages.__file__).parent
    file = tmp_path / "made.binpb"
    assert protoc.main(["", f"-I{source}", f"--descriptor_set_out={file}", "inference.proto"]) == 0
    assert type(messages.compiled()).FromString(file.read_bytes()) == messages.compiled()


def test_names_and_numbers_are_those_of_tritons_own_client() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    count = 0

    def compare(ours: Any, other: Any) -> None:
        nonlocal count
        fields = {field.name: field for field in other.fields}
        for field in ours.fields:
            same = fields[field.name]
            assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated), (
                field.full_name
            )
            count += 1
            if field.enum_type is not None:
                values = {value.name: value.number for value in same.enum_type.values}
                assert {v.name: v.number for v in field.enum_type.values}.items() <= values.items()
        for nested in ours.nested_types:
            compare(nested, other.nested_types_by_name[nested.name])

    (file,) = messages.compiled().file
    for name in [message.name for message in file.message_type]:
        compare(messages.POOL.FindMessageTypeByName(f"inference.{name}"), theirs[name])
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for name, method in messages.METHODS.items():
        other = service.methods_by_name[name]
        assert (method.input_type.name, method.output_type.name) == (other.input_type.name, other.output_type.name)
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)
    assert count > 120
