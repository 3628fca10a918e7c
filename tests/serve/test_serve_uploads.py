"""A client that leaves while it sends: its own doing, and neither a bug nor a failure of the server."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest
from serve.conftest import Live

from vggdeploy.serve.telemetry import LOGGER


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """What the server logs meanwhile."""
    handler, level = Lines(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler.records
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def count(live: Live, line: str) -> float:
    """What /metrics says of this."""
    found = [row for row in live.client.get("/metrics").text.splitlines() if row.startswith(line)]
    return sum(float(row.split()[-1]) for row in found)


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("/classify", "Content-Length: 1000"),
        ("/embed", "Content-Length: 1000"),
        ("/classify", "Transfer-Encoding: chunked"),
        ("/classify", "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000"),
        ("/v2/models/bundle/infer", "Content-Length: 1000"),
    ],
)
def test_a_client_that_leaves_while_it_sends_is_one_line_and_no_500(
    live: Live, lines: list[logging.LogRecord], path: str, head: str
) -> None:
    host, port = live.address.split(":")
    before = count(live, "vggdeploy_uploads_broken_off_total")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        connection.sendall(
            b"5\r\nabcde\r\n" if "chunked" in head else b'--x\r\nContent-Disposition: form-data; name="f"'
        )
        time.sleep(0.1)  # it has begun to be read
    deadline = time.monotonic() + 10
    while count(live, "vggdeploy_uploads_broken_off_total") == before:
        assert time.monotonic() < deadline, [record.getMessage() for record in lines]
        time.sleep(0.02)
    (record,) = lines
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    about = record.about  # type: ignore[attr-defined]
    assert (about["path"], about["status"], about["ended"]) == (path, 499, "the client left while it sent")
    assert 'status="500"' not in live.client.get("/metrics").text


def test_one_that_leaves_after_it_has_sent_is_not_counted_among_them(
    live: Live, lines: list[logging.LogRecord]
) -> None:
    host, port = live.address.split(":")
    before = count(live, "vggdeploy_uploads_broken_off_total")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabcde")
    deadline = time.monotonic() + 10
    while not lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert count(live, "vggdeploy_uploads_broken_off_total") == before
