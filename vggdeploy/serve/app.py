"""The application: routes, guard, page and metrics over one engine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from uvicorn.config import STARTUP_FAILURE

from vggdeploy._version import __version__
from vggdeploy.bundle.trust import Trust
from vggdeploy.engine.async_engine import AsyncEngine, AsyncLimits
from vggdeploy.engine.engine import load
from vggdeploy.errors import Overloaded, VggdeployError, first_line
from vggdeploy.serve import images, operations, page, protocol, status
from vggdeploy.serve.catalogue import places
from vggdeploy.serve.common import error_reply, known_error, models
from vggdeploy.serve.guard import Guard
from vggdeploy.serve.models import Models
from vggdeploy.serve.settings import SETTINGS_VARIABLE, Settings
from vggdeploy.serve.telemetry import LOGGER, Metrics, say, write_to_stderr
from vggdeploy.system.ending import end_with_parent
from vggdeploy.system.machine import limit_arenas, usable_cores

if TYPE_CHECKING:
    from vggdeploy.serve.grpc.server import GrpcServer
    from vggdeploy.serve.tracing import Tracing


def open_engine(settings: Settings, metrics: Metrics | None = None) -> AsyncEngine:
    """The engine of the first bundle that a server's settings name, warmed up.

    Raises:
        Errors of `vggdeploy.load`, `AsyncEngine` and `vggdeploy.serve.catalogue.places`.
    """
    settings = places(settings)[0].settings
    engine = load(
        settings.bundle,
        backend=settings.backend,
        variant=settings.variant,
        device=settings.device,
        threads=settings.threads or usable_cores(),  # it runs batches: what one image is fastest with is not asked
        trust=Trust(settings.trusted_keys) if settings.trusted_keys else None,
    )
    try:
        return AsyncEngine(
            engine,
            AsyncLimits(
                max_batch=settings.max_batch,
                max_delay_ms=settings.max_delay_ms,
                queue=settings.queue,
                max_pixels=settings.max_pixels,
                isolate=settings.isolate,
            ),
            on_batch=metrics.batch if metrics else None,
        )
    except BaseException:
        engine.close()
        raise


def worker_app() -> FastAPI:
    """The application of a worker process, which finds its settings in the environment.

    Raises:
        SystemExit: it cannot start; the reason stands in the log.
    """
    end_with_parent(signal.SIGTERM)  # else it would hold the port for ever when the supervisor is killed
    write_to_stderr()
    limit_arenas()
    settings = msgspec.json.decode(os.environ[SETTINGS_VARIABLE], type=Settings)
    metrics = Metrics()
    try:
        batching = open_engine(settings, metrics)
    except (VggdeployError, OSError) as error:
        cause, fix = (error.cause, error.hint) if isinstance(error, VggdeployError) else (first_line(error), "")
        LOGGER.error("the bundle cannot be opened", extra={"about": {"error": cause, "fix": fix}})
        raise SystemExit(STARTUP_FAILURE) from None
    return create_app(settings, batching, metrics=metrics)


def create_app(settings: Settings, batching: AsyncEngine | None = None, *, metrics: Metrics | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        batching: what is served; it is closed when the application ends. Default: opened when the application starts.
        metrics: of this process; those that ``batching`` tells of its batches.
    """
    measured = metrics or Metrics()
    tracing = None
    if settings.otlp is not None:
        from vggdeploy.serve.tracing import Tracing

        tracing = Tracing(settings.otlp)
        measured.also_told = tracing.batch

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        models = app.state.models = Models(settings, measured, open_engine)
        await models.open(batching)
        assert models.first.seat is not None  # noqa: S101  # for mypy: else `open` would have raised
        here = app.state.served = models.first.seat.served
        rpc = await _start_grpc(models, tracing) if settings.grpc_port is not None else None
        measured.ready.set(1)
        beside = [models.watch()] if settings.watch else []
        beside += [operations.go_on_noting(models)] if measured.shared else []
        tasks = [asyncio.create_task(work) for work in beside]
        with _signals(models):
            say("ready", model=here.model, variant=here.engine.variant.name, device=str(here.engine.device))
            try:
                yield
            finally:
                measured.ready.set(0)
                if rpc is not None:
                    await rpc.stop()
                for task in tasks:
                    task.cancel()
                count = await models.aclose()
                if tracing is not None:
                    await asyncio.to_thread(tracing.close)
                say("stopped", answered=count)

    app = FastAPI(
        title="vggdeploy",
        version=__version__,
        summary="Image classification and embeddings.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from a CDN
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.include_router(page.router)
    app.include_router(images.router)
    app.include_router(protocol.router)
    app.include_router(operations.router)
    app.include_router(status.router)
    app.add_api_route("/metrics", _metrics, methods=["GET"], summary="For Prometheus", tags=["Operations"])
    app.add_exception_handler(VggdeployError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(MemoryError, _no_memory)
    app.add_middleware(Guard, settings=settings, metrics=measured, token=settings.token(), tracing=tracing)
    return app


async def _start_grpc(models: Models, tracing: Tracing | None) -> GrpcServer:
    from vggdeploy.serve.grpc.server import GrpcServer

    server = GrpcServer(models, tracing)
    await server.start()
    return server


class _signals:  # used like a function
    """Within the block SIGTERM drains before it stops, and SIGHUP reloads the bundle. (Only in a main thread.)"""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> None:
        for number, handler in ((signal.SIGTERM, self._terminate), (signal.SIGHUP, self._reload)):
            try:
                self._before[number] = signal.signal(number, handler)
            except ValueError:  # not in the main thread: an application that was mounted into another
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Say "not ready" for a while, so that a balancer stops sending; then let uvicorn finish what is under way."""
        models = self._models
        if models.draining:
            return
        models.drain()
        say("draining", seconds=models.settings.drain)
        self._loop.call_soon_threadsafe(self._loop.call_later, models.settings.drain, self._stop, number)

    def _stop(self, number: int) -> None:
        """What this signal did before: a server's handler, or the end of a process that has none."""
        before = self._before[number]
        if callable(before):
            before(number, None)
        elif before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin_reload)

    def _begin_reload(self) -> None:
        task = self._loop.create_task(self._models.refresh(forced=True))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _metrics(request: Request) -> Response:
    here = models(request)
    await operations.note(here)
    page = await asyncio.to_thread(here.metrics.text)  # which may ask other processes
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, VggdeployError)  # noqa: S101  # for the type checker: it is registered for that class
    if isinstance(error, Overloaded):
        models(request).metrics.overloads.inc()
    reply = known_error(error)
    if reply.status_code == 500:
        state = request.scope["state"]
        about = {"error": str(error), "request_id": state["request_id"], **getattr(state.get("trace"), "ids", {})}
        LOGGER.error("the model could not be run", extra={"about": about})
    return reply


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return error_reply(422, f"{where}: {first['msg']}", "see /openapi.json")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    cause = {404: "nothing is here", 405: "this path has other methods"}.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return error_reply(error.status_code, cause, "see /openapi.json", headers)


async def _no_memory(request: Request, error: Exception) -> Response:
    return error_reply(503, "not enough memory at present", "try again a little later")
