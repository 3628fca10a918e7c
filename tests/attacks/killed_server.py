"""A server that is killed while it reloads: nothing is torn, no worker goes on without it, and the next one answers."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import time
from contextlib import closing, suppress
from pathlib import Path

from attacks.killing import Count, Home, Rounds, ended, start, survivors
from attacks.whole_files import half_written

from vggdeploy.system.exchange import exchange

_LIMIT = 120.0
_OTHER = {"bundle": "other", "other": "bundle"}
_PATIENCE = 60.0  # a worker that is just starting learns of it when it has imported everything


def _exchanged(name: str) -> str:
    """The name after the two bundles have changed places."""
    return re.sub(r"^work/(bundle|other)(?=/|$)", lambda found: f"work/{_OTHER[found[1]]}", name)


class ServerKiller(Rounds):
    """Starts a server, exchanges its bundle, tells it to reload, and kills it at a random moment of that."""

    def __init__(self, given: Path, work: Path, *, workers: int, seed: int) -> None:
        self.count = Count(f"reload-{workers}")
        self.given, self.workers = given, workers
        self.home = Home(work / self.count.verb)
        self.random = random.Random(seed)
        self.home.make(given)
        server = self._started()
        began = time.monotonic()
        self._tell(server)
        self._wait("reloaded" if workers == 1 else '"ready"', 1 if workers == 1 else 2 * workers)
        self.duration = time.monotonic() - began
        self._end(server)
        names = self.home.names()
        self.clean = (names, {_exchanged(name) for name in names})

    def _more(self) -> set[str]:
        """The names that there should not be, whichever of the two bundles stands where."""
        names = self.home.names()
        return min((names - clean for clean in self.clean), key=len)

    def kill(self) -> None:
        server = self._started()
        self._tell(server)
        time.sleep(self.random.uniform(0.0, self.duration))
        os.kill(server, signal.SIGKILL)
        ended(server)
        self.count.kills += 1
        self.count.processes += survivors(server, patience=_PATIENCE)
        self.count.in_draft += bool(self._more())
        self.count.torn += [f"kill {self.count.kills}: {text}" for text in half_written(self.home.work)]

    def finish(self) -> None:
        try:
            server = self._started()
            self._end(server)
        except (RuntimeError, OSError) as error:
            self.count.failed.append(str(error)[-400:])
        self.count.torn += [f"after a whole run: {text}" for text in half_written(self.home.work)]
        self.count.leftovers.update(self._more())

    def _started(self) -> int:
        arguments = (
            "serve",
            "bundle",
            "--port",
            "0",
            "--threads",
            "1",
            "--workers",
            str(self.workers),
            "--drain",
            "0.1",
        )
        self.home.log.unlink(missing_ok=True)
        server, pipe = start(arguments, self.home)
        os.close(pipe)
        self._wait('"ready"', self.workers)
        url = re.search(r"http://([0-9.:]+)", self.home.log.read_text())
        if url is None:
            raise RuntimeError("the server does not say where it listens")
        with closing(http.client.HTTPConnection(url[1], timeout=30)) as connection:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status != 200:
                raise RuntimeError("the server is not ready")
        return server

    def _wait(self, text: str, times: int) -> None:
        until = time.monotonic() + _LIMIT
        said = ""
        while said.count(text) < times:
            if time.monotonic() > until:
                raise RuntimeError(f"no {text} from the server: {said[-1500:]}")
            time.sleep(0.01)
            with suppress(FileNotFoundError):
                said = self.home.log.read_text(errors="replace")

    def _tell(self, server: int) -> None:
        """Another bundle in its place, and a SIGHUP."""
        exchange(self.home.work / "other", self.home.work / "bundle")
        os.kill(server, signal.SIGHUP)

    def _end(self, server: int) -> None:
        os.kill(server, signal.SIGTERM)
        code = ended(server)
        if code not in (0, 143, -signal.SIGTERM):
            raise RuntimeError(f"the server ended with {code}")
        if alive := survivors(server):
            raise RuntimeError(f"{alive} workers went on")
