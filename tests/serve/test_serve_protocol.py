"""The Open Inference Protocol, spoken by Triton's own client, and what is refused of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve.conftest import Live, live_server

from vggdeploy.serve.settings import Settings

http = pytest.importorskip("tritonclient.http")

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def triton(live: Live) -> Iterator[Any]:
    with http.InferenceServerClient(live.address) as client:
        yield client


def test_tritons_client_finds_server_and_model(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("bundle")
    assert triton.is_model_ready("bundle", "1")
    assert not triton.is_model_ready("another")
    assert triton.get_server_metadata()["name"] == "vggdeploy"
    assert triton.get_model_repository_index() == [{"name": "bundle", "version": "1", "state": "READY", "reason": ""}]
    about = triton.get_model_metadata("bundle")
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 1]}]
    assert about["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    config = triton.get_model_config("bundle")
    assert config["max_batch_size"] == 32
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [32, 32, 1]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("rows", [1, 5])
def test_tritons_client_gets_the_reference_answers(
    triton: Any, golden: tuple[np.ndarray, np.ndarray], binary_in: bool, binary_out: bool | None, rows: int
) -> None:
    images, logits = golden
    tensor = http.InferInput("image", [rows, 32, 32, 1], "UINT8")
    tensor.set_data_from_numpy(images[:rows], binary_data=binary_in)
    outputs = None if binary_out is None else [http.InferRequestedOutput("logits", binary_data=binary_out)]
    found = triton.infer("bundle", [tensor], outputs=outputs, request_id="mine")
    assert found.get_response()["id"] == "mine"
    assert np.allclose(found.as_numpy("logits"), logits[:rows], atol=TOLERANCE)


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_tritons_client_may_compress(triton: Any, golden: tuple[np.ndarray, np.ndarray], how: str) -> None:
    images, logits = golden
    tensor = http.InferInput("image", [3, 32, 32, 1], "UINT8")
    tensor.set_data_from_numpy(images[:3])
    found = triton.infer("bundle", [tensor], request_compression_algorithm=how)
    assert np.allclose(found.as_numpy("logits"), logits[:3], atol=TOLERANCE)


def test_tritons_client_gets_classes(triton: Any, golden: tuple[np.ndarray, np.ndarray]) -> None:
    images, logits = golden
    tensor = http.InferInput("image", [2, 32, 32, 1], "UINT8")
    tensor.set_data_from_numpy(images[:2])
    for binary in (True, False):
        wanted = http.InferRequestedOutput("logits", binary_data=binary, class_count=3)
        classes = triton.infer("bundle", [tensor], outputs=[wanted]).as_numpy("logits")
        assert classes.shape == (2, 3)
        best = classes[0, 0]
        score, index, label = (best.decode() if isinstance(best, bytes) else best).split(":")
        assert int(index) == int(logits[0].argmax())
        assert label == index
        assert float(score) == pytest.approx(float(logits[0].max()), abs=1e-3)


def test_many_requests_of_tritons_client_at_once(live: Live, golden: tuple[np.ndarray, np.ndarray]) -> None:
    images, logits = golden
    with http.InferenceServerClient(live.address, concurrency=8) as client:
        asked = []
        for n in range(24):
            tensor = http.InferInput("image", [1, 32, 32, 1], "UINT8")
            tensor.set_data_from_numpy(images[n % 8 : n % 8 + 1])
            asked.append(client.async_infer("bundle", [tensor]))
        for n, one in enumerate(asked):
            assert np.allclose(one.get_result().as_numpy("logits")[0], logits[n % 8], atol=TOLERANCE)


def test_an_unknown_model_is_an_error_of_the_client(triton: Any, golden: tuple[np.ndarray, np.ndarray]) -> None:
    tensor = http.InferInput("image", [1, 32, 32, 1], "UINT8")
    tensor.set_data_from_numpy(golden[0][:1])
    with pytest.raises(Exception, match="no model 'another'"):
        triton.infer("another", [tensor])


def zeros(shape: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    size = shape or [1, 32, 32, 1]
    data = changes.pop("data") if "data" in changes else [0] * int(np.prod(size))
    tensor = {"name": "image", "shape": size, "datatype": "UINT8", "data": data, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "are not the graph's"),
        ({"inputs": 3}, "inputs"),
        (zeros(name="picture"), "['picture']"),
        (zeros(datatype="FP32"), "float32[1, 32, 32, 1]"),
        (zeros(datatype="FP64"), "none of UINT8, FP32"),
        (zeros(shape=[1, 31, 32, 1]), "[1, 31, 32, 1]"),
        (zeros(shape=[0, 32, 32, 1]), "a batch of 0"),
        (zeros(shape=[33, 32, 32, 1]), "33 rows came in one request, and 32 are computed"),
        (zeros(shape=[257, 32, 32, 1]), "257"),
        (zeros(data=[1, 2]), "2 numbers"),
        (zeros(data=[256] * 1024), "whole numbers from 0 to 255"),
        (zeros(data=[-1] * 1024), "whole numbers from 0 to 255"),
        (zeros(data=[0.5] * 1024), "whole numbers from 0 to 255"),
        (zeros(data=["a"] * 1024), "whole numbers from 0 to 255"),
        (zeros(data=[None] * 1024), "whole numbers from 0 to 255"),
        (zeros(data=[True] * 1024), "whole numbers from 0 to 255"),
        (zeros(data=[10**30] * 1024), "numbers"),
        (zeros(data=[[1], [1, 2]]), "no array of numbers"),
        (zeros(data=...), "has no data"),
        (zeros(shape=[-1, 32, 32, 1], data=[]), "shape"),
        (zeros(shape=[2**40], data=[]), "shape"),
        (zeros(parameters={"binary_data_size": 4}, data=...), "binary_data_size is 4, and 0 bytes are there"),
        (zeros(parameters={"binary_data_size": True}, data=...), "binary_data_size is True"),
        ({**zeros(), "outputs": [{"name": "logit"}]}, "output 'logit' is unknown"),
        ({**zeros(), "outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, "above 0"),
        ({**zeros(), "outputs": [{"name": "logits"}] * 2}, "'logits' is asked for twice"),
        ({"inputs": [zeros()["inputs"][0]] * 2}, "given twice"),
    ],
)
def test_what_contradicts_the_protocol_is_400_and_told(live: Live, request_: Any, told: str) -> None:
    reply = live.client.post("/v2/models/bundle/infer", json=request_)
    assert reply.status_code == 400, reply.text
    assert told in reply.json()["error"]
    assert reply.json()["fix"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"{}", {"Inference-Header-Content-Length": "5"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "many"}, 400),
        (
            json.dumps(zeros()).encode() + b"rest",
            {"Inference-Header-Content-Length": str(len(json.dumps(zeros())))},
            400,
        ),
        (b"no gzip", {"Content-Encoding": "gzip"}, 400),
        (b"x", {"Content-Encoding": "br"}, 400),
        (gzip.compress(b"0" * 2**25), {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(json.dumps(zeros()).encode()), {"Content-Encoding": "gzip"}, 200),
        (gzip.compress(json.dumps(zeros()).encode())[:-9], {"Content-Encoding": "gzip"}, 400),
    ],
)
def test_rubbish_is_400(live: Live, body: bytes, headers: dict[str, str], status: int) -> None:
    reply = live.client.post("/v2/models/bundle/infer", content=body, headers=headers)
    assert reply.status_code == status, reply.text


def test_a_nan_is_the_callers_mistake(float_bundle_dir: Path) -> None:
    with (
        live_server(Settings(bundle=str(float_bundle_dir))) as live,
        http.InferenceServerClient(live.address) as client,
    ):
        tensor = http.InferInput("image", [1, 1, 32, 32], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1, 32, 32), np.nan, np.float32))
        with pytest.raises(Exception, match="NaN or infinity"):
            client.infer("bundle", [tensor])
        tensor.set_data_from_numpy(np.full((1, 1, 32, 32), 0.5, np.float32))
        assert client.infer("bundle", [tensor]).as_numpy("logits").shape == (1, 10)
