"""What stands before every method, and what is written of it: the counterpart of `vggdeploy.serve.guard`."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from vggdeploy.errors import DeadlineError, InputError, Overloaded, UsageError, VggdeployError
from vggdeploy.protocol.messages import HEALTH, SERVICE
from vggdeploy.serve.common import without_addresses
from vggdeploy.serve.guard import Bodies, BodyRefused, admitted, token_digest
from vggdeploy.serve.served import NotLoaded
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.telemetry import LOGGER, Metrics, say
from vggdeploy.serve.tensors import FIX

if TYPE_CHECKING:
    from vggdeploy.serve.tracing import Trace, Tracing

T = TypeVar("T")
Code = grpc.StatusCode
OPEN = frozenset(
    f"/{name}" for name in (f"{SERVICE}/ServerLive", f"{SERVICE}/ServerReady", f"{HEALTH}/Check", f"{HEALTH}/Watch")
)
_CODES: tuple[tuple[Any, Any], ...] = (
    ((BodyRefused, MemoryError), Code.RESOURCE_EXHAUSTED),
    ((InputError, UsageError), Code.INVALID_ARGUMENT),
    ((Overloaded, NotLoaded), Code.UNAVAILABLE),
    ((TimeoutError, DeadlineError), Code.DEADLINE_EXCEEDED),
)
_TOLD: dict[Any, tuple[str, str]] = {  # what these errors do not say themselves
    TimeoutError: ("no answer in time", "send it again"),
    MemoryError: ("not enough memory at present", "try again a little later"),
}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PATIENCE = 2.0  # seconds that a message may take to arrive while other calls wait to be received
_ARRIVAL = 10.0  # seconds that the message of any other method may take, as a request's headers over HTTP
_LONGEST = 500  # characters of a message; all metadata together may be 8 KiB


class Refused(Exception):  # it is an answer, not a failure
    """What is answered with a status that no known error has."""

    def __init__(self, code: Any, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.code, self.cause, self.hint = code, cause, hint


class Door(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio is untyped
    """Lets in who has the token, and everybody to the probes; no byte of the others' messages is read."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._digest = token_digest(calls.settings.token())

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """grpcio's hook: the handler of a call."""
        given = next((value for name, value in details.invocation_metadata if name == "authorization"), "")
        if details.method in OPEN or admitted(self._digest, given if isinstance(given, str) else ""):
            return in_time(await continuation(details))
        return grpc.stream_stream_rpc_method_handler(self._refuse(details.method))

    def _refuse(self, method: str) -> Any:
        async def refuse(requests: Any, context: Any) -> None:
            name = method.rpartition("/")[2] if method.startswith(f"/{SERVICE}/") else "other"

            async def answer(call: Call) -> NoReturn:
                raise Refused(
                    Code.UNAUTHENTICATED, "no valid bearer token", "send the metadata authorization: Bearer TOKEN"
                )

            await Call(self._calls, name, context).run(answer)

        return refuse


def in_time(handler: Any) -> Any:
    """The handler of a method with one message, which no caller can keep waiting for that message.

    grpcio waits for it without end, and each call that waits is one of the few that there may be at a time.
    """
    if handler is None or handler.request_streaming:
        return handler

    async def read(context: Any) -> Any:
        try:
            async with asyncio.timeout(_ARRIVAL):
                body = await context.read()
        except TimeoutError:
            await context.abort(Code.DEADLINE_EXCEEDED, "the message took too long to arrive — send it again")
        if body is grpc.aio.EOF:
            await context.abort(Code.INVALID_ARGUMENT, "no message was sent — send one")
        try:
            return body if handler.request_deserializer is None else handler.request_deserializer(body)
        except Exception:  # google.protobuf's own DecodeError; which class that is depends on its implementation
            await context.abort(Code.INVALID_ARGUMENT, f"the request is not of the protocol — {FIX}")

    async def unary(requests: Any, context: Any) -> Any:
        return await handler.unary_unary(await read(context), context)

    async def stream(requests: Any, context: Any) -> None:
        await handler.unary_stream(await read(context), context)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)


