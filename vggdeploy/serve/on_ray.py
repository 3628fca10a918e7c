"""The same application as a Ray Serve deployment: Ray starts as many replicas as the load needs, and replaces what dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI

from vggdeploy.bundle.trust import Trust
from vggdeploy.engine.engine import load
from vggdeploy.errors import UsageError, VggdeployError, first_line
from vggdeploy.serve.app import create_app
from vggdeploy.serve.common import RETRY_AFTER
from vggdeploy.serve.queue_time import Load, wanted_replicas
from vggdeploy.serve.replicas import ReplicaMetrics, new_ledger
from vggdeploy.serve.resend import CALLBACK
from vggdeploy.serve.settings import SETTINGS_VARIABLE, TOKEN_VARIABLE, Settings
from vggdeploy.system.ending import patience
from vggdeploy.system.ray import cluster, ray_module

NAME = "vggdeploy"
_CLOSING_SECONDS = 60.0  # after the last request: replicas, proxies, and the processes of a local cluster
_BATCH = 32  # of a variant that takes more
_TELL_SECONDS = 2.0  # how often replicas tell what requests waited,
_LOOK_BACK_SECONDS = 10.0  # and over how long that is judged
_UP_SECONDS, _DOWN_SECONDS = 5.0, 60.0  # for so long it has to be so: a replica more is cheap beside callers that wait


class Replica:
    """One replica: the application, and what Ray asks beside requests."""

    def __init__(self, settings: Settings, ledger: Any) -> None:
        self._settings = settings
        self._load = Load(settings.queue_time_ms / 1e3)
        self._metrics = ReplicaMetrics(ledger, self._load)
        self._app: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray's name for it
        self._app = create_app(self._settings, metrics=self._metrics)
        return self._app

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `wanted_replicas` is told."""
        models = getattr(self._app.state, "models", None) if self._app is not None else None
        seat = models.first.seat if models is not None else None
        return self._load.told(seat.served.batching.longest_wait if seat is not None else 0.0)


def _deployment(settings: Settings) -> Any:
    serve = ray_module("serve").serve
    return serve.deployment(serve.ingress()(Replica)).options(
        name=NAME,
        ray_actor_options={"num_cpus": settings.threads},
        max_ongoing_requests=settings.queue + (settings.max_batch or _BATCH),
        # What no replica has taken yet waits in the proxy, while one starts: it is bounded, too.
        max_queued_requests=settings.queue,
        backpressure_config={"retry_after_s": float(RETRY_AFTER)},
        autoscaling_config={
            "min_replicas": settings.min_workers,
            "max_replicas": settings.workers,
            "look_back_period_s": _LOOK_BACK_SECONDS,
            "upscale_delay_s": _UP_SECONDS,
            "downscale_delay_s": _DOWN_SECONDS,
            "policy": {"policy_function": f"{wanted_replicas.__module__}:{wanted_replicas.__name__}"},
        },
    )


def serve_on_ray(settings: Settings, address: str, *, on_start: Callable[[str], None]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code. ``settings.workers`` is the most replicas there may be.

    Every node has to find the bundle, and the token's file, at the same path. A replica has ``settings.threads`` cores
    (default 1). Requests beyond ``queue`` are refused by the replica as by any other server.

    Args:
        on_start: called with the URL when the first replica answers.

    Raises:
        UsageError: a token in the environment, which no other node has.
        VggdeployError: no cluster, or a replica that does not start. Errors of `vggdeploy.load`.
    """
    if settings.token_file is None and os.environ.get(TOKEN_VARIABLE):
        raise UsageError(
            f"${TOKEN_VARIABLE} does not reach the replicas", "give --token-file, a file that every node has"
        )
    settings.token()
    ray_module("serve")
    settings = msgspec.structs.replace(settings, threads=settings.threads or 1)  # else each takes all of its machine
    port = settings.port or _free_port(settings.host)
    # Opened here for its errors; a replica has its own.
    with load(
        settings.bundle, backend=settings.backend, variant=settings.variant, device=settings.device,
        threads=settings.threads, trust=Trust(settings.trusted_keys) if settings.trusted_keys else None,
    ):  # fmt: skip
        pass
    # Of the proxies, and of the replicas.
    variables = {
        SETTINGS_VARIABLE: msgspec.json.encode(settings).decode(),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(_TELL_SECONDS),
    }
    with cluster(address, variables) as ray:
        serve, ledger = ray.serve, new_ledger()
        serve.start(http_options={"host": settings.host, "port": port})
        try:
            serve.run(_deployment(settings).bind(settings, ledger), name=NAME, route_prefix="/")
        except (RuntimeError, OSError) as error:
            raise VggdeployError(
                f"Ray Serve did not start: {first_line(error)}", "see the log of its replica"
            ) from error
        on_start(f"http://{settings.host}:{port}")
        with patience(terminate=settings.timeout + _CLOSING_SECONDS, interrupt=settings.timeout + _CLOSING_SECONDS):
            code = _wait()
            serve.shutdown()
    return code


def _free_port(host: str) -> int:
    """Ray wants a number: one that is free now."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


def _wait() -> int:
    """Until a signal: 0 after SIGTERM, 130 after Ctrl-C."""
    ended, code = threading.Event(), 130

    def end(number: int, frame: object) -> None:
        nonlocal code
        code = 0 if number == signal.SIGTERM else 130
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not ended.wait(0.5):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code
