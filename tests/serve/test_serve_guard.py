"""Who may ask, how much and how long; and what no answer ever holds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serve.conftest import Live, live_server

from vggdeploy.engine.engine import Engine
from vggdeploy.errors import UsageError
from vggdeploy.serve import server as connections
from vggdeploy.serve.settings import TOKEN_VARIABLE, Settings

TOKEN = "correct-horse-battery-staple"  # noqa: S105


@pytest.fixture(scope="module")
def locked(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    file = tmp_path_factory.mktemp("secret") / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", token_file=str(file))) as found:
        yield found


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer é" + TOKEN])
def test_without_the_token_nothing_is_answered(locked: Live, header: str, digit_png: Path) -> None:
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    for method, path in (
        ("POST", "/classify"),
        ("GET", "/v2/models/bundle"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ):
        reply = locked.client.request(method, path, headers=headers, content=digit_png.read_bytes())  # type: ignore[arg-type]
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"


def test_with_the_token_it_is_and_probes_and_the_page_need_none(locked: Live, digit_png: Path) -> None:
    for scheme in ("Bearer", "bearer"):
        reply = locked.client.post(
            "/classify", content=digit_png.read_bytes(), headers={"Authorization": f"{scheme} {TOKEN}"}
        )
        assert reply.status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.js", "/page.css"):
        assert locked.client.get(path).status_code == 200


@pytest.mark.parametrize("text", ["short", "", "two words that are long", "ümlaute-sind-lang-genug"])
def test_a_token_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="holds no token"):
        Settings(bundle="b", token_file=str(file)).token()


def test_a_token_that_everybody_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    with pytest.raises(UsageError, match="every user can read"):
        Settings(bundle="b", token_file=str(file)).token()
    with pytest.raises(UsageError, match="cannot be read"):
        Settings(bundle="b", token_file=str(tmp_path / "none")).token()
    assert Settings(bundle="b").token() is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert Settings(bundle="b").token() == TOKEN.encode()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "[::2]", "a b", "\x7f"]
)
def test_on_the_loopback_another_host_name_is_refused(live: Live, host: str) -> None:
    assert live.client.get("/v2", headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:80"])
def test_the_loopbacks_own_names_are_not(live: Live, host: str) -> None:
    assert live.client.get("/v2", headers={"Host": host}).status_code == 200


def test_a_page_of_another_site_is_refused(live: Live, digit_png: Path) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        reply = live.client.post("/classify", content=digit_png.read_bytes(), headers={"Sec-Fetch-Site": site})
        assert reply.status_code == status


@pytest.mark.parametrize("path", ["/", "/v2", "/nothing", "/metrics", "/openapi.json"])
def test_every_answer_has_the_safe_headers_and_an_id(live: Live, path: str) -> None:
    reply = live.client.get(path)
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert len(reply.headers["x-request-id"]) == 32
    assert "server" not in reply.headers
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ('"', False)]
)
def test_the_callers_request_id_is_kept_if_it_is_harmless(live: Live, given: str, kept: bool) -> None:
    assert (live.client.get("/v2", headers={"X-Request-Id": given}).headers["x-request-id"] == given) is kept


def raw(live: Live, data: bytes, patience: float = 2) -> bytes:
    """What comes back for these bytes, until the server closes or nothing comes for ``patience`` seconds."""
    host, port = live.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(patience)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except TimeoutError:
            pass
        return found


def test_a_large_body_is_refused_by_its_announcement_or_while_it_comes(live: Live) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 413 " in raw(live, head + b"Content-Length: 99999999999\r\n\r\nx").splitlines()[0]
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    assert (
        b" 413 "
        in raw(live, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 16 + b"5\r\nxxxxx\r\n").splitlines()[0]
    )


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"rubbish\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%00%ff%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the start of TLS
    ],
)
def test_broken_http_is_4xx_and_the_server_goes_on(live: Live, data: bytes) -> None:
    found = raw(live, data, patience=0.3)
    assert not found or b" 4" in found.splitlines()[0]
    assert live.client.get("/v2/health/ready").status_code == 200


def test_together_bodies_take_no_more_than_their_budget(bundle_dir: Path) -> None:
    settings = Settings(bundle=str(bundle_dir), variant="onnx-fp32", max_body=2**20, body_budget=2**21)
    with live_server(settings) as live:
        host, port = live.address.split(":")
        head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n"
        slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
        for connection in slow:
            connection.sendall(head)
        deadline = time.monotonic() + 5
        while (reply := live.client.post("/classify", content=b"x" * 4096)).status_code != 503:
            assert time.monotonic() < deadline
        assert "too many bytes" in reply.json()["error"]
        for connection in slow:
            connection.close()
        deadline = time.monotonic() + 5
        while live.client.post("/classify", content=b"x" * 4096).status_code != 400:
            assert time.monotonic() < deadline


def test_a_body_that_trickles_in_ends_with_408(bundle_dir: Path) -> None:
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", timeout=0.5)) as live:
        host, port = live.address.split(":")
        found = b""
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nslow")
            while part := connection.recv(65536):  # until the server hangs up, which is asked for
                found += part
        assert b" 408 " in found.splitlines()[0]
        assert b"connection: close" in found.lower()


def test_headers_that_never_end_are_cut_off(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 0.3)
    host, port = live.address.split(":")
    whole, part = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /v2 HTTP/1.1\r\nX: "
    for first, then in ((b"", b""), (b"", part), (whole, part)):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(first)
            if first:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(then)
            while connection.recv(65536):  # until the server hangs up
                pass


def test_overload_is_503_at_once_with_retry_after_and_what_was_taken_is_answered(
    bundle_dir: Path, gated: tuple[Engine, threading.Event], digit_png: Path
) -> None:
    engine, gate = gated
    settings = Settings(bundle=str(bundle_dir), max_batch=2, queue=4)
    with live_server(settings, engine) as live, ThreadPoolExecutor(24) as pool:
        gate.clear()
        data = digit_png.read_bytes()

        def ask(_: int) -> tuple[int, float, httpx.Headers]:
            started = time.monotonic()
            reply = httpx.post(f"{live.url}/classify", content=data, timeout=30)
            return reply.status_code, time.monotonic() - started, reply.headers

        asked = [pool.submit(ask, n) for n in range(24)]
        deadline = time.monotonic() + 20
        while sum(one.done() for one in asked) < 24 - 2 - 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = [one.result() for one in asked if one.done()]
        gate.set()
        statuses = sorted(one.result()[0] for one in asked)
        assert set(statuses) == {200, 503}
        assert 4 <= statuses.count(200) <= 6
        assert all(status == 503 and headers["retry-after"] == "1" for status, _, headers in refused)
        text = live.client.get("/metrics").text
        assert f"vggdeploy_overloads_total {float(statuses.count(503))}" in text


def test_a_request_that_takes_too_long_is_503_and_one_whose_client_left_is_not_computed(
    bundle_dir: Path, gated: tuple[Engine, threading.Event], digit_png: Path
) -> None:
    engine, gate = gated
    data = digit_png.read_bytes()
    with live_server(Settings(bundle=str(bundle_dir), max_batch=1, timeout=1.5), engine) as live:
        gate.clear()
        batching = live.app.state.served.batching
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(live.client.post, "/classify", content=data)
            deadline = time.monotonic() + 10
            while engine.health().active < 1:
                assert time.monotonic() < deadline
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{live.url}/classify", content=data, timeout=0.3)
            while batching.waiting:  # the client has gone, so its place is free before its time is up
                assert time.monotonic() < deadline
            assert not first.done()
            assert first.result().status_code == 503
            assert "no answer in time" in first.result().json()["error"]
        gate.set()
        assert live.client.post("/classify", content=data).status_code == 200


def test_a_bug_is_a_500_without_a_word_about_itself(
    bundle_dir: Path, gated: tuple[Engine, threading.Event], digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = gated
    with live_server(Settings(bundle=str(bundle_dir)), engine) as live:

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("/secret/path at 0xdeadbeef")

        monkeypatch.setattr(live.app.state.served.batching, "classified", broken)
        reply = live.client.post("/classify", content=digit_png.read_bytes())
        assert (reply.status_code, reply.json()["error"]) == (500, "internal error")
        assert "secret" not in reply.text
        monkeypatch.undo()
        engine._session.run = broken  # type: ignore[method-assign,assignment]
        reply = live.client.post("/classify", content=digit_png.read_bytes())
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert live.client.get("/v2/health/ready").status_code == 200  # the next request may be a good one


def test_a_client_that_closed_its_own_half_is_answered(live: Live, digit_png: Path) -> None:
    host, port = live.address.split(":")
    data = digit_png.read_bytes()
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as half:
        half.sendall(head.encode() + data)
        half.shutdown(socket.SHUT_WR)
        answer = b""
        while part := half.recv(65_536):
            answer += part
    # Either it is answered, or it is cut off as a client that has left; it never hangs, and others are served.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200")
    assert live.client.post("/classify", content=data).status_code == 200


def test_connections_that_break_in_the_middle_of_a_request_leave_nothing(live: Live, digit_png: Path) -> None:
    host, port = live.address.split(":")
    for cut in (1, 20, 60, 90):
        head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b"x" * 40
        broken = socket.create_connection((host, int(port)), timeout=20)
        broken.sendall(head[:cut])
        # No FIN but a reset: what a pulled cable or a dead process looks like.
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        broken.close()
    assert live.client.post("/classify", content=digit_png.read_bytes()).status_code == 200
