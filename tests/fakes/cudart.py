"""A CUDA runtime in memory, for fault injection only: it counts what is alive, and fails on demand. See `fakes.gpu`."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable
from threading import RLock
from typing import Any

from cuda.bindings import runtime as real_cudart

ERRORS = real_cudart.cudaError_t
OK = ERRORS.cudaSuccess
OUT_OF_MEMORY = ERRORS.cudaErrorMemoryAllocation
ILLEGAL_ADDRESS = ERRORS.cudaErrorIllegalAddress

Work = Callable[[], None]


class Cudart:
    """``cuda.bindings.runtime``. ``fail_at``: the number of the call (from 0) that fails, or its name."""

    def __init__(self, fail_at: int | str | None = None, error: Any = ILLEGAL_ADDRESS) -> None:
        self.fail_at = fail_at
        self.error = error
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self.alive: dict[int, tuple[str, Any]] = {}
        self.streams: dict[int, list[Work]] = defaultdict(list)
        self.capturing: dict[int, list[Work]] = {}
        self.device_of: dict[int, int] = {}
        self.scratch: dict[int, int] = {}  # address → the stream that computes in it
        self.free = 6 << 30  # bytes on the GPU that can still be taken
        self.sizes: dict[int, int] = {}  # of what was taken there
        self.integrated = False
        self._lock = RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(real_cudart, name)

    def kinds(self) -> list[str]:
        """What is alive, sorted."""
        return sorted(kind for kind, _ in self.alive.values())

    def _fails(self, name: str, *arguments: Any) -> bool:
        self.calls.append(name)
        self.arguments.append(arguments)
        return self.fail_at in (len(self.calls) - 1, name)

    def _made(self, name: str, kind: str, size: int, *arguments: Any, thing: Any = None) -> tuple[Any, int | None]:
        with self._lock:
            if self._fails(name, *arguments):
                return self.error, None
            block = ctypes.create_string_buffer(max(1, size) + 256)
            handle = ctypes.addressof(block)
            handle += -handle % 256  # as cudaMalloc aligns
            self.alive[handle] = (kind, (block, thing))
            return OK, handle

    def _gone(self, name: str, kind: str, handle: int) -> tuple[Any]:
        with self._lock:
            if self._fails(name, handle):
                return (self.error,)
            assert self.alive.pop(int(handle))[0] == kind
            self.scratch.pop(int(handle), None)
            return (OK,)

    def _thing(self, handle: int, kind: str) -> Any:
        found, (_, thing) = self.alive[int(handle)]
        assert found == kind
        return thing

    def put(self, stream: int, work: Work) -> None:
        """Into a stream, or into the graph that is being captured from it."""
        with self._lock:
            self.capturing.get(stream, self.streams[stream]).append(work)

    def drain(self, stream: int, until: Work | None = None) -> None:
        with self._lock:
            queue = self.streams[stream]
            while queue:
                work = queue.pop(0)
                work()
                if work is until:
                    return

    # Memory

    def cudaMalloc(self, size: int) -> Any:
        if size > self.free:
            return OUT_OF_MEMORY, None
        status, address = self._made("cudaMalloc", "device", size, size)
        if address is not None:
            self.sizes[address] = size
            self.free -= size
        return status, address

    def cudaFree(self, address: int) -> Any:
        for stream in list(self.streams):  # it waits for the whole GPU
            self.drain(stream)
        status = self._gone("cudaFree", "device", address)
        if status == (OK,):
            self.free += self.sizes.pop(int(address))
        return status

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self._made("cudaHostAlloc", "host", size, size, flags)

    def cudaFreeHost(self, address: int) -> Any:
        assert self.fail_at is not None or not any(self.streams.values()), "pinned memory freed under work in a stream"
        return self._gone("cudaFreeHost", "host", address)

    def cudaMemGetInfo(self) -> Any:
        return (self.error, None, None) if self._fails("cudaMemGetInfo") else (OK, self.free, 8 << 30)

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> Any:
        if self._fails("cudaDeviceGetAttribute", attribute, device):
            return self.error, None
        assert attribute == real_cudart.cudaDeviceAttr.cudaDevAttrIntegrated
        return OK, int(self.integrated)

    def cudaDeviceGetPCIBusId(self, length: int, device: int) -> Any:
        if self._fails("cudaDeviceGetPCIBusId", length, device):
            return self.error, None
        return OK, b"0000:01:00.0".ljust(length, b"\0")

    def cudaPointerGetAttributes(self, address: int) -> Any:
        if self._fails("cudaPointerGetAttributes", address):
            return self.error, None
        return OK, type("Attributes", (), {"device": self.device_of.get(address, 0)})()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        if self._fails("cudaMemcpyAsync", target, source, size, kind, stream):
            return (self.error,)
        self.put(stream, lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cudaMemcpy(self, target: int, source: int, size: int, kind: Any) -> Any:
        if self._fails("cudaMemcpy", target, source, size, kind):
            return (self.error,)
        ctypes.memmove(target, source, size)
        return (OK,)

    # Streams and events

    def cudaSetDevice(self, index: int) -> Any:
        return (self.error if self._fails("cudaSetDevice", index) else OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._made("cudaStreamCreateWithFlags", "stream", 1, flags)

    def cudaStreamDestroy(self, stream: int) -> Any:
        return self._gone("cudaStreamDestroy", "stream", stream)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        with self._lock:
            if self._fails("cudaStreamSynchronize", stream):
                return (self.error,)
            assert stream not in self.capturing
            self.drain(stream)
            return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self._made(
            "cudaEventCreateWithFlags", "event", 1, flags, thing={"work": None, "stream": 0, "over": True}
        )

    def cudaEventDestroy(self, event: int) -> Any:
        return self._gone("cudaEventDestroy", "event", event)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        if self._fails("cudaEventRecord", event, stream):
            return (self.error,)
        state = self._thing(event, "event")
        state.update(stream=stream, over=False, work=lambda: state.update(over=True))
        self.put(stream, state["work"])
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        if self._fails("cudaStreamWaitEvent", stream, event, flags):
            return (self.error,)
        state = self._thing(event, "event")
        self.put(stream, lambda: self._reach(state))
        return (OK,)

    def _reach(self, state: Any) -> None:
        if not state["over"]:
            self.drain(state["stream"], state["work"])

    def cudaEventSynchronize(self, event: int) -> Any:
        if self._fails("cudaEventSynchronize", event):
            return (self.error,)
        self._reach(self._thing(event, "event"))
        return (OK,)

    def cudaEventQuery(self, event: int) -> Any:
        if self._fails("cudaEventQuery", event):
            return (self.error,)
        return (OK if self._thing(event, "event")["over"] else ERRORS.cudaErrorNotReady,)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        if self._fails("cudaEventElapsedTime", start, end):
            return self.error, None
        assert self._thing(start, "event")["over"] and self._thing(end, "event")["over"]
        return OK, 0.25

    # Graphs

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        if self._fails("cudaStreamBeginCapture", stream, mode):
            return (self.error,)
        self.capturing[stream] = []
        return (OK,)

    def cudaStreamIsCapturing(self, stream: int) -> Any:
        status = real_cudart.cudaStreamCaptureStatus
        active = stream in self.capturing
        return OK, status.cudaStreamCaptureStatusActive if active else status.cudaStreamCaptureStatusNone

    def cudaStreamEndCapture(self, stream: int) -> Any:
        work = self.capturing.pop(stream, [])
        return self._made("cudaStreamEndCapture", "graph", 1, stream, thing=work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        work = list(self._thing(graph, "graph"))
        return self._made("cudaGraphInstantiate", "executable", 1, graph, flags, thing=work)

    def cudaGraphDestroy(self, graph: int) -> Any:
        return self._gone("cudaGraphDestroy", "graph", graph)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        return self._gone("cudaGraphExecDestroy", "executable", executable)

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:
        if self._fails("cudaGraphLaunch", executable, stream):
            return (self.error,)
        for work in self._thing(executable, "executable"):
            self.put(stream, work)
        return (OK,)
