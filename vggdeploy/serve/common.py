"""What the routes of one server process share."""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec
from fastapi import Request
from starlette.responses import Response

from vggdeploy.engine.async_engine import Answer
from vggdeploy.errors import DeadlineError, InputError, Overloaded, UsageError, VggdeployError
from vggdeploy.serve.models import Models
from vggdeploy.serve.served import NotLoaded, Served


def models(request: Request) -> Models:
    """All models of the application that a request came to."""
    return cast(Models, request.app.state.models)


def answered(request: Request, here: Served, question: Any, answer: Answer) -> None:
    """Count the graph's answer to a request: `Served.answered`."""
    here.answered(question, answer, request.scope["state"].get("trace"))


RETRY_AFTER = "1"  # seconds; a queue of the default length is worked off in about that
# For /openapi.json: what every route may answer beside its result.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be answered; `error` says why."},
    401: {"description": "A bearer token is needed."},
    404: {"description": "No such model or version."},
    408: {"description": "The request took too long to arrive."},
    413: {"description": "The body is too large."},
    421: {"description": "The Host header is not this server's."},
    503: {"description": "Overloaded, or too late: try again after Retry-After seconds."},
}
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as msgspec writes it. A NaN or infinity, which JSON has not, becomes null; none passes the engine's check."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def error_reply(status: int, cause: str, fix: str = "", headers: dict[str, str] | None = None) -> Response:
    """``{"error": …, "fix": …}``: ``error`` is the key that the Open Inference Protocol names."""
    headers = {"Retry-After": RETRY_AFTER, **(headers or {})} if status == 503 else headers
    return json_reply({"error": without_addresses(cause), "fix": without_addresses(fix)}, status, headers)


def without_addresses(text: str) -> str:
    """A text for strangers: where something stands in memory helps nobody else."""
    return _ADDRESS.sub("0x…", text)


def known_error(error: VggdeployError) -> Response:
    """The caller's mistakes are 400; what a later try may mend is 503; the rest, a runtime that failed, is 500."""
    if isinstance(error, (InputError, UsageError)):
        return error_reply(400, error.cause, error.hint)
    if isinstance(error, (Overloaded, DeadlineError, NotLoaded)):
        return error_reply(503, error.cause, error.hint)
    return error_reply(500, "the model could not be run", "see the server's log under this X-Request-Id")
