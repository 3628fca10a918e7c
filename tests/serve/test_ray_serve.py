"""`vggdeploy serve --ray`: the same answers through Ray's proxy, from a replica that is replaced when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from attacks.processes import called
from serve.ray_server import ray_server

import vggdeploy
from vggdeploy.system.optional import installed

_REPLICA = b"ray::ServeReplica"
pytestmark = [
    pytest.mark.late,
    pytest.mark.skipif(not installed("ray"), reason="pip install 'vggdeploy[ray]'"),
]


@pytest.fixture(scope="module")
def served(bundle_dir: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with ray_server(bundle_dir) as both:
        yield both


def test_it_answers_as_the_engine_does_and_ends_with_sigterm(
    served: tuple[str, subprocess.Popen[str]], bundle_dir: Path, digit_png: Path
) -> None:
    url, process = served
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        expected = engine.classify(digit_png, top=1)[0]
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/v2/health/ready").status_code == 200
        reply = client.post("/classify", content=digit_png.read_bytes())
        assert reply.status_code == 200
        best = (
            reply.json()["images"][0]["predictions"][0] if "images" in reply.json() else reply.json()["predictions"][0]
        )
        assert best["label"] == expected.label
        assert best["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert client.post("/classify", content=b"no image").status_code == 400
        assert client.get("/v2/health/ready", headers={"host": "evil.example"}).status_code == 421
        assert _answered(client) >= 1
        time.sleep(3)  # what it counted is told
        killed = called(_REPLICA, process.pid)
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 120
        while set(called(_REPLICA, process.pid)) <= set(killed) or _status(client, digit_png) != 200:
            assert time.monotonic() < end, "no other replica came"
            time.sleep(0.5)
        assert _answered(client) >= 2  # the killed one's, and this one's own
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0


def _answered(client: httpx.Client) -> float:
    line = next(
        x
        for x in client.get("/metrics").text.splitlines()
        if x.startswith("vggdeploy_requests_total{") and '"200"' in x and "classify" in x
    )
    return float(line.rpartition(" ")[2])


def _status(client: httpx.Client, picture: Path) -> int:
    try:
        return client.post("/classify", content=picture.read_bytes()).status_code
    except httpx.HTTPError:
        return 0


def test_a_token_that_no_node_would_have_is_refused(bundle_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vggdeploy", "serve", bundle_dir, "--ray", "local"],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "VGGDEPLOY_TOKEN": "correct-horse-battery-staple"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "does not reach the replicas" in done.stderr
