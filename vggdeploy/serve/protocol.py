"""The routes of the Open Inference Protocol, version 2, as KServe, Triton and their clients speak it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from vggdeploy._version import __version__
from vggdeploy.engine.engine import Engine
from vggdeploy.serve.common import ERRORS, Served, error_reply, json_reply, served
from vggdeploy.serve.tensors import HEADER_LENGTH, check_outputs, describe, inflate, read_request, write_answer

router = APIRouter(tags=["Open Inference Protocol v2"])
VERSION = "1"
_OFF_THE_LOOP = 64 * 1024  # bytes of a body that are parsed in a thread: less takes below a millisecond


@router.get("/v2", summary="The server")
async def server() -> Response:
    extensions = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]
    return json_reply({"name": "vggdeploy", "version": __version__, "extensions": extensions})


@router.get("/v2/health/live", summary="Whether the process answers")
async def live() -> Response:
    return json_reply({"live": True})


@router.get("/v2/health/ready", summary="Whether it takes requests", responses={503: ERRORS[503]})
async def ready(request: Request) -> Response:
    now = served(request).ready
    return json_reply({"ready": now}, 200 if now else 503)


@router.post("/v2/repository/index", summary="The models", include_in_schema=False)
async def index(request: Request) -> Response:
    here = served(request)
    state = {"state": "READY" if here.ready else "UNAVAILABLE", "reason": "" if here.ready else "draining"}
    return json_reply([{"name": here.model, "version": VERSION, **state}])


@router.get("/v2/models/{model}", summary="Names, types and shapes", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
async def metadata(request: Request, model: str, version: str = VERSION) -> Response:
    return _unknown(request, model, version) or json_reply(_metadata(served(request).engine))


@router.get("/v2/models/{model}/ready", summary="Whether the model takes requests", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, model: str, version: str = VERSION) -> Response:
    return _unknown(request, model, version) or await ready(request)


@router.get("/v2/models/{model}/config", summary="Triton's model configuration", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}/config", include_in_schema=False)
async def config(request: Request, model: str, version: str = VERSION) -> Response:
    here = served(request)
    return _unknown(request, model, version) or json_reply(_config(here.engine, here.batching.max_batch))


@router.post(
    "/v2/models/{model}/infer",
    summary="Arrays in, arrays out",
    responses={200: {"description": "The outputs, as JSON or with binary tensors behind it."}, **ERRORS},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["inputs"],
                        "properties": {
                            "id": {"type": "string", "maxLength": 256},
                            "inputs": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["name", "shape", "datatype", "data"],
                                    "properties": {
                                        "name": {"type": "string"},
                                        "shape": {"type": "array", "items": {"type": "integer"}},
                                        "datatype": {"enum": ["UINT8", "FP32"]},
                                        "data": {"type": "array"},
                                    },
                                },
                            },
                            "outputs": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["name"],
                                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                                },
                            },
                        },
                    }
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
@router.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, model: str, version: str = VERSION) -> Response:
    unknown = _unknown(request, model, version)
    if unknown is not None:
        return unknown
    here = served(request)
    here.refuse_when_full()
    length = request.headers.get(HEADER_LENGTH)
    if length is not None and not (length.isdecimal() and len(length) < 12):
        return error_reply(400, "Inference-Header-Content-Length is no number", "give the length of the JSON in bytes")
    body = await request.body()
    encoding = request.headers.get("content-encoding", "").strip().lower()

    def parse() -> Any:
        plain = inflate(body, encoding, here.settings.max_body)
        return read_request(plain, None if length is None else int(length))

    asked, tensors = await asyncio.to_thread(parse) if len(body) > _OFF_THE_LOOP or encoding else parse()
    check_outputs(asked, here.engine.bundle.manifest)
    answer = await here.batching.answer_arrays(tensors)
    here.metrics.answer(answer)
    check_outputs(asked, answer.manifest)  # a reload may have come between
    data, head = write_answer(asked, answer.outputs, answer.manifest)
    if head is None:
        return Response(data, media_type="application/json")
    return Response(data, headers={HEADER_LENGTH: str(head)}, media_type="application/octet-stream")


def _unknown(request: Request, model: str, version: str) -> Response | None:
    """The answer to a model or version that there is not; None for the one that is served."""
    here: Served = served(request)
    if model != here.model:
        return error_reply(404, f"no model '{model[:80]}' here", f"this server has '{here.model}'")
    if version != VERSION:
        return error_reply(404, f"no version '{version[:20]}' of it", f"leave the version out, or give {VERSION}")
    return None


def _metadata(engine: Engine) -> dict[str, Any]:
    manifest = engine.bundle.manifest
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": f"vggdeploy_{engine.variant.format}",
        "inputs": [describe(manifest.input)],
        "outputs": [describe(spec) for spec in manifest.outputs],
    }


def _config(engine: Engine, max_batch: int) -> dict[str, Any]:
    """Triton's ModelConfig as JSON: shapes are without the batch there."""
    manifest = engine.bundle.manifest

    def entry(spec: Any) -> dict[str, Any]:
        about = describe(spec)
        return {"name": about["name"], "data_type": f"TYPE_{about['datatype']}", "dims": about["shape"][1:]}

    return {
        "name": manifest.name,
        "platform": f"vggdeploy_{engine.variant.format}",
        "max_batch_size": max_batch,
        "input": [entry(manifest.input)],
        "output": [entry(spec) for spec in manifest.outputs],
        "dynamic_batching": {},
    }
