"""The server's application for another server: gunicorn, uvicorn, hypercorn, or a part of an application of your own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from vggdeploy.errors import UsageError
from vggdeploy.serve.app import create_app
from vggdeploy.serve.settings import known_settings

# What the process around it decides: who runs the application has options of its own for these.
_OF_THE_PROCESS = ("port", "workers", "min_workers", "queue_time_ms", "connections", "grpc_port")


def app(bundle: str, **settings: Any) -> FastAPI:
    """An ASGI application that opens its bundle when it starts, in the process that serves it.

        gunicorn -k uvicorn_worker.UvicornWorker -w 2 'vggdeploy.serve.asgi:app("artifacts/demo/bundle")'

    Args:
        bundle: its path.
        settings: fields of `vggdeploy.serve.settings.Settings`: ``host`` for the addresses that are answered to (not those
            that are listened on), ``max_batch``, ``queue``, ``timeout``, ``max_body`` and others.

    Raises:
        UsageError: a setting that there is not, that is out of its range, or that is the other server's.
    """
    for name in _OF_THE_PROCESS:
        if name in settings:
            raise UsageError(f"{name} is not the application's", "set it where the server is started")
    return create_app(known_settings(bundle, settings))
