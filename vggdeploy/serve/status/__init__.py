"""The operator's page at ``/status``: what runs, since when, and how well. Its policy is that of the page at ``/``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from vggdeploy._version import __version__
from vggdeploy.serve.common import json_reply, models
from vggdeploy.serve.model import Model
from vggdeploy.serve.models import Models
from vggdeploy.serve.page import file_reply
from vggdeploy.serve.served import Served

router = APIRouter(include_in_schema=False)
_HERE = Path(__file__).parent
_KINDS = {"status.html": "text/html", "status.css": "text/css", "status.js": "text/javascript"}
_FILES = {name: (_HERE / name).read_bytes() for name in _KINDS}


@router.get("/status")
async def page() -> Response:
    return file_reply(_FILES["status.html"], _KINDS["status.html"])


@router.get("/status.css")
async def style() -> Response:
    return file_reply(_FILES["status.css"], _KINDS["status.css"])


@router.get("/status.js")
async def script() -> Response:
    return file_reply(_FILES["status.js"], _KINDS["status.js"])


@router.get("/status/data")
async def data(request: Request) -> Response:
    here = models(request)
    beside = [asyncio.to_thread(found.report) if found else _nothing() for found in (here.shadow, here.drift)]
    shadow, drift = await asyncio.gather(*beside)
    return json_reply(
        {
            "version": __version__,
            "since": here.since,
            "ready": here.ready,
            "models": [_about(here, model) for model in here],
            "shadow": shadow,
            "drift": drift,
        }
    )


async def _nothing() -> None:
    return None


def _about(here: Models, model: Model) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": model.name,
        "state": model.state if here.ready or model.seat is None else "DRAINING",
        "why": model.why,
        "limit": model.place.settings.queue,
        "waiting": model.waiting,
    }
    if model.seat is None:
        return about
    served = model.seat.served
    health, variant = served.batching.health(), served.engine.variant
    return about | {
        "variant": variant.name,
        "device": health.device,
        "digest": health.digest,
        "since": model.seat.since,
        "waiting": served.batching.waiting,
        "answered": health.answered,
        "failed": health.failed,
        "reloads": health.reloads,
        "times": _times(served),
        "proof": _proof(served),
    }


def _times(served: Served) -> dict[str, Any]:
    """Of the last thousand answers, milliseconds from the arrival at the queue to the answer."""
    recent = list(served.recent)
    p50, p99 = (round(float(np.percentile(recent, p)), 3) for p in (50, 99)) if recent else (None, None)
    return {"p50": p50, "p99": p99, "answers": len(recent)}


def _proof(served: Served) -> dict[str, Any]:
    proof = served.engine.variant.parity
    if proof is None:
        return {"verdict": "pass", "told": "it is the FP32 reference itself"}
    flips = proof.flips
    told = [
        f"{flips.flips} of {flips.samples} top-1 classes changed, up to {flips.upper:.2%} at 95% confidence"
        if flips
        else "",
        f"on {proof.data}" if proof.data else "",
        *proof.reasons,
    ]
    apart = {name: str(found) for name in ("numerical", "bounds") if (found := getattr(proof, name)) is not None}
    return {"verdict": str(proof.verdict), **apart, "told": "; ".join(filter(None, told))}
