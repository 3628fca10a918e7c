"""A child's job and its answers, over HTTP on 127.0.0.1: a page has no other way, so Node.js and Python take the same.

The address holds a secret, so that no other user's process gets a model or gives an answer. Every model is compared with its
hash as it is handed out, and every answer has to have the size that it must have.
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from vggdeploy.errors import VggdeployError, counted, one_line
from vggdeploy.parity.reference import Array
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec

_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}
_PAGE = (
    b'<!doctype html><meta charset="utf-8"><title>vggdeploy</title><script type="module" src="harness.mjs"></script>'
)
_MAX_TEXT = 2**20
_MAX_MODEL = 2**34
Rows = tuple[int, int]


class Job(msgspec.Struct, frozen=True):
    """What a child is to run: ``batches`` are the rows of the golden inputs in each batch, for each of ``variants``.

    ``bundle`` and ``digest`` are for children that open the bundle themselves, ``library`` (a file URL) and ``provider`` for
    those that run it with ONNX Runtime Web.
    """

    bundle: str
    digest: str
    variants: tuple[str, ...]
    batches: tuple[tuple[Rows, ...], ...]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    threads: int | None = None
    provider: str = ""
    library: str = ""


class About(msgspec.Struct, frozen=True):
    """What a child says of itself before it runs anything, see `vggdeploy.records.parity.FleetTarget`."""

    isa: tuple[str, ...]
    tools: dict[str, str]


class Exchange:
    """Serves one job to one child, and holds what came back.

    Attributes:
        answers: (variant, batch, output) by position → the rows of that output.
        refused: position of a variant → why it could not be opened or run.
        remarks: position of a variant → what has to be said of how it ran.
        finished: positions of the variants that the child is done with.
        failed: why the child could do nothing at all; "" where it could.
        changed: set with every message.

    Args:
        models: the file of each variant.
        scripts: the directory of the library that a page imports.
    """

    def __init__(self, job: Job, images: Array, models: Sequence[HashedFile], *, scripts: Path | None = None) -> None:
        self.answers: dict[tuple[int, int, int], Array] = {}
        self.refused: dict[int, str] = {}
        self.remarks: dict[int, str] = {}
        self.finished: set[int] = set()
        self.failed = ""
        self.about: About | None = None
        self.changed = threading.Event()
        self._job, self._images, self._models = job, images, models
        self._files = {"harness.mjs": Path(__file__).with_name("harness.mjs")}
        self._files |= {f"scripts/{file.name}": file for file in scripts.iterdir()} if scripts else {}
        self._secret = secrets.token_urlsafe(24)
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"exchange": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fleet", daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._secret}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def path_of(self, target: str) -> str | None:
        """What a request is for; None where it does not know the secret."""
        secret, _, path = target.lstrip("/").partition("/")
        return path if secrets.compare_digest(secret.encode(), self._secret.encode()) else None

    def give(self, path: str) -> tuple[bytes, str]:
        """The bytes of a request, and their media type.

        Raises:
            VggdeployError: there is nothing of that name, or a model is not the one of its hash.
        """
        what, _, place = path.partition("/")
        if not path:
            return _PAGE, "text/html"
        if path == "job":
            return msgspec.json.encode(self._job), "application/json"
        if path == "images":
            return self._images.tobytes(), "application/octet-stream"
        if what == "model" and place.isdecimal() and int(place) < len(self._models):
            return self._models[int(place)].read(limit=_MAX_MODEL), "application/octet-stream"
        if path in self._files:
            return self._files[path].read_bytes(), _TYPES.get(Path(path).suffix, "application/octet-stream")
        raise VggdeployError(f"there is no {path} here", "")

    def take(self, path: str, data: bytes) -> None:
        """A message of the child.

        Raises:
            VggdeployError: it is none that is expected, or an answer of another size.
        """
        what, *places = path.split("/")
        match what, [int(place) for place in places if place.isdecimal()]:
            case "about", []:
                self.about = msgspec.json.decode(data, type=About)
            case "failed", []:
                self.failed = _text(data)
            case "refused", [variant]:
                self.refused[variant] = _text(data)
            case "remark", [variant]:
                self.remarks[variant] = _text(data)
            case "finished", [variant]:
                self.finished.add(variant)
            case "answer", [variant, batch, output]:
                self._take_answer(variant, batch, output, data)
            case _:
                raise VggdeployError(f"{path} is no message", "")
        self.changed.set()

    def _take_answer(self, variant: int, batch: int, output: int, data: bytes) -> None:
        spec = self._job.outputs[output]
        start, stop = self._job.batches[variant][batch]
        shape = (stop - start, *spec.item_shape)
        due = prod(shape) * np.dtype(spec.dtype).itemsize
        if len(data) != due:
            raise VggdeployError(
                f"'{spec.name}' of {counted(stop - start, 'image')} has {len(data)} bytes, not {due}", ""
            )
        self.answers[variant, batch, output] = np.frombuffer(data, spec.dtype).reshape(shape)

    def longest(self) -> int:
        """Bytes of the longest message that may come."""
        rows = max((stop - start for batches in self._job.batches for start, stop in batches), default=0)
        sizes = [rows * prod(spec.item_shape) * np.dtype(spec.dtype).itemsize for spec in self._job.outputs]
        return max(_MAX_TEXT, *sizes)


def _text(data: bytes) -> str:
    return one_line(data.decode(errors="replace")) or "it failed and did not say why"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A child that dies leaves its connection; how it died, its process says."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    exchange: Exchange
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.exchange.give)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12 or int(length) > self.exchange.longest():
            self.close_connection = True
            self._reply(413, b"", "text/plain")
            return
        data = self.rfile.read(int(length))

        def take(path: str) -> tuple[bytes, str]:
            self.exchange.take(path, data)
            return b"", "text/plain"

        self._answer(take)

    def _answer(self, make: Callable[[str], tuple[bytes, str]]) -> None:
        path = self.exchange.path_of(self.path)
        if path is None:
            self._reply(404, b"", "text/plain")
            return
        try:
            data, kind = make(path)
        except (VggdeployError, OSError, msgspec.MsgspecError, LookupError) as error:
            self._reply(400, (error.cause if isinstance(error, VggdeployError) else str(error)).encode(), "text/plain")
            return
        self._reply(200, data, kind)

    def _reply(self, code: int, data: bytes, kind: str) -> None:
        self.send_response(code)
        # A page with these two may use threads, and nothing but what comes from here.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Requests are no news."""
