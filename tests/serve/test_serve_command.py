"""``vggdeploy serve`` as a process: how it starts, drains, reloads, ends, and what it says when it cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from attacks.processes import children
from serve.conftest import Command, Starts

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run

pytestmark = pytest.mark.late


def test_it_serves_logs_json_with_request_ids_and_ends_with_0_after_sigterm(
    start: Starts, bundle_dir: Path, digit_png: Path
) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32", "--drain", "0")
    reply = httpx.post(f"{command.url}/classify", content=digit_png.read_bytes(), headers={"X-Request-Id": "mine-1"})
    assert reply.json()["predictions"][0]["label"] == digit_png.stem
    line = json.loads(command.wait_for("mine-1"))
    assert (line["path"], line["status"], line["level"]) == ("/classify", 200, "info")
    assert command.stop() == 0
    after_start = [entry for entry in command.lines if not entry.startswith("serving ")]
    assert all(json.loads(entry)["time"] for entry in after_start)
    assert str(bundle_dir) not in "".join(after_start)


def test_isolated_it_answers_the_same_and_leaves_no_decoder_behind(
    start: Starts, bundle_dir: Path, digit_png: Path
) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32", "--drain", "0", "--isolate")
    decoders = children(command.process.pid)
    reply = httpx.post(f"{command.url}/classify", content=digit_png.read_bytes())
    assert reply.json()["predictions"][0]["label"] == digit_png.stem
    damaged = httpx.post(f"{command.url}/classify", content=digit_png.read_bytes()[:60])
    assert damaged.status_code == 400
    assert len(decoders) >= 1
    assert command.stop() == 0
    assert not [pid for pid in decoders if Path(f"/proc/{pid}").exists()]


def test_ctrl_c_ends_with_130(start: Starts, bundle_dir: Path) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32")
    assert command.stop(signal.SIGINT) == 130
    assert "Traceback" not in "".join(command.lines)


def test_it_drains_not_ready_then_answers_what_is_under_way_then_ends(
    start: Starts, bundle_dir: Path, digit_png: Path
) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32", "--drain", "1.5")
    host, port = command.url.removeprefix("http://").split(":")
    data = digit_png.read_bytes()
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with httpx.Client(base_url=command.url) as client, socket.create_connection((host, int(port)), timeout=20) as slow:
        assert client.get("/v2/health/ready").status_code == 200
        slow.sendall(head + data[:100])
        ended = threading.Thread(target=command.stop)
        ended.start()
        command.wait_for("draining")
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        assert client.post("/classify", content=data).status_code == 200  # not yet gone
        command.wait_for("Shutting down")
        time.sleep(0.3)
        slow.sendall(data[100:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
    ended.join(20)
    assert command.process.wait(20) == 0


def test_sighup_takes_the_bundle_that_now_stands_there_and_keeps_the_old_one_when_it_is_bad(
    start: Starts, bundle_dir: Path, digit_png: Path, tmp_path: Path
) -> None:
    home = tmp_path / "served"
    shutil.copytree(bundle_dir, home)
    command = start(home, "--variant", "onnx-fp32", "--drain", "0")

    def label() -> str:
        reply: dict[str, Any] = httpx.post(f"{command.url}/classify", content=digit_png.read_bytes()).json()
        return str(reply["predictions"][0]["label"])

    assert label() == digit_png.stem
    opened = Bundle.open(home)
    with update_bundle(opened) as draft:
        labels = tuple(f"new {label}" for label in opened.manifest.labels)
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=labels)
    command.process.send_signal(signal.SIGHUP)
    command.wait_for('"reloaded"')
    assert label() == f"new {digit_png.stem}"
    (home / "manifest.json").write_text("{}")
    command.process.send_signal(signal.SIGHUP)
    command.wait_for("the reload failed")
    assert label() == f"new {digit_png.stem}"
    assert command.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["/nowhere"], 1, "does not exist"),
        (["{bundle}", "--backend", "onnxrutime"], 2, "did you mean 'onnxruntime'"),
        (["{bundle}", "--device", "cuda", "--variant", "onnx-fp32"], 5, "cannot run here"),
        (["{bundle}", "--workers", "0"], 2, "--workers is 0"),
        (["{bundle}", "--queue", "0"], 2, "--queue is 0"),
        (["{bundle}", "--port", "99999"], 2, "--port is 99999"),
        (["{bundle}", "--timeout", "nan"], 2, "--timeout is nan"),
        (["{bundle}", "--max-batch", "1000"], 2, "takes 256 at most"),
        (["{bundle}", "--max-batch", "0"], 2, "max_batch is 0"),
        (["{bundle}", "--max-delay-ms", "-1"], 2, "max_delay_ms is -1"),
        (["{bundle}", "--max-body", "16"], 2, "16"),
        (["{bundle}", "--host", "256.256.256.256"], 1, "cannot listen"),
        (["{bundle}", "--host", "203.0.113.7"], 1, "cannot listen"),
        (["{bundle}", "--token-file", "/nowhere"], 2, "/nowhere cannot be read"),
        (["{bundle}", "--token", "secret"], 2, "--token"),
        (["{bundle}", "--trusted-key", "/nowhere"], 1, "is not signed"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_the_right_code(
    bundle_dir: Path, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(bundle=bundle_dir) for argument in arguments]
    port = [] if "--port" in given else ["--port", "0"]
    assert run(["serve", *given, *port]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown


def test_a_port_that_is_taken_is_told(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert run(["serve", str(bundle_dir), "--port", str(other.getsockname()[1])]) == 1
    assert "Address already in use" in capsys.readouterr().err


def until_page_says(url: str, line: str) -> None:
    end = time.monotonic() + 15
    while line not in (text := httpx.get(f"{url}/metrics").text).splitlines():
        assert time.monotonic() < end, text
        time.sleep(0.2)


def workers(command: Command) -> set[int]:
    """Its worker processes."""
    found = children(command.process.pid)
    return {pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_only_its_requests_fail(
    start: Starts, bundle_dir: Path, digit_png: Path
) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32", "--workers", "2", "--drain", "0")
    deadline = time.monotonic() + 60
    while sum('"ready"' in line for line in command.lines) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = workers(command)
    assert len(before) == 2
    data = digit_png.read_bytes()
    stop = threading.Event()
    failed: list[tuple[int, str]] = []
    answered = [0] * 4
    killed_at = [0.0]

    def ask(number: int) -> None:
        while not stop.is_set():
            try:
                with httpx.Client(base_url=command.url, timeout=20) as client:  # a connection goes to one worker
                    for _ in range(5):
                        assert client.post("/classify", content=data).status_code == 200
                        answered[number] += 1
            except httpx.TransportError as error:
                failed.append((number, f"{time.monotonic() - killed_at[0]:.2f} s after: {error!r}"))

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for asker in askers:
        asker.start()
    time.sleep(1)
    victim = min(before)
    killed_at[0] = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while len(workers(command) - {victim}) < 2 or sum('"ready"' in line for line in command.lines) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    then = list(answered)
    time.sleep(1)
    stop.set()
    for asker in askers:
        asker.join(30)
    assert len(failed) <= 4, failed  # at most what each caller had under way
    assert all(now > at for now, at in zip(answered, then, strict=True))
    text = httpx.get(f"{command.url}/metrics").text
    served = next(
        line
        for line in text.splitlines()
        if line.startswith('vggdeploy_requests_total{route="/classify",status="200"}')
    )
    assert float(served.split()[-1]) >= sum(answered)  # of all workers, the dead one's too
    until_page_says(command.url, "vggdeploy_ready 2.0")  # of those that live
    assert command.stop() == 0
    assert not children_left(before | {command.process.pid})


def children_left(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}
