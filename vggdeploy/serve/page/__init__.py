"""The page at ``/``: three files, and a policy by which they may ask this server and nobody else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)
_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_FILES = {name: (_HERE / name).read_bytes() for name in _KINDS}


def file_reply(data: bytes, kind: str) -> Response:
    """A file of a page, with its policy."""
    return Response(data, headers={"Content-Security-Policy": _POLICY}, media_type=f"{kind}; charset=utf-8")


def _file(name: str) -> Response:
    return file_reply(_FILES[name], _KINDS[name])


@router.get("/")
async def page() -> Response:
    return _file("page.html")


@router.get("/page.css")
async def style() -> Response:
    return _file("page.css")


@router.get("/page.js")
async def script() -> Response:
    return _file("page.js")
