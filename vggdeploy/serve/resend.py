"""In Ray's proxy: a request whose replica has died is sent once more, to another, and what cannot be answered is told so.

Ray answers "500 Internal Server Error" there. All routes of the server may be asked twice: they compute, and change nothing.
"""

from __future__ import annotations

import asyncio
import os

import msgspec
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vggdeploy.serve.common import RETRY_AFTER, error_reply
from vggdeploy.serve.guard import HEADERS, POLICY, Bodies, BodyRefused
from vggdeploy.serve.settings import SETTINGS_VARIABLE, Settings

CALLBACK = f"{__name__}:middlewares"
# How the paths of this server begin.
_FIRST = frozenset(
    {"", "classify", "embed", "v2", "metrics", "openapi.json", "status", "drift", "shadow"}
    | {"page.css", "page.js", "status.css", "status.js"}
)
_MARGIN_SECONDS = 2.0  # a replica that is late says so itself, and better
# Once: a request that itself kills what computes it, by an image that breaks a decoder, say, takes two replicas, and not all.
_ATTEMPTS = 2
_HELD_BYTES = (
    8 * 2**20
)  # of an answer, until it is complete: of a longer one the beginning has gone out when a replica dies


def middlewares() -> list[Middleware]:
    """What Ray's proxy puts around itself, where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names this function."""
    told = os.environ.get(SETTINGS_VARIABLE)
    settings = (
        msgspec.json.decode(told, type=Settings) if told else Settings(bundle="")
    )  # its limits are the usual ones
    return [Middleware(Resend, settings=settings)]


class Resend:
    """ASGI middleware around Ray's proxy. Bodies are kept until they are answered, within the server's limits for them."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.timeout = settings.timeout + _MARGIN_SECONDS
        self.bodies = Bodies(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # On a shared cluster the proxy has other applications' requests, too.
        if scope["type"] == "http" and _first(scope["path"]) in _FIRST:
            await _Request(self, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)


def _first(path: str) -> str:
    """What stands after the first slash; "OPTIONS *" has none."""
    return path.partition("/")[2].partition("/")[0]


class _Request:
    def __init__(self, around: Resend, scope: Scope, receive: Receive, send: Send) -> None:
        self._around = around
        self._scope = scope
        self._receive_next = receive
        self._send_on = send
        self._account = around.bodies.account(dict(Headers(scope=scope)))
        self._came: list[Message] | None = []  # the body, as long as it may be kept
        self._left = False
        self._begun = False  # to be answered
        self._held: list[Message] = []

    async def run(self) -> None:
        try:
            async with asyncio.timeout(self._around.timeout) as limit:
                for _ in range(_ATTEMPTS):
                    await self._attempt()
                    if self._begun or self._left or self._came is None or limit.expired():
                        break
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self._account.release()
        if not self._begun and not self._left:
            late = limit.expired()
            cause = "no replica answered in time" if late else "the replica that had the request has ended"
            own = {name.decode(): value.decode() for name, value in (*HEADERS, POLICY)}
            await error_reply(503, cause, "send it again", own)(self._scope, self._receive_next, self._send_on)

    async def _attempt(self) -> None:
        again = list(self._came or ())
        self._held.clear()

        async def receive() -> Message:
            if again:
                return again.pop(0)
            message = await self._receive_next()
            self._keep(message)
            return message

        await self._around.app(dict(self._scope), receive, self._send)

    def _keep(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._left = True
        elif self._came is not None:
            try:
                self._account.take(len(message.get("body", b"")))
                self._came.append(message)
            except BodyRefused:  # there is no room to keep it; the replica says what is to be said
                self._came = None
                self._account.release()

    async def _send(self, message: Message) -> None:
        """Answers go on when they are complete, so that half of one is never all that comes."""
        if message["type"] == "http.response.start" and message["status"] == 503:
            given = Headers(raw=list(message.get("headers", [])))
            if "retry-after" not in given:  # of Ray's own, while no replica lives
                more = [*message.get("headers", []), (b"retry-after", RETRY_AFTER.encode())]
                message = {**message, "headers": more}
        self._held.append(message)
        size = sum(len(m.get("body", b"")) for m in self._held)
        ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self._begun or ended or size > _HELD_BYTES:
            self._begun = True
            held, self._held = self._held, []
            for one in held:
                await self._send_on(one)
