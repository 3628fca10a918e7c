"""What the process that runs `bench` and its workers tell each other: one line of JSON a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from vggdeploy.bench.loadgen.scenarios import Issued, Load
from vggdeploy.bench.remote.target import Target
from vggdeploy.records import HostTimes, LoadAnswers
from vggdeploy.types import Verdict


class StartRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message: where the pool of inputs lies, and what to compute with.

    ``pool`` is a path of a ``.npy`` file: of an open descriptor that the worker has inherited. ``pin`` are the CPUs to
    run on; empty for all that the parent may use.
    """

    pool: str
    threads: int | None = None
    pin: tuple[int, ...] = ()


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open a variant of a bundle, and answer one batch of each size. Later requests call it ``name``. ``threads``: where
    they are not those of the start."""

    name: str
    bundle: str
    variant: str
    device: str
    batches: tuple[int, ...]
    threads: int | None = None


class OpenReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``answered`` is the monotonic clock, in nanoseconds, at the first answer; ``peak_rss`` bytes after a batch of each
    size, None where the system does not tell; ``size`` the bytes of the variant's files."""

    load_ms: float
    first_ms: float
    answered: int
    peak_rss: int | None
    proof_ms: float | None = None
    sha256: str
    size: int
    threads: int


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make an open variant ready for turns; run the golden pair through it first, where ``golden``."""

    name: str
    golden: bool = True


class CheckReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``reasons`` only where the golden pair is missed here: then ``verdict`` is ``fail``. ``answers``: of each batch size
    the first output for the first image; two processes have to agree on them within ``tolerance`` (relative L2)."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    answers: tuple[tuple[float, ...], ...] = ()
    tolerance: float = 0.0


class TurnRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure a variant at one batch size for some seconds. ``ours`` are the process ids of this measurement."""

    name: str
    batch: int
    seconds: float
    ours: tuple[int, ...] = ()


class TurnReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The calls of one turn, and what else was seen while they ran.

    ``others`` is the share of the cores that other processes used, ``cpu_seconds`` what this one used on all of them,
    ``megahertz`` the fastest core at the end; None where the system does not tell. ``slowed`` and ``gpu_others`` are
    NVML's reasons and processes; ``not_checked`` says what could not be looked at.
    """

    nanoseconds: tuple[int, ...]
    cpu_seconds: float
    others: float | None = None
    joules: float | None = None
    megahertz: float | None = None
    slowed: tuple[str, ...] = ()
    gpu_others: float | None = None
    not_checked: tuple[str, ...] = ()


def joined(parts: Sequence[TurnReply]) -> TurnReply:
    """One turn of the laps that it was taken in."""

    def mean(shares: list[float | None]) -> float | None:
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if len(known) == len(shares) else None

    joules = [part.joules for part in parts]
    return TurnReply(
        nanoseconds=tuple(ns for part in parts for ns in part.nanoseconds),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
        others=mean([part.others for part in parts]),
        joules=None if None in joules else sum(j for j in joules if j is not None),
        megahertz=mean([part.megahertz for part in parts]),
        slowed=tuple(dict.fromkeys(reason for part in parts for reason in part.slowed)),
        gpu_others=mean([part.gpu_others for part in parts]),
        not_checked=tuple(dict.fromkeys(text for part in parts for text in part.not_checked)),
    )


class FinishRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Check the outputs once more, and take a call of the engine apart for some seconds (0: do not)."""

    name: str
    batch: int
    seconds: float


class FinishReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``wrong`` says which outputs are others than before; such a variant fails."""

    wrong: tuple[str, ...] = ()
    host: HostTimes | None = None


class GaugeRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How many samples a second does a variant answer when it does nothing else?"""

    name: str
    batch: int


class GaugeReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    qps: float


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have LoadGen issue a load, on distinct samples or on a repeated one. The answer is `Issued`."""

    name: str
    load: Load
    samples: Literal["unique", "same"]


class AnswersRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have LoadGen ask every image under a load, and check what comes back."""

    name: str
    load: Load


class AnswersReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    answers: LoadAnswers


class SurveyRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask a server the whole pool, ``batch`` images a request, one after the other: later answers are held against these, as
    far as ``tolerance`` (relative L2). They are also held against those of the first of the ``variants`` of ``bundle`` that
    runs here."""

    target: Target
    batch: int
    tolerance: float
    bundle: str = ""
    variants: tuple[str, ...] = ()


class SurveyReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``local`` is the variant that answers are held against, empty where none ran here; of the ``requests`` so many were
    answered otherwise (``foreign``)."""

    requests: int
    local: str = ""
    foreign: int = 0


class ServerLoadRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Put a surveyed server under load: LoadGen's ``load`` over ``connections`` connections, or ``connections`` callers that
    each wait for their answer, for ``seconds``."""

    connections: int
    seconds: float = 0.0
    load: Load | None = None


class ServerLoadReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``issued`` counts requests. Of the answers, ``misplaced`` are those of other images, ``changed`` others than without
    load, and ``foreign`` the same as without load, but others than the bundle's own.
    ``client_cores`` is what asking took itself, in cores; ``windows`` the requests a second of each part of the time.
    """

    issued: Issued
    failed: int
    misplaced: int
    changed: int
    foreign: int
    client_cores: float
    windows: tuple[float, ...] = ()


class FailureReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An error instead of an answer: its class in `vggdeploy.errors`, cause and remedy. ``trace`` is for ``--debug``."""

    kind: str
    cause: str
    hint: str
    trace: str


Request = (
    StartRequest
    | OpenRequest
    | CheckRequest
    | TurnRequest
    | FinishRequest
    | GaugeRequest
    | LoadRequest
    | AnswersRequest
    | SurveyRequest
    | ServerLoadRequest
)
Answer = (
    OpenReply
    | CheckReply
    | TurnReply
    | FinishReply
    | GaugeReply
    | Issued
    | AnswersReply
    | SurveyReply
    | ServerLoadReply
    | FailureReply
)
