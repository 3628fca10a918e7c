"""A server on a free port of the loopback: in a thread of the test's process, or as a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from serve.stores import ONE, relabel

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.engine.async_engine import AsyncEngine, AsyncLimits
from vggdeploy.engine.engine import Engine
from vggdeploy.serve import models as models_module
from vggdeploy.serve.app import create_app
from vggdeploy.serve.server import _config
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.sizes import Sizes
from vggdeploy.serve.telemetry import Metrics


@dataclass
class Live:
    """A server that answers."""

    url: str
    client: httpx.Client
    app: Any = None
    engine: Any = None

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def live_server(settings: Settings, engine: Engine | None = None) -> Iterator[Live]:
    metrics = Metrics()
    limits = AsyncLimits(max_batch=settings.max_batch, queue=settings.queue, max_pixels=settings.max_pixels)
    batching = AsyncEngine(engine, limits, on_batch=metrics.batch) if engine else None
    app = create_app(settings, batching, metrics=metrics)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(_config(settings, app))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.02)
            yield Live(url, client, app, app.state.served.engine)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def live(bundle_dir: Path) -> Iterator[Live]:
    """A server of the digits, in a thread."""
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32")) as found:
        yield found


@pytest.fixture
def gated(bundle_dir: Path) -> Iterator[tuple[Engine, threading.Event]]:
    """An open engine whose session waits for a gate: a fault injected below the real one."""
    engine = vggdeploy.load(bundle_dir, variant="onnx-fp32")
    gate = threading.Event()
    real = engine._session.run
    gate.set()
    engine._session.run = lambda feeds: (gate.wait(20), real(feeds))[1]  # type: ignore[method-assign]
    yield engine, gate
    gate.set()
    engine.close()


@dataclass
class Command:
    """``vggdeploy serve`` as a process."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(40)

    def wait_for(self, text: str, seconds: float = 40) -> str:
        """The first line of its log with this text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.lines):
                if text in line:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.lines}")


Starts = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starts]:
    """Starts the command on a free port; what still runs at the end of the test is killed."""
    with ExitStack() as stack:

        def starts(*arguments: object, env: dict[str, str] | None = None, ready: bool = True) -> Command:
            process = subprocess.Popen(
                [sys.executable, "-m", "vggdeploy", "serve", *map(str, arguments), "--port", "0"],
                stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}, start_new_session=True,
            )  # fmt: skip
            command = Command(process, "")
            reader = threading.Thread(target=_read, args=(process, command.lines))
            reader.start()
            stack.callback(_kill, process, reader)
            if ready:
                found = re.search(r"http://\S+", command.wait_for("serving "))
                assert found is not None
                command.url = found[0]
                command.wait_for('"ready"')
            return command

        yield starts


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stderr is not None
    lines.extend(line.rstrip("\n") for line in process.stderr)


def _kill(process: subprocess.Popen[str], reader: threading.Thread) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its workers too: it leads a session of its own
    process.wait(10)
    reader.join(10)
    assert process.stderr is not None
    process.stderr.close()


@pytest.fixture
def store(bundle_dir: Path, tmp_path: Path) -> Path:
    """A directory with the bundles ``ann``, ``bob`` and ``cleo``, and things that are none."""
    home = tmp_path / "models"
    for name in ("ann", "bob", "cleo"):
        shutil.copytree(bundle_dir, home / name)
        relabel(home / name, name)
    (home / "notes").mkdir()
    (home / ".draft").mkdir()
    shutil.copy(bundle_dir / "manifest.json", home / ".draft")
    (home / "README").write_text("models")
    return home


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model takes 10 MiB, and a busy one may be closed at once."""
    monkeypatch.setattr(Sizes, "needed", lambda self, place: ONE)
    monkeypatch.setattr(Sizes, "learn", lambda self, place, engine, grown: ONE)
    monkeypatch.setattr(models_module, "_STAY", 0.05)


@pytest.fixture(scope="module")
def address(bundle_dir: Path) -> Iterator[str]:
    """A server of the digits, over gRPC too."""
    pytest.importorskip("grpc")
    from serve.grpc_calls import settings

    from vggdeploy.serve.grpc.server import reserved

    with reserved("127.0.0.1", 0) as port, live_server(settings(bundle_dir, port)):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """The golden images, and the reference's logits of them."""
    inputs, outputs = bundle.golden()
    return inputs["image"], outputs["logits"]
