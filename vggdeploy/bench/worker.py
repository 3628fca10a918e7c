"""A process that measures the variants of one backend, and nothing else: ``python -m vggdeploy.bench.worker``.

It answers requests (`vggdeploy.bench.messages`), a line of JSON each, from stdin on stdout. It ends with its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bench.interference import peak_rss, wait_until_idle
from vggdeploy.bench.messages import (
    Answer,
    AnswersReply,
    AnswersRequest,
    CheckReply,
    CheckRequest,
    FailureReply,
    FinishReply,
    FinishRequest,
    GaugeReply,
    GaugeRequest,
    LoadRequest,
    OpenReply,
    OpenRequest,
    Request,
    ServerLoadRequest,
    StartRequest,
    SurveyReply,
    SurveyRequest,
    TurnReply,
    TurnRequest,
)
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.runtime import CheckedSession, open_session, runnable
from vggdeploy.runtime.sessions import depends_on_machine
from vggdeploy.system.ending import end_with_parent
from vggdeploy.system.machine import usable_cores
from vggdeploy.types import Device


@dataclass(frozen=True)
class _Opening:
    """A session that is open, and how it came about."""

    bundle: Bundle
    variant: Variant
    device: Device
    session: CheckedSession
    batches: tuple[int, ...]


class Desk:
    """Answers requests: the open sessions of one process, and their candidates by batch size."""

    def __init__(self, start: StartRequest) -> None:
        if start.pin:
            os.sched_setaffinity(0, start.pin)
        self._threads = start.threads
        self._images: Any = np.load(start.pool, mmap_mode="c", allow_pickle=False)  # torch refuses read-only ones
        self._stack = ExitStack()
        self._opened: dict[str, _Opening] = {}
        self._candidates: dict[tuple[str, int], Any] = {}
        self._questions: Any = None

    def answer(self, request: Request) -> Answer:
        match request:
            case OpenRequest():
                return self._open(request)
            case CheckRequest():
                return self._check(request)
            case TurnRequest():
                return self._turn(request)
            case FinishRequest():
                return self._finish(request)
            case GaugeRequest() | LoadRequest() | AnswersRequest():
                return self._load(request)
            case SurveyRequest() | ServerLoadRequest():
                return self._server(request)
        raise VggdeployError(f"{type(request).__name__} is no request to a worker that has started")

    def close(self) -> None:
        """Close every session: a library may save what it compiled."""
        self._stack.close()

    def _open(self, request: OpenRequest) -> OpenReply:
        bundle, device = Bundle.open(request.bundle, only=[request.variant]), Device.parse(request.device)
        variant = bundle.manifest.variant(request.variant)
        runnable(variant, device)  # imports the library: that is part of a cold start, and not of a load
        threads = request.threads or self._threads
        start = time.monotonic_ns()
        session = self._stack.enter_context(open_session(bundle, variant, device=device, threads=threads))
        ready = time.monotonic_ns()
        name = session.inputs[0].name
        session.run({name: self._images[: request.batches[0]]})
        answered = time.monotonic_ns()
        for batch in request.batches[1:]:
            session.run({name: self._images[:batch]})
        self._opened[request.name] = one = _Opening(bundle, variant, device, session, request.batches)
        return OpenReply(
            load_ms=(ready - start) / 1e6,
            first_ms=(answered - ready) / 1e6,
            answered=answered,
            peak_rss=peak_rss(),
            proof_ms=_proof_ms(one),
            sha256=bundle.sha256(variant.path),
            size=bundle.size(variant),
            threads=threads or usable_cores(),
        )

    def _check(self, request: CheckRequest) -> CheckReply:
        from vggdeploy.bench.candidates import Candidate, judge_golden  # here: it is no part of a cold start

        one = self._opened[request.name]
        verdict, reasons = one.variant.verdict, tuple[str, ...]()
        if request.golden:
            verdict, reasons = judge_golden(one.session, one.bundle, one.variant, one.device, one.batches)
        tolerance = one.bundle.manifest.limits(one.variant.precision).relative_l2
        for batch in one.batches:
            self._candidates[request.name, batch] = Candidate(one.session, self._images, batch, tolerance=tolerance)
        answers = tuple(self._candidates[request.name, batch].first_answer for batch in one.batches)
        return CheckReply(verdict=verdict, reasons=reasons, answers=answers, tolerance=tolerance)

    def _turn(self, request: TurnRequest) -> TurnReply:
        candidate, device = self._candidates[request.name, request.batch], self._opened[request.name].device
        if device.kind == "cpu":
            turned: TurnReply = candidate.turn(request.seconds)
            return turned
        from vggdeploy.bench.gpu.nvml import gpu_turn  # here: a CPU needs neither NVML nor CUDA

        return gpu_turn(candidate, request.seconds, device, request.ours)

    def _finish(self, request: FinishRequest) -> FinishReply:
        wrong = self._candidates[request.name, request.batch].repeat()
        if not request.seconds:
            return FinishReply(wrong=wrong)
        from vggdeploy.bench.host import MAX_IMAGES, encoded, host_times
        from vggdeploy.engine.engine import Engine
        from vggdeploy.engine.loading import OpenVariant

        one = self._opened[request.name]
        engine = Engine(OpenVariant(one.bundle, one.variant, one.session, one.device))
        files = encoded(self._images[:MAX_IMAGES], one.bundle.manifest.preprocess)
        return FinishReply(wrong=wrong, host=host_times(engine, files, request.batch, request.seconds))

    def _load(self, request: GaugeRequest | LoadRequest | AnswersRequest) -> Answer:
        from vggdeploy.bench.loadgen import answers, drive  # here: only scenarios need LoadGen
        from vggdeploy.parity.reference import golden_reference

        one, images = self._opened[request.name], np.asarray(self._images)
        match request:
            case GaugeRequest():
                return GaugeReply(qps=drive.capacity(one.session, images, request.batch))
            case LoadRequest():
                return drive.issue(one.session, images, request.load, request.samples)
            case AnswersRequest():
                thresholds = one.bundle.manifest.limits(one.variant.precision)
                golden = golden_reference(one.bundle)
                return AnswersReply(
                    answers=answers.check_answers(one.session, golden, images, request.load, thresholds)
                )

    def _server(self, request: SurveyRequest | ServerLoadRequest) -> Answer:
        from vggdeploy.bench.remote import callers, questions  # here: only a server's load needs a client

        if isinstance(request, SurveyRequest):
            images = np.asarray(self._images)
            local, expected = self._local(request, images)
            self._questions = questions.Questions(
                request.target, images, request.batch, request.tolerance, expected=expected
            )
            return SurveyReply(requests=len(self._questions), local=local, foreign=self._questions.foreign)
        if request.load is None:
            return callers.waiting(self._questions, request.connections, request.seconds)
        from vggdeploy.bench.remote import arrivals  # here: only arrivals need LoadGen

        return arrivals.arriving(self._questions, request.connections, request.load)

    def _local(self, request: SurveyRequest, images: NDArray[Any]) -> tuple[str, dict[str, NDArray[Any]]]:
        """The variant of the bundle that is asked here, too, and its answers to all images; none where none runs here."""
        if not request.variants:
            return "", {}
        from vggdeploy.parity.reference import run_all

        bundle = Bundle.open(request.bundle, only=request.variants)
        for variant in map(bundle.manifest.variant, request.variants):
            if runnable(variant).runs:
                with open_session(bundle, variant, threads=self._threads) as session:
                    parts = list(run_all(session, images))
                return variant.name, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return "", {}


def _proof_ms(one: _Opening) -> float | None:
    """What a load on a machine that the variant was not proven on takes for the golden pair; None where it runs none."""
    if not depends_on_machine(one.variant, one.device):
        return None
    from vggdeploy.parity.compare import prove_at_load  # here: it is no part of a cold start

    start = time.monotonic_ns()
    prove_at_load(one.session, one.bundle, one.variant, one.device)
    return (time.monotonic_ns() - start) / 1e6


def failed(error: BaseException) -> FailureReply:
    """An error as a message. What is no error of ours is a bug, and says so."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, VggdeployError):
        return FailureReply(kind=type(error).__name__, cause=error.cause, hint=error.hint, trace=trace)
    if isinstance(error, MemoryError):
        return FailureReply(
            kind="VggdeployError", cause="out of memory", hint="use a smaller batch or a larger machine", trace=trace
        )
    hint = "this is a bug: run again with --debug and report it"
    return FailureReply(kind="VggdeployError", cause=f"{type(error).__name__}: {error}", hint=hint, trace=trace)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end. An error is an answer too; after one in the start nothing can follow."""
    decoder, encoder = msgspec.json.Decoder(Request), msgspec.json.Encoder()
    desk: Desk | None = None
    try:
        for line in requests:
            try:
                request = decoder.decode(line)
                if isinstance(request, StartRequest):
                    desk = Desk(request)
                    continue
                if desk is None:
                    raise VggdeployError("a worker was asked before it was started")
                answer = desk.answer(request)
                wait_until_idle()  # the next turn may be another process's
            except Exception as error:  # whatever it is: the parent has to hear of it
                answer = failed(error)
            answers.write(encoder.encode(answer) + b"\n")
            answers.flush()
            if desk is None:
                return
    finally:
        if desk is not None:
            desk.close()


def main() -> None:
    """Set the streams aside, so that what a library prints is no answer, and serve."""
    end_with_parent(signal.SIGKILL)  # even in the middle of a call
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        serve(requests, answers)
    except BrokenPipeError:  # the parent has gone
        sys.exit(1)


if __name__ == "__main__":
    main()
