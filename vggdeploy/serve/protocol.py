"""The routes of the Open Inference Protocol, version 2, as KServe, Triton and their clients speak it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from vggdeploy._version import __version__
from vggdeploy.serve.common import ERRORS, answered, error_reply, json_reply, models
from vggdeploy.serve.model import UNAVAILABLE, Model
from vggdeploy.serve.served import Served
from vggdeploy.serve.statistics import Statistics, model_statistics
from vggdeploy.serve.tensors import HEADER_LENGTH, check_outputs, describe, inflate, read_request, write_answer

router = APIRouter(tags=["Open Inference Protocol v2"])
VERSION = "1"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
OFF_THE_LOOP = 64 * 1024  # bytes of a body that are parsed in a thread: less takes below a millisecond


@router.get("/v2", summary="The server")
async def server() -> Response:
    return json_reply({"name": "vggdeploy", "version": __version__, "extensions": EXTENSIONS})


@router.get("/v2/health/live", summary="Whether the process answers")
async def live() -> Response:
    return json_reply({"live": True})


@router.get("/v2/health/ready", summary="Whether it takes requests", responses={503: ERRORS[503]})
async def ready(request: Request) -> Response:
    now = models(request).ready
    return json_reply({"ready": now}, 200 if now else 503)


@router.post("/v2/repository/index", summary="The models", include_in_schema=False)
async def index(request: Request) -> Response:
    here = models(request)
    draining = {"state": UNAVAILABLE, "reason": "draining"}
    return json_reply(
        [
            {"name": m.name, "version": VERSION, **({"state": m.state, "reason": m.why} if here.ready else draining)}
            for m in here
        ]
    )


@router.get("/v2/models/stats", summary="What has become of all models' requests", include_in_schema=False)
async def all_statistics(request: Request) -> Response:
    return json_reply({"model_stats": [statistics_of(model) for model in models(request)]})


@router.get("/v2/models/{model}", summary="Names, types and shapes", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
async def metadata(request: Request, model: str, version: str = VERSION) -> Response:
    if unknown := _unknown(request, model, version):
        return unknown
    async with models(request).use(model) as here:
        return json_reply(about_model(here))


@router.get("/v2/models/{model}/ready", summary="Whether the model takes requests", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, model: str, version: str = VERSION) -> Response:
    if unknown := _unknown(request, model, version):
        return unknown
    # One that waits for a request to open it is ready: else nobody would send it one.
    now = models(request).ready and models(request).find(model).state != UNAVAILABLE
    return json_reply({"ready": now}, 200 if now else 503)


@router.get("/v2/models/{model}/config", summary="Triton's model configuration", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}/config", include_in_schema=False)
async def config(request: Request, model: str, version: str = VERSION) -> Response:
    if unknown := _unknown(request, model, version):
        return unknown
    async with models(request).use(model) as here:
        return json_reply(configuration(here))


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
    models(request).refuse_early(model)
    body = await request.body()
    async with models(request).use(model) as here:
        return await _infer(request, here, body)


async def _infer(request: Request, here: Served, body: bytes) -> Response:
    length = request.headers.get(HEADER_LENGTH)
    if length is not None and not (length.isdecimal() and len(length) < 12):
        return error_reply(400, "Inference-Header-Content-Length is no number", "give the length of the JSON in bytes")
    encoding = request.headers.get("content-encoding", "").strip().lower()

    def parse() -> Any:
        plain = inflate(body, encoding, here.settings.max_body)
        return read_request(plain, None if length is None else int(length))

    asked, tensors = await asyncio.to_thread(parse) if len(body) > OFF_THE_LOOP or encoding else parse()
    check_outputs(asked, here.engine.bundle.manifest)
    answer = await here.batching.answer_arrays(tensors)
    answered(request, here, tensors, answer)
    check_outputs(asked, answer.manifest)  # a reload may have come between
    data, head = write_answer(asked, answer.outputs, answer.manifest, name=here.name)
    if head is None:
        return Response(data, media_type="application/json")
    return Response(data, headers={HEADER_LENGTH: str(head)}, media_type="application/octet-stream")


@router.get("/v2/models/{model}/stats", summary="What has become of its requests", responses=ERRORS)
@router.get("/v2/models/{model}/versions/{version}/stats", include_in_schema=False)
async def statistics(request: Request, model: str, version: str = VERSION) -> Response:
    found = _unknown(request, model, version)
    return found or json_reply({"model_stats": [statistics_of(models(request).find(model))]})


def statistics_of(model: Model) -> dict[str, Any]:
    """Of a model that is not open they begin anew."""
    return model_statistics(model.name, model.seat.served.statistics if model.seat is not None else Statistics())


def _unknown(request: Request, model: str, version: str) -> Response | None:
    """The answer to a model or version that there is not; None for one that is served."""
    names = [each.name for each in models(request)]
    if model not in names:
        return error_reply(
            404, f"no model '{model[:80]}' here", "this server has " + ", ".join(f"'{name}'" for name in names)
        )
    if version != VERSION:
        return error_reply(404, f"no version '{version[:20]}' of it", f"leave the version out, or give {VERSION}")
    return None


def about_model(here: Served) -> dict[str, Any]:
    """A model's names, types and shapes."""
    engine = here.engine
    manifest = engine.bundle.manifest
    return {
        "name": here.model,
        "versions": [VERSION],
        "platform": f"vggdeploy_{engine.variant.format}",
        "inputs": [describe(manifest.input)],
        "outputs": [describe(spec) for spec in manifest.outputs],
    }


def configuration(here: Served) -> dict[str, Any]:
    """Triton's ModelConfig as JSON: shapes are without the batch there."""
    engine = here.engine
    manifest = engine.bundle.manifest

    def entry(spec: Any) -> dict[str, Any]:
        about = describe(spec)
        return {"name": about["name"], "data_type": f"TYPE_{about['datatype']}", "dims": about["shape"][1:]}

    return {
        "name": here.model,
        "platform": f"vggdeploy_{engine.variant.format}",
        "max_batch_size": here.batching.max_batch,
        "input": [entry(manifest.input)],
        "output": [entry(spec) for spec in manifest.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(here.settings.max_delay_ms * 1000)},
    }
