"""The gRPC server of one process, in the event loop of its HTTP server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vggdeploy.errors import VggdeployError
from vggdeploy.protocol.messages import HEALTH, POOL, REFLECTION, SERVICE
from vggdeploy.serve.grpc.calls import Calls, Door
from vggdeploy.serve.grpc.service import Service
from vggdeploy.serve.models import Models

if TYPE_CHECKING:
    from vggdeploy.serve.tracing import Tracing

_WATCHERS = 64  # of the health, at a time: who watches needs no token
_LOOK_SECONDS = 0.5
_LAST_SECONDS = 0.2  # until the last answers have left


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio is untyped
    """gRPC's own health service; it says what ``/v2/health/ready`` says."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._watching = 0

    def _now(self, service: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if service not in ("", SERVICE):
            return states.SERVICE_UNKNOWN
        return states.SERVING if self._models.ready else states.NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:
        state = self._now(request.service)
        if state == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service of that name — there are '' and {SERVICE}")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(self, request: Any, context: Any) -> None:
        if self._watching >= _WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already — ask again and again: Check"
            )
        self._watching += 1
        try:
            last = None
            while True:
                if (state := self._now(request.service)) != last:
                    await context.write(health_pb2.HealthCheckResponse(status=state))
                    last = state
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._watching -= 1


class GrpcServer:
    """Listens between `start` and `stop`."""

    def __init__(self, models: Models, tracing: Tracing | None) -> None:
        settings = models.settings
        self._calls = calls = Calls(settings, models.metrics, tracing)
        self._settings = settings
        self._server: Any = grpc.aio.server(
            interceptors=[Door(calls)],
            maximum_concurrent_rpcs=settings.connections,
            options=[
                ("grpc.max_receive_message_length", settings.max_body),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),  # workers share it; `reserved` sees to it that nobody else does
                ("grpc.max_connection_idle_ms", 300_000),
            ],
        )
        self._server.add_generic_rpc_handlers(Service(models, calls).handlers())
        health_pb2_grpc.add_HealthServicer_to_server(Health(models), self._server)
        reflection.enable_server_reflection((SERVICE, HEALTH, REFLECTION), self._server, POOL)

    async def start(self) -> None:
        """Raises VggdeployError: it cannot listen."""
        host, port = self._settings.host, self._settings.grpc_port
        try:
            self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise VggdeployError(f"cannot listen on {host} port {port}", "choose another --grpc-port") from error
        await self._server.start()

    async def stop(self) -> None:
        """Take no more calls, and give those under way their time. Who watches, or says nothing on a stream, has none."""
        ending = asyncio.create_task(self._server.stop(self._settings.timeout))
        while self._calls.active and not ending.done():
            await asyncio.sleep(0.02)
        await self._server.stop(_LAST_SECONDS)
        await ending


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Keeps a port for this server's processes alone; 0 finds a free one.

    Raises:
        VggdeployError: it is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:  # one that shares its port with others would share ours
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found = int(probe.getsockname()[1])
        keeper = socket.socket(family)
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind((host, found))
    except OSError as error:
        reason = error.strerror or str(error)
        raise VggdeployError(
            f"cannot listen on {host} port {port}: {reason}", "choose another --grpc-port or --host"
        ) from error
    with keeper:
        yield found
