"""What becomes of workers that die while their bundle cannot be opened, and what one says of the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from attacks.processes import alive, children
from serve.conftest import Command, Starts, live_server
from serve.stores import until as until_so

from vggdeploy.serve import operations
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.telemetry import Metrics
from vggdeploy.serve.workers import StandIn


def workers(command: Command) -> set[int]:
    """Its worker processes."""
    found = children(command.process.pid)
    return {pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def until(command: Command, text: str, times: int) -> None:
    """Until its log has that many lines with this text."""
    end = time.monotonic() + 90
    while sum(text in line for line in command.lines) < times:
        assert time.monotonic() < end, command.lines
        time.sleep(0.05)


@pytest.mark.late
def test_workers_whose_bundle_was_altered_are_tried_later_and_later_and_nothing_is_ready_meanwhile(
    start: Starts, bundle_dir: Path, tmp_path: Path
) -> None:
    home = tmp_path / "served"
    shutil.copytree(bundle_dir, home)
    manifest = (home / "manifest.json").read_bytes()
    command = start(home, "--variant", "onnx-fp32", "--workers", "2", "--drain", "0")
    until(command, '"ready"', 2)
    time.sleep(1)  # its supervisor has seen that, too
    (home / "manifest.json").write_text("{}")
    first, second = workers(command)
    os.kill(first, signal.SIGKILL)
    until(command, "a worker could not start", 2)
    assert httpx.get(f"{command.url}/v2/health/ready").status_code == 200  # the other one goes on
    os.kill(second, signal.SIGKILL)
    until(command, "a worker could not start", 5)
    for path, status in (("ready", 503), ("live", 200)):
        assert httpx.get(f"{command.url}/v2/health/{path}").status_code == status
    refused = httpx.post(f"{command.url}/classify", content=b"x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "no worker could be started" in refused.json()["error"]
    waits = [json.loads(line)["again_in_seconds"] for line in command.lines if "a worker could not start" in line]
    assert sorted(waits[:5]) == [1, 1, 2, 2, 4]  # of either of them
    assert not [line for line in command.lines if "Traceback" in line or '"traceback"' in line]
    told = [json.loads(line) for line in command.lines if "the bundle cannot be opened" in line]
    assert all("manifest.json" in line["error"] for line in told)
    (home / "manifest.json").write_bytes(manifest)
    command.process.send_signal(signal.SIGHUP)  # now, and not in up to a minute
    until(command, '"ready"', 4)
    assert httpx.get(f"{command.url}/v2/health/ready").status_code == 200
    assert command.stop() == 0


@pytest.mark.late
@pytest.mark.parametrize("place", [0, 1])
def test_a_worker_that_hangs_keeps_the_others_from_nothing_when_the_server_ends(
    start: Starts, bundle_dir: Path, place: int
) -> None:
    """The attack: the supervisor asks the one that hangs, for up to two minutes, and SIGTERM comes."""
    command = start(bundle_dir, "--variant", "onnx-fp32", "--workers", "2", "--drain", "0", "--timeout", "5")
    until(command, '"ready"', 2)
    pids = sorted(workers(command))
    hung, other = pids[place], pids[1 - place]
    os.kill(hung, signal.SIGSTOP)
    time.sleep(2)  # it is asked every half second
    command.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 10  # sooner than the end of everything, which is 20 s after the signal
    while alive(other):
        assert time.monotonic() < end
        time.sleep(0.05)
    command.process.wait(40)
    assert not alive(hung)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n", b"200"),
        (b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n", b"503"),
        (b"POST /classify HTTP/1.1\r\n\r\n" + b"x" * 10_000, b"503"),
        (b"POST /classify HTTP/1.1\r\n\r\n" + b"x" * 5_000_000, b"503"),
        (b"\x16\x03\x01", b"503"),
    ],
)
def test_the_stand_in_answers_everybody_in_time_and_leaves_the_socket_to_others(sent: bytes, status: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        stand_in = StandIn(listener)
        with socket.create_connection(address, timeout=10), socket.create_connection(address, timeout=10) as asking:
            asking.sendall(sent)  # while another says nothing
            assert asking.recv(4096).split()[1] == status
        stand_in.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "vggdeploy-stand-in"]
        with socket.create_connection(address, timeout=10) as asking:
            listener.setblocking(True)
            taken, _ = listener.accept()
            taken.sendall(b"mine")
            taken.close()
            assert asking.recv(4) == b"mine"


def test_what_other_processes_show_too_is_written_without_being_asked_for(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: one worker or replica is asked, and the other's queue stands there as it was an hour ago, or not at all."""
    monkeypatch.setattr(Metrics, "shared", True)
    monkeypatch.setattr(operations, "_EVERY_SECONDS", 0.05)
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32")) as live:
        models = live.app.state.models
        gauge = models.metrics.registry.get_sample_value
        models.first.waiting = 3
        until_so(lambda: gauge("vggdeploy_queue_waiting") == 3)
        models.first.waiting = 0
        until_so(lambda: gauge("vggdeploy_queue_waiting") == 0)