class Calls:
    """What all calls of a server share."""

    def __init__(self, settings: Settings, metrics: Metrics, tracing: Tracing | None) -> None:
        self.settings = settings
        self.metrics = metrics
        self.tracing = tracing
        self.bodies = Bodies(settings)
        self.active = 0  # those that are being answered; not who watches, or a stream between two messages
        # A message is in memory before its size is known, so only so many are received at a time as fit if all are large.
        self.most = max(1, settings.body_budget // settings.max_body)
        self.receiving = asyncio.Semaphore(self.most)
        self.waiting = 0  # calls that are not yet received
        self.streams = 0  # they are open for as long as the caller likes, so as many again are all that there may be


class Call:
    """One call and its answer.

    Args:
        name: of the method.
        quiet: whether a success is left out of log and traces.
    """

    def __init__(self, calls: Calls, name: str, context: Any, *, quiet: bool = False) -> None:
        self._calls = calls
        self._name = name
        self._context = context
        self._quiet = quiet
        self._body = calls.bodies.account({})
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.trace: Trace | None = None
        if calls.tracing is not None and not quiet:
            about = {"rpc.system.name": "grpc", "rpc.method": f"{SERVICE}/{name}", "vggdeploy.request_id": self.id}
            self.trace = calls.tracing.begin("rpc", headers, about)

    async def receive(self) -> bytes:
        """The message's bytes, of a method that reads them itself.

        Raises:
            BodyRefused: all messages together are too large at present. Refused: none came, or too slowly.
        """
        self._calls.waiting += 1
        try:
            await self._calls.receiving.acquire()
        finally:
            self._calls.waiting -= 1
        try:
            body = await self._read()
            if body is grpc.aio.EOF:
                raise Refused(Code.INVALID_ARGUMENT, "no message was sent", "send one")
            self.take(body)
        finally:
            self._calls.receiving.release()
        return bytes(body)

    async def _read(self) -> Any:
        """The next message. A caller who is slow with it makes no others wait."""
        reading = asyncio.ensure_future(self._context.read())
        try:
            while not (await asyncio.wait({reading}, timeout=_PATIENCE))[0]:
                if self._calls.waiting:
                    raise Refused(
                        Code.DEADLINE_EXCEEDED, "the message took too long to arrive, and others wait", "send it again"
                    )
            return reading.result()
        finally:
            reading.cancel()

    def take(self, body: bytes) -> None:
        """Count a message that has come.

        Raises:
            BodyRefused: as `receive`.
        """
        self._body.take(len(body))
        if self.trace is not None:
            self.trace.received()

    async def run(self, answer: Callable[[Call], Awaitable[T]], *, failed: Callable[[str], T] | None = None) -> T:
        """The answer, in time; or the status that says why there is none.

        Args:
            failed: makes an answer of a reason instead, on a stream that goes on.
        """
        started = time.perf_counter()
        self._calls.active += 1
        code, cause, hint = Code.CANCELLED, "", ""
        try:
            async with asyncio.timeout(self._calls.settings.timeout):
                reply = await answer(self)
            code = Code.OK
            self._context.set_trailing_metadata((("x-request-id", self.id),))
            if self.trace is not None:
                self.trace.responding()
            return reply
        except Exception as error:
            code, cause, hint = self._status(error)
        finally:
            self._calls.active -= 1
            self._body.release()
            self._record(code, time.perf_counter() - started)
        text = without_addresses(f"{cause} — {hint}" if hint else cause)[:_LONGEST]
        if failed is not None:
            return failed(text)
        metadata = (
            ("x-request-id", self.id),
            *((("grpc-retry-pushback-ms", "1000"),) if code is Code.UNAVAILABLE else ()),
        )
        await self._context.abort(code, text, metadata)
        raise AssertionError("unreachable")  # `abort` raises

    def _status(self, error: Exception) -> tuple[Any, str, str]:
        """Code, cause and remedy."""
        if isinstance(error, Refused):
            return error.code, error.cause, error.hint
        if isinstance(error, Overloaded):
            self._calls.metrics.overloads.inc()
        for kinds, code in _CODES:
            if isinstance(error, kinds):
                return code, *_TOLD.get(type(error), (getattr(error, "cause", ""), getattr(error, "hint", "")))
        if isinstance(error, VggdeployError):
            LOGGER.error("the model could not be run", extra={"about": {"error": str(error), **self._ids}})
            return Code.INTERNAL, "the model could not be run", f"see the server's log under {self.id}"
        about = {"about": self._ids}
        LOGGER.error("a bug: the request was answered with INTERNAL", exc_info=error, extra=about)
        return Code.INTERNAL, "internal error", f"see the server's log under {self.id}"

    @property
    def _ids(self) -> dict[str, str]:
        return {"request_id": self.id, **(self.trace.ids if self.trace is not None else {})}

    def _record(self, code: Any, seconds: float) -> None:
        metrics, route = self._calls.metrics, f"grpc/{self._name}"
        metrics.requests.labels(route, code.name).inc()
        metrics.seconds.labels(route).observe(seconds)
        if self.trace is not None:
            method = f"{SERVICE}/{self._name}"
            failed = code in (Code.INTERNAL, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN)
            self.trace.end(method, {"rpc.method": method, "rpc.response.status_code": code.name}, failed=failed)
        if self._quiet and code is Code.OK:
            return
        say(
            "request",
            **self._ids,
            method="gRPC",
            path=f"/{SERVICE}/{self._name}",
            status=code.name,
            ms=round(seconds * 1e3, 3),
            bytes=self._body.taken,
            client=_host(self._context.peer()),
        )


def _host(peer: str) -> str:
    """``ipv4:127.0.0.1:5000`` and ``ipv6:%5B::1%5D:5000`` without kind and port."""
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "")
