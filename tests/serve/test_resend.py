"""Around Ray's proxy: a request whose replica died is sent once more, and nothing ends without an answer that says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.routing import Route

from vggdeploy.serve import images, operations, page, protocol, status
from vggdeploy.serve.resend import Resend, middlewares
from vggdeploy.serve.settings import SETTINGS_VARIABLE, Settings

Inner = Callable[[Any, Any, Any], Awaitable[None]]


async def body_of(receive: Any) -> bytes:
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return data


async def answer(send: Any, status: int, data: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": data[:1], "more_body": True})
    await send({"type": "http.response.body", "body": data[1:]})


def ask(
    inner: Inner,
    *,
    path: str = "/classify",
    parts: tuple[bytes, ...] = (b"ab", b"cd"),
    leave: bool = False,
    **settings: Any,
) -> list[Any]:
    """What the client gets of a request whose body comes in these parts; with ``leave`` it goes away after them."""
    sent: list[Any] = []
    coming = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts] + [
        {"type": "http.disconnect"}
    ] * leave

    async def receive() -> Any:
        return coming.pop(0) if coming else await asyncio.sleep(30)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(Resend(inner, settings=Settings(bundle="", **settings))(scope, receive, send))
    return sent


def dying(times: int, *, after: bytes = b"") -> tuple[Inner, list[bytes]]:
    """As Ray's proxy is where the replica dies: it reads the request, perhaps begins to answer, and returns."""
    seen: list[bytes] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await body_of(receive))
        if len(seen) > times:
            await answer(send, 200, b"right")
        elif after:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": after, "more_body": True})

    return inner, seen


def told(sent: list[Any]) -> tuple[int, bytes, dict[bytes, bytes]]:
    assert [m["type"] for m in sent].count("http.response.start") == 1
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:]), dict(sent[0]["headers"])


@pytest.mark.parametrize("after", [b"", b"half an answ"])
def test_a_request_whose_replica_died_gets_the_whole_answer_of_another(after: bytes) -> None:
    inner, seen = dying(1, after=after)
    assert told(ask(inner))[:2] == (200, b"right")
    assert seen == [b"abcd", b"abcd"]


def test_one_that_kills_whoever_has_it_takes_two_replicas_and_is_told_so() -> None:
    inner, seen = dying(99)
    status, data, headers = told(ask(inner))
    assert (status, len(seen)) == (503, 2)
    assert headers[b"retry-after"] == b"1"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert json.loads(data) == {"error": "the replica that had the request has ended", "fix": "send it again"}


def test_every_path_of_the_server_is_known() -> None:
    routers = (module.router for module in (images, operations, page, protocol, status))
    paths = {route.path for router in routers for route in router.routes if isinstance(route, Route)}
    assert len(paths) > 20
    for path in sorted(paths | {"/metrics", "/openapi.json"}):
        inner, seen = dying(1)
        assert told(ask(inner, path=path))[:2] == (200, b"right"), path
        assert len(seen) == 2


def test_a_path_without_a_slash_is_answered() -> None:
    """The attack: "OPTIONS *" is a request that HTTP has."""
    inner, _ = dying(0)
    assert told(ask(inner, path="*"))[0] == 200


@pytest.mark.parametrize("path", ["/another/application", "/v2x", "/classify2"])
def test_other_applications_of_the_proxy_are_left_alone(path: str) -> None:
    inner, seen = dying(99)
    assert ask(inner, path=path) == []
    assert len(seen) == 1


def test_who_has_gone_away_is_not_asked_for_again() -> None:
    calls = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        calls.append(await body_of(receive))
        assert (await receive())["type"] == "http.disconnect"

    assert ask(inner, leave=True) == []
    assert len(calls) == 1


def test_a_body_that_there_is_no_room_to_keep_is_not_sent_again_and_that_is_told() -> None:
    inner, seen = dying(1)
    status, _, _ = told(ask(inner, parts=(b"x" * 600, b"y" * 600), max_body=1024))
    assert (status, len(seen)) == (503, 1)


def test_what_takes_too_long_is_told_and_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggdeploy.serve.resend._MARGIN_SECONDS", 0.0)
    calls = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        calls.append(await body_of(receive))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:  # as Ray's proxy does, which goes on to say that the client had left
            return

    status, data, headers = told(ask(inner, timeout=0.05))
    assert (status, len(calls)) == (503, 1)
    assert b"no replica answered in time" in data
    assert b"retry-after" in headers


def test_rays_own_503_gets_the_time_after_which_to_ask_again_and_another_answer_nothing() -> None:
    def says(status: int, *headers: tuple[bytes, bytes]) -> Inner:
        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await answer(send, status, b"no replica", *headers)

        return inner

    assert told(ask(says(503)))[2] == {b"retry-after": b"1"}
    assert told(ask(says(503, (b"retry-after", b"7"))))[2] == {b"retry-after": b"7"}
    assert told(ask(says(404)))[2] == {}


def test_a_fault_within_is_not_hidden() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError("of the proxy itself")

    with pytest.raises(TimeoutError, match="of the proxy itself"):
        ask(inner)


def test_the_proxy_finds_its_limits_in_the_environment_and_has_the_usual_ones_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    (usual,) = middlewares()
    assert usual.kwargs["settings"].timeout == Settings(bundle="").timeout
    monkeypatch.setenv(SETTINGS_VARIABLE, '{"bundle": "b", "timeout": 5}')
    (own,) = middlewares()
    assert own.kwargs["settings"].timeout == 5
