"""What a child gets, and what is taken from it."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec
from vggdeploy.verify.fleet.exchange import Exchange, Job

JOB = Job(
    bundle="b",
    digest="0" * 64,
    variants=("v",),
    batches=(((0, 1), (0, 2)),),
    input=TensorSpec("image", "uint8", ("N", 2)),
    outputs=(TensorSpec("logits", "float32", ("N", 3)),),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    return path


@pytest.fixture
def exchange(model: Path) -> Iterator[Exchange]:
    images = np.arange(4, dtype=np.uint8).reshape(2, 2)
    with Exchange(JOB, images, [HashedFile.of(model)]) as opened:
        yield opened


def ask(exchange: Exchange, path: str, data: bytes | None = None, *, secret: str | None = None) -> tuple[int, bytes]:
    parts = urlsplit(exchange.address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    root = parts.path if secret is None else f"/{secret}/"
    connection.request("GET" if data is None else "POST", root + path, data)
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


def test_a_model_is_handed_out_while_it_is_the_one_that_was_checked(exchange: Exchange, model: Path) -> None:
    assert ask(exchange, "model/0") == (200, b"a model")
    assert ask(exchange, "images") == (200, bytes(range(4)))
    model.write_bytes(b"another")
    code, told = ask(exchange, "model/0")
    assert code == 400
    assert b"was altered" in told


@pytest.mark.parametrize("secret", ["", "x", "job"])
def test_without_the_secret_there_is_nothing(exchange: Exchange, secret: str) -> None:
    assert ask(exchange, "job", secret=secret)[0] == 404
    assert ask(exchange, "finished/0", b"", secret=secret)[0] == 404
    assert not exchange.finished


@pytest.mark.parametrize("path", ["model/1", "model/-1", "scripts/../exchange.py", "../harness.mjs", "x"])
def test_nothing_else_is_handed_out(exchange: Exchange, path: str) -> None:
    assert ask(exchange, path)[0] == 400


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("answer/0/0/0", 8),
        ("answer/0/1/0", 12),
        ("answer/0/2/0", 12),
        ("answer/1/0/0", 12),
        ("answer/0/0", 12),
        ("x", 0),
    ],
)
def test_what_is_no_answer_is_not_taken(exchange: Exchange, path: str, size: int) -> None:
    assert ask(exchange, path, bytes(size))[0] == 400
    assert not exchange.answers


def test_an_answer_is_taken_as_it_is_and_none_is_longer_than_it_can_be(exchange: Exchange) -> None:
    rows = np.arange(6, dtype=np.float32)
    assert ask(exchange, "answer/0/1/0", rows.tobytes())[0] == 200
    assert np.array_equal(exchange.answers[0, 1, 0], rows.reshape(2, 3))
    parts = urlsplit(exchange.address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.putrequest("POST", f"{parts.path}refused/0")
    connection.putheader("Content-Length", str(exchange.longest() + 1))
    connection.endheaders()  # answered before a byte of it is sent
    assert connection.getresponse().status == 413
    connection.close()
