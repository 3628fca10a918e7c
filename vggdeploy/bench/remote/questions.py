"""What a server is asked, and whether its answers under load are those that it gives without."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from typing import Any

import numpy as np

from vggdeploy.bench.remote.clients import Client, connect
from vggdeploy.bench.remote.target import Array, Target
from vggdeploy.errors import VggdeployError, counted, first_line
from vggdeploy.parity.metrics import distance

FAILURES = (VggdeployError, OSError, http.client.HTTPException)
# Of the tolerance: the server's variant and the bundle's own may both be off, and one image is not the mean of many.
_FOREIGN = 3.0
# Requests without an answer, and none with one; a server that refuses for want of room is at work on others.
_HOPELESS, _HOPELESS_REFUSED = 20, 1000


class Questions:
    """Requests of ``batch`` images each, made once, and the server's answers to them when nothing else asked it.

    Args:
        expected: by output, what the bundle itself answers to each of the ``images``; empty where there is none. So many
            requests as ``foreign`` says were answered otherwise.

    Raises:
        VggdeployError: the server does not answer one of them.
    """

    def __init__(
        self, target: Target, images: Array, batch: int, tolerance: float, *, expected: dict[str, Array] | None = None
    ) -> None:
        self.target = target
        self.batch = batch
        self._tolerance = tolerance
        client = connect(target)
        try:
            about = client.model()
            starts = range(0, max(1, len(images) - batch + 1), batch)
            rows = [range(start, start + batch) for start in starts]
            self.requests: list[Any] = [
                client.prepare(about, np.take(images, part, axis=0, mode="wrap")) for part in rows
            ]
            self._expected = [
                {name: np.take(values, part, axis=0, mode="wrap") for name, values in (expected or {}).items()}
                for part in rows
            ]
            answers = [client.outputs(client.infer(request)) for request in self.requests]
            self._quiet = [self._flat(outputs) for outputs in answers]
            self.foreign = sum(self._is_foreign(row, outputs) for row, outputs in enumerate(answers))
        except (OSError, http.client.HTTPException) as error:
            raise no_answer(target, error) from error
        finally:
            client.close()

    def __len__(self) -> int:
        return len(self.requests)

    @staticmethod
    def _flat(outputs: dict[str, Array]) -> Array:
        if not outputs:
            raise VggdeployError("the server answers without outputs", "see its log")
        return np.concatenate([outputs[name].ravel().astype(np.float32, copy=False) for name in sorted(outputs)])

    def judge(self, row: int, client: Client, answer: Any) -> str:
        """``"same"``, ``"changed"`` or ``"misplaced"``: the answer to another of the requests; an answer that cannot be read is
        ``"changed"``. ``"foreign"``: the same as without load, and another than the bundle's own."""
        try:
            outputs = client.outputs(answer)
            given = self._flat(outputs)
        except VggdeployError:
            return "changed"
        own = distance(self._quiet[row], given)
        if own <= self._tolerance:
            return "foreign" if self._is_foreign(row, outputs) else "same"
        nearest = min((distance(quiet, given) for i, quiet in enumerate(self._quiet) if i != row), default=own)
        return "misplaced" if nearest < own / 2 else "changed"

    def _is_foreign(self, row: int, outputs: dict[str, Array]) -> bool:
        limit = _FOREIGN * self._tolerance
        return any(
            name not in outputs
            or outputs[name].shape != values.shape
            or not distance(values, outputs[name].astype(np.float32, copy=False)) <= limit  # a NaN is foreign, too
            for name, values in self._expected[row].items()
        )


class Tally:
    """What came back under one load, from all threads."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._lock = threading.Lock()
        self._judged: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._began, self._cpu = time.monotonic(), time.process_time()

    def answered(self, row: int, client: Client, answer: Any) -> None:
        found = self._questions.judge(row, client, answer)
        with self._lock:
            self._judged[found] += 1

    def failed(self, error: BaseException) -> None:
        """Count a request without an answer.

        Raises:
            VggdeployError: it is one of many, and none was answered.
        """
        with self._lock:
            self._failures[first_line(error) if isinstance(error, VggdeployError) else _words(error)] += 1
            refused = sum(count for words, count in self._failures.items() if words.startswith("HTTP 503"))
            lost = self._failures.total() - refused
            hopeless = not self._judged and (lost >= _HOPELESS or refused >= _HOPELESS_REFUSED)
        if hopeless:
            raise VggdeployError(f"under load the server answers nothing: {self.words}", "see its log, or ask for less")

    @property
    def failures(self) -> int:
        return self._failures.total()

    @property
    def words(self) -> str:
        """How many requests had no answer, and the most frequent reason; empty where none."""
        if not self._failures:
            return ""
        ((most, count),) = self._failures.most_common(1)
        share = f"{self.failures:,} of {counted(self.failures + self._judged.total(), 'request')} had no answer"
        return f"{share}: {most}" + (f" ({count:,} of them)" if count < self.failures else "")

    @property
    def client_cores(self) -> float:
        return (time.process_time() - self._cpu) / max(time.monotonic() - self._began, 1e-9)

    @property
    def changed(self) -> int:
        return self._judged["changed"]

    @property
    def foreign(self) -> int:
        return self._judged["foreign"]

    @property
    def misplaced(self) -> int:
        return self._judged["misplaced"]


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def no_answer(target: Target, error: BaseException) -> VggdeployError:
    """The error of a server that cannot be reached."""
    return VggdeployError(
        f"nobody answers at {target.url}: {first_line(error)}",
        "start it: vggdeploy serve BUNDLE; or give another --url",
    )
