"""A server that speaks as the Hub does, as far as a push and a pull go: a repository is a dictionary of files."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None
    commits: set[str] = field(default_factory=set)  # of which a file was asked for
    asked: list[str] = field(default_factory=list)  # names of files, in order
    lengths: dict[str, int] = field(default_factory=dict)  # name → bytes that are really sent, of an announced whole
    extra: dict[str, int] = field(default_factory=dict)  # name → bytes that are sent behind the file
    sent: dict[str, int] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    packed: set[str] = field(default_factory=set)  # names that are sent gzipped, whatever was asked for
    about: dict[str, Any] = field(default_factory=dict)  # in place of what is said of the repository


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, Repository]

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            made = self.repositories.setdefault(name, Repository())
            made.private = asked.get("private", asked.get("visibility") == "private")
            self._json({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").split("/commit/")[0]
            repository = self.repositories[name]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    repository.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._json(
                {
                    "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "hookOutput": "",
                }
            )
        else:
            self._json({"error": path}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if name not in self.repositories:
                self._json({"error": "Repository not found"}, 404)
                return
            found = self.repositories[name]
            found.tokens.add(self.headers.get("Authorization", ""))
            self._json(
                {"id": name, "sha": COMMIT, "private": bool(found.private), "tags": [], "siblings": [], **found.about}
            )
            return
        name, _, rest = path.lstrip("/").partition("/resolve/")
        commit, _, file = rest.partition("/")
        repository = self.repositories.get(name)
        if repository is None or not rest:
            self._json({"error": path}, 404)
            return
        repository.commits.add(commit)
        repository.asked.append(file)
        data = repository.files.get(file)
        if data is None:
            self._json({"error": "Entry not found"}, 404)
            return
        if file in repository.packed:
            data = gzip.compress(data)
        short = repository.lengths.get(file, len(data))
        self.send_response(200)
        if file in repository.packed:
            self.send_header("Content-Encoding", "gzip")
        if file in repository.extra:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:short])
        sent = short
        try:
            for _ in range(repository.extra.get(file, 0) // 2**16):
                self.wfile.write(b"x" * 2**16)
                sent += 2**16
        except OSError:  # the client has had enough
            self.close_connection = True
        repository.sent[file] = sent
        if file in repository.extra or short < len(data):
            self.close_connection = True


@contextmanager
def stub_hub() -> Iterator[tuple[str, dict[str, Repository]]]:
    """Its address, and its repositories."""
    repositories: dict[str, Repository] = {}
    handler = type("Hub", (_Hub,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
