"""Worker processes under a supervisor: what dies is replaced, and what cannot start is tried again later and later."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing import connection

from prometheus_client.multiprocess import mark_process_dead
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from vggdeploy.serve.telemetry import LOGGER, say
from vggdeploy.system.ending import GRACE, end_within

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds until a worker that could not start is tried again; doubled each time
_STEP = 0.5  # seconds after which a wait for a worker looks whether the server is to end
_PATIENCE = 2.0  # seconds for the head of a request that only a "not ready" answers
_NOT_READY = b'{"error":"no worker could be started","fix":"see the server\'s log; it is tried again by itself"}'


class Exit(threading.Event):
    """Whether the server is to end: also where the signal has come, and the supervisor, which waits for a worker, has not yet
    acted on it."""

    def __init__(self, signals: list[int]) -> None:
        super().__init__()
        self._signals = signals

    def is_set(self) -> bool:
        return super().is_set() or signal.SIGTERM in self._signals or signal.SIGINT in self._signals


class Workers(Multiprocess):
    """uvicorn's supervisor, which also knows that Ctrl-C ended it.

    A worker that hangs is ended. One that died is replaced at once; where its successor cannot start (the bundle was
    altered meanwhile, say) that is tried again after 1, 2, 4 … 60 s, and the other workers go on. While no worker
    lives at all, the supervisor answers in their place that nothing is ready. Where no worker has ever started, it gives up.
    """

    interrupted = False
    closing = 0.0

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.should_exit = Exit(self.signal_queue)
        self.once_ready = False
        self._waits: dict[int, float] = {}  # of the places whose workers could not start: seconds until the next one
        self._living: set[int | None] = set()  # process numbers, whose gauges are on the page of metrics
        self._again: dict[Process, float] = {}  # those that could not start, and when they are tried again
        self._stand_in: StandIn | None = None

    def keep_subprocess_alive(self) -> None:
        """Called every half second: replace the dead, or say when that will be tried."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process in self._again:
                if time.monotonic() >= self._again[process]:
                    del self._again[process]
                    self._replace(index)
                continue
            started = self._started(process)
            if started is not None:
                if started:
                    self._waits.pop(index, None)
                    self._note_ready()
                continue
            process.kill()  # it may hang
            process.join()
            if process.exitcode != STARTUP_FAILURE:
                LOGGER.error("a worker died and is replaced", extra={"about": {"worker": process.pid}})
                self._replace(index)
            elif self.once_ready:
                wait = self._waits.get(index, _FIRST_WAIT)
                self._waits[index] = min(2 * wait, _LONGEST_WAIT)
                self._again[process] = time.monotonic() + wait
                say("a worker could not start", worker=process.pid, again_in_seconds=wait)
            else:
                self.should_exit.set()
        living = {process.pid for process in self.processes if process not in self._again}
        for ended in self._living - living:  # what it only had, such as requests that wait, goes with it
            mark_process_dead(ended)  # type: ignore[no-untyped-call]
        self._living = living
        if self._again and len(self._again) == len(self.processes) and self._stand_in is None:
            self._stand_in = StandIn(self.sockets[0])

    def _replace(self, index: int) -> None:
        process = Process(self.config, self.sockets)
        process.start()
        self.processes[index] = process

    def _started(self, process: Process) -> bool | None:
        """Whether it takes requests; None where it is dead, or does not answer in time.

        uvicorn's own question to a worker that dies over it waits for its whole patience: the answer's pipe stays open. Nor
        does it look whether the server is to end, of which no other worker would learn meanwhile.
        """
        end = time.monotonic() + self.config.timeout_worker_healthcheck
        try:
            process.parent_conn.send(b"ping")
            while not connection.wait([process.parent_conn, process.process.sentinel], _STEP):
                if self.should_exit.is_set():
                    return False
                if time.monotonic() > end:
                    return None
            return bool(process.parent_conn.recv()) if process.parent_conn.poll() else None
        except (OSError, EOFError):
            return None

    def _note_ready(self) -> None:
        self.once_ready = True
        if self._stand_in is not None:
            self._stand_in.close()
            self._stand_in = None

    def terminate_all(self) -> None:
        if self._stand_in is not None:
            self._stand_in.close()
        super().terminate_all()

    def handle_hup(self) -> None:
        """Those that wait are tried at once; the others are replaced one by one, as uvicorn does."""
        self._waits.clear()
        if self._again:
            self._again = dict.fromkeys(self._again, 0.0)
        else:
            super().handle_hup()

    def handle_int(self) -> None:
        end_within(GRACE if self.interrupted else self.closing, signal.SIGINT)
        self.interrupted = True
        super().handle_int()

    def handle_term(self) -> None:
        end_within(self.closing, signal.SIGTERM)
        super().handle_term()


class StandIn:
    """Answers on a listening socket that nothing is ready: 503, and 200 to who asks whether the process lives."""

    def __init__(self, listener: socket.socket) -> None:
        self._socket = listener.dup()
        self._loop = asyncio.new_event_loop()
        self._under_way: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="vggdeploy-stand-in", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections. The listening socket itself stays open."""
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        # A socket that other processes share is left as it is: asyncio's server would shut it down for them, too.
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._accept)
        try:
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            for task in list(self._under_way):  # each ends within its patience
                self._loop.run_until_complete(task)
            self._loop.close()

    def _accept(self) -> None:
        try:
            caller, _ = self._socket.accept()
        except OSError:  # it went away before its turn
            return
        caller.setblocking(False)
        task = self._loop.create_task(self._answer(caller))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _answer(self, caller: socket.socket) -> None:
        with caller, suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                head = await self._loop.sock_recv(caller, 4096)
                live = head.split(b"?")[0].startswith(b"GET /v2/health/live")
                status, body = ("200 OK", b'{"live":true}') if live else ("503 Service Unavailable", _NOT_READY)
                fields = (
                    f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}",
                    "retry-after: 1", "connection: close", "", "",
                )  # fmt: skip
                await self._loop.sock_sendall(caller, "\r\n".join(fields).encode() + body)
                caller.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(caller, 65_536):  # closed with a body unread, the answer would be lost
                    pass
