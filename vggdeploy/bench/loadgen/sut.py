"""LoadGen's system under test: what answers its queries, and the queue in front of it in the ``server`` scenario."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import mlperf_loadgen as lg
import numpy as np

from vggdeploy.bench.loadgen.scenarios import Load
from vggdeploy.parity.reference import Array
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.sessions import run_batch

_CALIBRATION_CALLS = 5


class Answering(ABC):
    """Answers LoadGen's queries. In ``server`` they queue for the workers, each of which takes what is waiting as one batch
    of at most the load's; in the other scenarios LoadGen waits for the answer anyway.

    ``queue_ms`` and ``run_ms`` are kept of every query and batch of ``server``.
    """

    def __init__(self, load: Load, *, workers: int = 1) -> None:
        self._load = load
        self._queue: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self.serve, name=f"server-scenario-{number}", daemon=True)
            for number in range(workers)
        ]
        self._lock = threading.Lock()
        self._held: list[Any] = []
        self._flushed = False
        self.error: Exception | None = None
        self.queue_ms: list[float] = []
        self.run_ms: list[float] = []

    @abstractmethod
    def milliseconds(self, samples: int) -> float:
        """Median time of a call, to tell LoadGen what to expect."""

    @abstractmethod
    def _run(self, rows: list[int]) -> Array | None:
        """Answer some samples: ``[N, values]``, or None where LoadGen gets no answers."""

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for worker in self._workers:
            worker.join()

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's callback. An error ends up in ``error``: raised in here it would end the process."""
        if self._load.scenario == "server":
            now = time.perf_counter_ns()
            for sample in samples:
                self._queue.put((now, sample))
        elif self._load.scenario == "offline":
            for start in range(0, len(samples), self._load.batch):
                self._answer(samples[start : start + self._load.batch])
        else:
            self._answer(samples)

    def serve(self) -> None:
        """A worker of ``server``; ends at a None."""
        while (first := self._queue.get()) is not None:
            waiting = [first]
            while len(waiting) < self._load.batch:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._queue.put(None)
                    break
                waiting.append(more)
            start = time.perf_counter_ns()
            self._answer([sample for _, sample in waiting])
            self.run_ms.append((time.perf_counter_ns() - start) / 1e6)
            self.queue_ms += [(start - arrived) / 1e6 for arrived, _ in waiting]

    def stop(self) -> None:
        for _ in self._workers:
            self._queue.put(None)

    def _answer(self, samples: Sequence[Any]) -> None:
        """What happens in here beside the session's own call is part of LoadGen's latency: it is kept short."""
        packed: Array | None = None
        if self.error is None:
            try:
                packed = self._run([sample.index for sample in samples])
            except Exception as error:  # whatever it is: LoadGen has to get its answers, or it waits for ever
                self.error = error
        if packed is None:
            if self._held_back(samples):
                return
            responses = [lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        else:  # LoadGen copies the bytes before QuerySamplesComplete returns
            start, size = packed.ctypes.data, packed.shape[1] * packed.itemsize
            responses = [lg.QuerySampleResponse(s.id, start + i * size, size) for i, s in enumerate(samples)]
        lg.QuerySamplesComplete(responses)

    def _held_back(self, samples: Sequence[Any]) -> bool:
        """After an error in ``server`` nothing is answered until LoadGen has sent its last query: it stops sending as soon
        as too many are unanswered, and would go on to its end otherwise."""
        with self._lock:
            if self.error is None or self._load.scenario != "server" or self._flushed:
                return False
            self._held += samples
            return True

    def flush(self) -> None:
        """LoadGen's callback after its last query: what was held back is answered."""
        with self._lock:
            self._flushed = True
            held, self._held = self._held, []
        if held:
            self._answer(held)


class SystemUnderTest(Answering):
    """A session under load.

    ``hand_over``: give LoadGen the answers, which it writes to its accuracy log: of each sample the values of all
    outputs, in the session's order, as float32.
    """

    def __init__(self, session: CheckedSession, images: Array, load: Load, *, hand_over: bool = False) -> None:
        super().__init__(load)
        self._session = session
        self._images = images
        self._hand_over = hand_over
        self._input = session.inputs[0].name

    def _run(self, rows: list[int]) -> Array | None:
        # A slice of one image is a view; a list of rows is a copy.
        images = self._images[rows[0] : rows[0] + 1] if len(rows) == 1 else self._images[rows]
        outputs = self._call(images)
        return pack(self._session, outputs) if self._hand_over else None

    def _call(self, images: Array) -> dict[str, Array]:
        if len(images) < self._session.batch.min:
            return run_batch(self._session, images)
        return self._session.run({self._input: images})

    def milliseconds(self, samples: int) -> float:
        rows = np.arange(samples) % len(self._images)
        times = []
        for _ in range(_CALIBRATION_CALLS):
            start = time.perf_counter()
            self._call(self._images[rows])
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1e3


def pack(session: CheckedSession, outputs: dict[str, Array]) -> Array:
    """All outputs of each sample side by side: ``float32 [N, values]``."""
    parts = [outputs[spec.name].reshape(len(outputs[spec.name]), -1) for spec in session.outputs]
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)


def unpack(session: CheckedSession, packed: Array) -> dict[str, Array]:
    """The inverse of `pack`, each output as ``[N, values]``."""
    sizes = [int(np.prod(spec.item_shape)) for spec in session.outputs]
    parts = np.split(packed, np.cumsum(sizes)[:-1], axis=1)
    return {spec.name: part for spec, part in zip(session.outputs, parts, strict=True)}
