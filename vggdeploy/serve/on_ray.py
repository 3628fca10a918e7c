"""The same application as a Ray Serve deployment: Ray starts as many replicas as the load needs, and replaces what dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from vggdeploy.bundle.trust import Trust
from vggdeploy.engine.engine import load
from vggdeploy.errors import UsageError, VggdeployError, first_line
from vggdeploy.serve.app import create_app
from vggdeploy.serve.replicas import ReplicaMetrics, new_ledger
from vggdeploy.serve.settings import TOKEN_VARIABLE, Settings
from vggdeploy.system.ending import patience
from vggdeploy.system.ray import cluster, ray_module

NAME = "vggdeploy"
_CLOSING_SECONDS = 60.0  # after the last request: replicas, proxies, and the processes of a local cluster
_BATCH = 32  # of a variant that takes more


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
    threads = settings.threads or 1
    port = settings.port or _free_port(settings.host)
    # Opened here for its errors; a replica has its own.
    with load(
        settings.bundle, backend=settings.backend, variant=settings.variant, device=settings.device, threads=threads,
        trust=Trust(settings.trusted_keys) if settings.trusted_keys else None,
    ) as engine:  # fmt: skip
        batch = settings.max_batch or min(_BATCH, engine.variant.batch.max)

    with cluster(address) as ray:
        serve, ledger = ray.serve, new_ledger()

        def build() -> Any:
            return create_app(settings, metrics=ReplicaMetrics(ledger))

        deployment = serve.deployment(serve.ingress(build)()).options(
            name=NAME,
            ray_actor_options={"num_cpus": threads},
            max_ongoing_requests=settings.queue + batch,
            autoscaling_config={"min_replicas": 1, "max_replicas": settings.workers, "target_ongoing_requests": batch},
        )
        serve.start(http_options={"host": settings.host, "port": port})
        try:
            serve.run(deployment.bind(), name=NAME, route_prefix="/")
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
