"""uvicorn around the application: one process, or several that are replaced when they die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from vggdeploy.engine.engine import Engine
from vggdeploy.errors import VggdeployError
from vggdeploy.serve import telemetry
from vggdeploy.serve.app import create_app, open_engine
from vggdeploy.serve.catalogue import check_others
from vggdeploy.serve.settings import SETTINGS_VARIABLE, Settings
from vggdeploy.serve.shadow import check_shadow
from vggdeploy.serve.telemetry import SHARED_DIRECTORY, Metrics
from vggdeploy.serve.workers import Workers
from vggdeploy.system.drafts import temporary_directory
from vggdeploy.system.ending import GRACE, end_within, patience
from vggdeploy.system.machine import limit_arenas, usable_cores

_BACKLOG = 512
# A worker that does not answer its supervisor for so long is replaced; so long it may take to import and open everything, also
# in a reload. uvicorn's own 5 s end every worker of a busy machine before it has started.
_STARTING_SECONDS = 120
_CLOSING_SECONDS = 15.0  # after the last request: the engine, its threads, the workers


def serve(settings: Settings, *, on_start: Callable[[str, Engine], None]) -> int:
    """Serve until a signal ends it; returns the exit code: 0 after SIGTERM, when every request was answered.

    Args:
        on_start: called with the URL and the engine, which was opened and proven, before the first request is taken.

    Raises:
        Errors of `vggdeploy.load`, UsageError of the token; VggdeployError: the address is taken, or a worker that did
        not start.
    """
    settings.token()  # a wrong one is found before anything is opened
    check_others(settings)
    telemetry.write_to_stderr()
    limit_arenas()
    with _listening(settings) as listener, _grpc_port(settings) as port:
        settings = msgspec.structs.replace(settings, grpc_port=port)
        metrics = Metrics()
        batching = open_engine(settings, metrics)
        try:
            check_shadow(settings, batching.engine)
        except BaseException:
            batching.close()
            raise
        on_start(_url(listener) + ("" if port is None else f", gRPC on port {port}"), batching.engine)
        # Requests that are under way have their time; only then is it a hang.
        closing = settings.timeout + _CLOSING_SECONDS
        with patience(terminate=settings.drain + closing, interrupt=closing):
            if settings.workers == 1:
                return _one(settings, create_app(settings, batching, metrics=metrics), listener)
            batching.close()  # it was opened for its errors: each worker has its own
            return _several(settings, listener)


@contextmanager
def _grpc_port(settings: Settings) -> Iterator[int | None]:
    """The port for gRPC, where it is asked for: this server's alone within the block."""
    if settings.grpc_port is None:
        yield None
        return
    from vggdeploy.serve.grpc.server import reserved

    with reserved(settings.host, settings.grpc_port) as port:
        yield port


def _one(settings: Settings, app: object, listener: socket.socket) -> int:
    server = Server(_config(settings, app), settings.timeout + _CLOSING_SECONDS)
    # uvicorn stops at a signal, and then raises that signal again; after SIGTERM everything is done at that point.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _several(settings: Settings, listener: socket.socket) -> int:
    threads = settings.threads or max(1, usable_cores() // settings.workers)
    shared = msgspec.structs.replace(settings, threads=threads)
    os.environ[SETTINGS_VARIABLE] = msgspec.json.encode(shared).decode()
    with temporary_directory("vggdeploy-metrics-") as directory:
        os.environ[SHARED_DIRECTORY] = str(directory)
        config = _config(settings, "vggdeploy.serve.app:worker_app", factory=True, workers=settings.workers)
        group = Workers(config, [listener])
        group.closing = settings.drain + settings.timeout + _CLOSING_SECONDS
        group.run()
        if not group.once_ready and any(process.exitcode == STARTUP_FAILURE for process in group.processes):
            raise VggdeployError("a worker could not start", "its reason stands in the log above")
        return 130 if group.interrupted else 0


class Server(uvicorn.Server):
    """uvicorn's server. What has not ended ``closing`` seconds after the signal, or with a second Ctrl-C, is ended."""

    def __init__(self, config: uvicorn.Config, closing: float) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        end_within(GRACE if self.should_exit and sig == signal.SIGINT else self._closing, sig)
        super().handle_exit(sig, frame)


def _config(settings: Settings, app: object, *, factory: bool = False, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an application, or the name of what makes one
        factory=factory,
        workers=workers,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,  # `telemetry.write_to_stderr` has done it
        access_log=False,
        server_header=False,
        proxy_headers=False,  # what a client says of its own address is not believed
        backlog=_BACKLOG,
        limit_concurrency=settings.connections,
        timeout_keep_alive=15,
        timeout_worker_healthcheck=_STARTING_SECONDS,
        # A request ends with settings.timeout at the latest, so nothing is cut off.
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, bound and listening.

    Raises:
        VggdeployError: the address is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise VggdeployError(
            f"cannot listen on {settings.host} port {settings.port}: {reason}", "choose another --port or --host"
        ) from error
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


HEADER_TIMEOUT = 10.0  # seconds


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # which of two it is, is known at run time
    """Closes a connection that has no request under way and does not begin one in time."""

    cycle: Any
    transport: Any
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._under_way:
            self._settle()
        elif self._patience is None:  # the first bytes of a next request: its headers have the same time
            self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._settle()
        super().connection_lost(error)

    @property
    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._patience = asyncio.get_running_loop().call_later(HEADER_TIMEOUT, self._give_up)

    def _settle(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if not self._under_way and not self.transport.is_closing():
            self.transport.close()
