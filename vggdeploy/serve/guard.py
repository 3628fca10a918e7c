"""What stands before every route: who may ask, how much, how long; and what every answer carries."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vggdeploy.serve.common import error_reply
from vggdeploy.serve.settings import LOOPBACK, Settings
from vggdeploy.serve.telemetry import LOGGER, Metrics, say

if TYPE_CHECKING:
    from vggdeploy.serve.tracing import Trace, Tracing

# Open without a token: probes hold no secrets, and the page has to be there before it can ask for one.
PAGES = frozenset({"/", "/status"})
OPEN = PAGES | {"/page.css", "/page.js", "/status.css", "/status.js", "/v2/health/live", "/v2/health/ready"}
# Of these a log line for each request would bury the others.
QUIET = frozenset({"/v2/health/live", "/v2/health/ready", "/metrics", "/status/data"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_LEFT = 499  # nginx's number; nobody is there to see it
_GONE_AFTER = 0.25  # seconds before it is looked whether the client is still there: most answers are quicker


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: Metrics,
        token: bytes | None,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self.tracing = tracing
        self.settings = settings
        self.metrics = metrics
        self.bodies = Bodies(settings)
        self._token = token_digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await Exchange(self, scope, receive, send).run()

    def refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> Response | None:
        """The answer to a request that is not let in; None for the others."""
        host = urlsplit(f"//{headers.get('host', '')}").hostname if _plain_host(headers.get("host", "")) else None
        if self.settings.on_loopback and host not in LOOPBACK:
            # A page on the internet whose name was pointed at this machine (DNS rebinding) has its own name here.
            return error_reply(
                421, "this server answers to localhost only", "start it with --host to be reached by name"
            )
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["path"] not in PAGES:
            return error_reply(403, "a page of another site asked", "open this server's own page, or use no browser")
        if scope["path"] not in OPEN and not admitted(self._token, headers.get("authorization", "")):
            challenge = {"WWW-Authenticate": "Bearer"}
            return error_reply(401, "no valid bearer token", "send: Authorization: Bearer TOKEN", challenge)
        return None


def token_digest(token: bytes | None) -> bytes | None:
    """What `admitted` compares with."""
    return None if token is None else hashlib.sha256(token).digest()


def admitted(digest: bytes | None, authorization: str) -> bool:
    """Whether this is the header of who has the token; everybody is admitted where there is none."""
    if digest is None:
        return True
    kind, _, given = authorization.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(
        hashlib.sha256(given.strip().encode("latin-1", "replace")).digest(), digest
    )


def _plain_host(host: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9.\-_\[\]:]{1,255}", host) is not None


class Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard = guard
        self.scope = scope
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self._receive = receive
        self._send = send
        self._body = guard.bodies.account(self.headers)
        self._complete = False
        self._watch: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        self._left = False
        self._trace: Trace | None = None
        self._ended = ""  # how, where that was not by an answer

    async def run(self) -> None:
        started = time.perf_counter()
        state = self.scope.setdefault("state", {})
        state["request_id"] = self.id
        if self.guard.tracing is not None and self.scope["path"] not in QUIET:
            about = {
                "http.request.method": self.scope["method"],
                "url.path": self.scope["path"][:200],
                "url.scheme": self.scope["scheme"],
                "vggdeploy.request_id": self.id,
            }
            state["trace"] = self._trace = self.guard.tracing.begin("http", self.headers, about)
        try:
            await self._answer()
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if self._watcher is not None:
                self._watcher.cancel()
            self._body.release()
            self._record(time.perf_counter() - started)

    async def _answer(self) -> None:
        refused = self.guard.refusal(self.scope, self.headers)
        if refused is not None:
            await self._reply(refused)
            return
        try:
            async with asyncio.timeout(self.guard.settings.timeout):
                self._body.check_announced()
                await self.guard.app(self.scope, self._receiving, self._sending)
        except BodyRefused as error:
            await self._reply(error_reply(error.status, error.cause, error.hint, {"Connection": "close"}))
        except TimeoutError:
            slow = not self._complete and self.scope["method"] in ("POST", "PUT", "PATCH")
            cause = "the request took too long to arrive" if slow else "no answer in time"
            reply = error_reply(408 if slow else 503, cause, "send it again", {"Connection": "close"})
            await self._reply(reply)
        except asyncio.CancelledError:
            if not self._left or self._task is None:
                raise
            self._task.uncancel()
            self.status = _CLIENT_LEFT
        except ClientDisconnect:  # while it sent its body: nothing of ours failed, and nobody is there to be answered
            self.status = self.status or _CLIENT_LEFT
            self._ended = "the client left while it sent"
            self.guard.metrics.broken_off.inc()
        except Exception:
            LOGGER.exception(
                "a bug: the request was answered with 500", extra={"about": {"request_id": self.id, **self._ids}}
            )
            await self._reply(error_reply(500, "internal error", "see the server's log under this X-Request-Id"))

    @property
    def _ids(self) -> dict[str, str]:
        return self._trace.ids if self._trace is not None else {}

    async def _reply(self, reply: Response) -> None:
        if not self.status:  # of an answer that has begun, nothing else can be said
            await reply(self.scope, self._receive, self._sending)

    async def _receiving(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._body.take(len(message.get("body", b"")))
            if not message.get("more_body", False) and not self._complete:
                self._complete = True
                if self._trace is not None:
                    self._trace.received()
                self._watch = asyncio.get_running_loop().call_later(_GONE_AFTER, self._start_watching)
        return message

    def _start_watching(self) -> None:
        self._watcher = asyncio.create_task(self._until_gone())

    async def _until_gone(self) -> None:
        """A client that has gone away needs no answer: what it asked for and has not been started is not computed."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.status and self._task is not None:
            self._left = True
            self._task.cancel()

    async def _sending(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._trace is not None:
                self._trace.responding()
            headers: list[tuple[bytes, bytes]] = [*message.get("headers", []), *HEADERS]
            if not any(name.lower() == POLICY[0] for name, _ in headers):
                headers.append(POLICY)
            headers.append((b"x-request-id", self.id.encode()))
            message = {**message, "headers": headers}
        await self._send(message)

    def _record(self, seconds: float) -> None:
        metrics = self.guard.metrics
        route = getattr(self.scope.get("route"), "path", "other")  # not the path: a client could invent any number
        metrics.requests.labels(route, str(self.status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if self._trace is not None:
            method = self.scope["method"] if self.scope["method"] in METHODS else "_OTHER"
            about = {"http.request.method": method, "http.route": route, "http.response.status_code": self.status}
            self._trace.end(f"{method} {route}", about, failed=self.status >= 500)
        if self.scope["path"] in QUIET and self.status < 400:
            return
        client: Any = self.scope.get("client") or ("", 0)
        say(
            "request",
            request_id=self.id,
            method=self.scope["method"],
            path=self.scope["path"][:200],
            status=self.status,
            ms=round(seconds * 1e3, 3),
            bytes=self._body.taken,
            client=client[0],
            **({"ended": self._ended} if self._ended else {}),
            **self._ids,
        )


class BodyRefused(Exception):  # it is an answer, not a failure
    """A body that is not read (further)."""

    def __init__(self, status: int, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.status = status
        self.cause = cause
        self.hint = hint


class Bodies:
    """What all bodies under way take. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.limit = settings.max_body
        self.budget = settings.body_budget
        self.held = 0

    def account(self, headers: Mapping[str, str]) -> Account:
        length = headers.get("content-length", "")
        return Account(self, int(length) if length.isdecimal() and len(length) < 16 else 0)


class Account:
    """The bytes of one request: as many as it announced, or as have come where it announced fewer or none."""

    def __init__(self, bodies: Bodies, announced: int) -> None:
        self.taken = 0
        self._bodies = bodies
        self._announced = announced
        self._held = 0

    def check_announced(self) -> None:
        """Refuse by its Content-Length, before a byte of it is read.

        Raises:
            BodyRefused: larger than one may be, or than there is room for at present.
        """
        self._hold(self._announced)

    def take(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            BodyRefused: as above.
        """
        self.taken += size
        self._hold(self.taken)

    def _hold(self, size: int) -> None:
        bodies = self._bodies
        if size > bodies.limit:
            raise BodyRefused(
                413, f"the body is larger than {bodies.limit} bytes", "send less, or scale the image down"
            )
        more = size - self._held
        if more <= 0:
            return
        if bodies.held + more > bodies.budget:
            raise BodyRefused(503, "too many bytes are on their way already", "try again a little later")
        bodies.held += more
        self._held = size

    def release(self) -> None:
        self._bodies.held -= self._held
        self._held = 0
