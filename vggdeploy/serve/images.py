"""Image files in, labels or vectors out."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile

from vggdeploy.engine.async_engine import Answer
from vggdeploy.engine.embedding import POOLS
from vggdeploy.errors import InputError, UsageError
from vggdeploy.serve.common import ERRORS, answered, json_reply, models
from vggdeploy.serve.served import Served

router = APIRouter(tags=["Images"])
ModelName = Annotated[str | None, Query(description="Of several models; default: the first.", max_length=100)]

_IMAGE = {
    "requestBody": {
        "required": True,
        "description": "An image file (JPEG, PNG, WebP, BMP, GIF, TIFF, PPM): as the body, or as the form's field `file`.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


@router.post("/classify", summary="Labels and probabilities", responses=ERRORS, openapi_extra=_IMAGE)
async def classify(
    request: Request, top: Annotated[int, Query(ge=1, le=1000)] = 5, model: ModelName = None
) -> Response:
    started = time.perf_counter()
    models(request).refuse_early(model)
    image = await _image(request)
    arrived = time.perf_counter()
    async with models(request).use(model) as here:
        answer, predictions = await here.batching.classified(image, top=top)
        answered(request, here, image, answer)
        return json_reply({"predictions": predictions, **_about(request, here, answer, started, arrived)})


@router.post("/embed", summary="A feature vector", responses=ERRORS, openapi_extra=_IMAGE)
async def embed(
    request: Request,
    output: Annotated[str | None, Query(max_length=80)] = None,
    pool: Annotated[str, Query(description=f"Of a feature map: {', '.join(POOLS)}.", max_length=10)] = "avg",
    normalise: bool = False,
    model: ModelName = None,
) -> Response:
    started = time.perf_counter()
    models(request).refuse_early(model)
    image = await _image(request)
    arrived = time.perf_counter()
    async with models(request).use(model) as here:
        answer, vector = await here.batching.embedded(image, output=output, pool=pool, normalise=normalise)
        answered(request, here, image, answer)
        return json_reply({"vector": vector.tolist(), **_about(request, here, answer, started, arrived)})


async def _image(request: Request) -> bytes:
    """The bytes of the image file.

    Raises:
        UsageError: a form without one, or with more than one.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8, max_part_size=1024) as form:
        files = [part for part in form.values() if isinstance(part, UploadFile)]
        if len(files) != 1:
            raise UsageError("the form has no file", "send one, as the field 'file'")
        data = await files[0].read()
    if not data:
        raise InputError("the file is empty (0 bytes)", "send an image file")
    return data


def _about(request: Request, here: Served, answer: Answer, started: float, arrived: float) -> dict[str, Any]:
    """What every answer says beside its result; milliseconds."""
    split = {
        "receive": (arrived - started) * 1e3,
        "decode": answer.decode_ms,
        "queue": answer.queue_ms,
        "compute": answer.compute_ms,
        "total": (time.perf_counter() - started) * 1e3,
    }
    return {
        "model": here.name or answer.manifest.name,
        "variant": answer.variant,
        "batch": answer.batch,
        "time_ms": {name: round(ms, 3) for name, ms in split.items()},
        "request_id": request.scope["state"]["request_id"],
    }
