"""What operators ask a server: whether its shadow may take over, and whether its requests have changed."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from vggdeploy.records import to_json
from vggdeploy.serve.common import ERRORS, error_reply, models
from vggdeploy.serve.models import Models
from vggdeploy.serve.telemetry import LOGGER

_EVERY_SECONDS = 2.0
router = APIRouter(tags=["Operations"])


@router.get("/shadow", summary="Whether the shadow may take over", responses={404: ERRORS[404]})
async def shadow(request: Request) -> Response:
    found = models(request).shadow
    if found is None:
        return error_reply(404, "this server has no shadow", "start it with --shadow BUNDLE")
    return Response(to_json(await asyncio.to_thread(found.report)), media_type="application/json")


@router.get("/drift", summary="Whether requests have changed", responses={404: ERRORS[404]})
async def drift(request: Request) -> Response:
    found = models(request).drift
    if found is None:
        return error_reply(404, "this server does not watch for drift", "start it with --drift")
    return Response(to_json(await asyncio.to_thread(found.report)), media_type="application/json")


async def note(here: Models) -> None:
    """Write what is only known when it is asked into the metrics."""
    here.note()
    for beside in (here.shadow, here.drift):
        if beside is not None:
            await asyncio.to_thread(beside.note)


async def go_on_noting(here: Models) -> None:
    """`note` again and again: other processes show these metrics, too, and this one may not be asked for long."""
    while True:
        try:
            await note(here)
        except Exception:
            LOGGER.exception("a bug: the metrics of this process were not written this time")
        await asyncio.sleep(_EVERY_SECONDS)
