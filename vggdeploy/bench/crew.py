"""The workers of a measurement: one process per backend, so that threads, memory and a crash belong to one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import numpy as np

from vggdeploy import errors
from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.messages import (
    Answer,
    CheckReply,
    CheckRequest,
    FailureReply,
    FinishReply,
    FinishRequest,
    OpenReply,
    OpenRequest,
    Request,
    StartRequest,
    TurnReply,
    TurnRequest,
)
from vggdeploy.errors import VggdeployError, one_line
from vggdeploy.parity.reference import Array
from vggdeploy.records import FreshStart
from vggdeploy.runtime import backend_for

# -P: a numpy.py in the current directory is not NumPy.
WORKER_COMMAND = (sys.executable, "-P", "-m", "vggdeploy.bench.worker")
_GOODBYE_SECONDS = 10.0  # for a library that saves what it compiled
A = TypeVar("A")


class Worker:
    """One process that measures. ``spawned`` is the monotonic clock, in nanoseconds, right before its start."""

    def __init__(self, start: StartRequest, descriptor: int) -> None:
        self._decoder = msgspec.json.Decoder(Answer)
        self._said = tempfile.TemporaryFile(prefix="vggdeploy-worker-")  # noqa: SIM115  # closed by close()
        self.spawned = time.monotonic_ns()
        self._process = subprocess.Popen(
            WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            pass_fds=(descriptor,),
            env=_environment(),
            process_group=0,  # Ctrl-C is ours: we end it
        )
        self.pid = self._process.pid
        self._send(start)

    def ask(self, request: Request, answer: type[A]) -> A:
        """Wait for the answer; the parent sleeps meanwhile.

        Raises:
            VggdeployError: the worker's own error, or its death.
        """
        self._send(request)
        assert self._process.stdout is not None  # noqa: S101  # a pipe, as asked for
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        reply = self._decoder.decode(line)
        if isinstance(reply, FailureReply):
            raise _error(reply)
        assert isinstance(reply, answer)  # noqa: S101  # the worker is this version's
        return reply

    def close(self, *, kill: bool = False) -> None:
        """End the process: politely, then not."""
        process = self._process
        try:
            if kill:
                process.kill()
            elif process.stdin is not None:
                process.stdin.close()
            process.wait(_GOODBYE_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, self._said):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # a last request that nobody reads
                        stream.close()

    def _send(self, request: Request) -> None:
        assert self._process.stdin is not None  # noqa: S101  # a pipe, as asked for
        with contextlib.suppress(BrokenPipeError):  # it has ended: why, the reader of its answer finds out
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()

    def _death(self) -> VggdeployError:
        code = self._process.wait()
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        last = f": {one_line(lines[-1])}" if lines else ""
        if code == -signal.SIGKILL:
            return VggdeployError(
                "a process that measures was killed (SIGKILL), as the kernel does when memory runs out",
                "use a smaller --batch, or fewer variants at a time: --variant NAME",
            )
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return VggdeployError(f"a process that measures {how}{last}", "measure one variant at a time: --variant NAME")


def _environment() -> dict[str, str]:
    """The worker imports the vggdeploy that is imported here, also where it is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(os.environ)
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _error(found: FailureReply) -> VggdeployError:
    """The worker's error as it was: its class has the exit code."""
    kind = getattr(errors, found.kind, VggdeployError)
    error: VggdeployError = kind(found.cause, found.hint)
    error.add_note(f"in the process that measures:\n{found.trace}")
    return error


@contextmanager
def shared(images: Array) -> Iterator[int]:
    """Inputs as an ``.npy`` file without a name: the descriptor, which workers inherit. Nothing is left behind."""
    with tempfile.TemporaryFile(prefix="vggdeploy-pool-") as file:
        np.save(file, images, allow_pickle=False)
        file.flush()
        yield file.fileno()


class Crew:
    """A worker per backend, for the entries of a measurement. Entered, it holds the inputs; left, no process stays."""

    def __init__(
        self,
        images: Array,
        *,
        batches: Sequence[int],
        threads: int | None = None,
        pin: Sequence[int] = (),
        spawn: Callable[[StartRequest, int], Worker] | None = None,
    ) -> None:
        self._batches = tuple(batches)
        self._images = images
        self._start = StartRequest(pool="", threads=threads, pin=tuple(pin))
        self._spawn = spawn or Worker
        self._workers: dict[str, Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._descriptor = self._stack.enter_context(shared(self._images))
        self._start = msgspec.structs.replace(self._start, pool=f"/proc/self/fd/{self._descriptor}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._workers:
                _, worker = self._workers.popitem()
                worker.close(kill=kind is not None)
        finally:
            for worker in self._workers.values():
                worker.close(kill=True)
            self._stack.close()

    def open(self, entry: Entry) -> OpenReply:
        """Open an entry in its backend's worker."""
        backend = backend_for(entry.variant).name
        if backend not in self._workers:
            self._workers[backend] = self._spawn(self._start, self._descriptor)
        return self._workers[backend].ask(self._request(entry), OpenReply)

    def open_fresh(self, entry: Entry) -> tuple[OpenReply, FreshStart]:
        """`open`, and measure the start of a process that runs this entry alone.

        The first entry of a backend finds its worker fresh; for the others a process of their own is started first.
        """
        backend = backend_for(entry.variant).name
        if backend not in self._workers:
            opened = self.open(entry)
            return opened, self._fresh(entry, self._workers[backend], opened)
        alone = self._spawn(self._start, self._descriptor)
        try:
            fresh = self._fresh(entry, alone, alone.ask(self._request(entry), OpenReply))
        except BaseException:
            alone.close(kill=True)
            raise
        alone.close()
        return self.open(entry), fresh

    def _request(self, entry: Entry) -> OpenRequest:
        return OpenRequest(
            name=entry.name,
            bundle=str(entry.bundle.root),
            variant=entry.variant.name,
            device=str(entry.device),
            batches=self._batches,
            threads=entry.threads,
        )

    def check(self, entry: Entry, *, golden: bool = True) -> CheckReply:
        """The golden pair, where that is wanted, and an answer to compare with after the measurement."""
        return self._worker(entry).ask(CheckRequest(name=entry.name, golden=golden), CheckReply)

    def turn(self, entry: Entry, batch: int, seconds: float) -> TurnReply:
        """One turn of an entry; every other worker sleeps."""
        ours = (os.getpid(), *(worker.pid for worker in self._workers.values()))
        return self._worker(entry).ask(TurnRequest(name=entry.name, batch=batch, seconds=seconds, ours=ours), TurnReply)

    def finish(self, entry: Entry, batch: int, seconds: float) -> FinishReply:
        """The outputs once more, and where the host's time goes."""
        return self._worker(entry).ask(FinishRequest(name=entry.name, batch=batch, seconds=seconds), FinishReply)

    def _worker(self, entry: Entry) -> Worker:
        return self._workers[backend_for(entry.variant).name]

    def _fresh(self, entry: Entry, worker: Worker, opened: OpenReply) -> FreshStart:
        return FreshStart(
            variant=entry.name,
            backend=backend_for(entry.variant).name,
            batch=self._batches[0],
            cold_start_ms=(opened.answered - worker.spawned) / 1e6,
            load_ms=opened.load_ms,
            first_ms=opened.first_ms,
            peak_rss_bytes=opened.peak_rss,
            sha256=opened.sha256,
            size_bytes=opened.size,
            proof_ms=opened.proof_ms,
        )
