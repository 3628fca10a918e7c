"""What was measured and what was concluded, as frozen records with JSON both ways."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from vggdeploy.errors import BundleError, UsageError
from vggdeploy.optional import first_line
from vggdeploy.types import Precision, Verdict

SCHEMA_VERSION = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every record: immutable, and an unknown field is an error. (``kw_only`` is not inherited.)"""


class Thresholds(Record, frozen=True, kw_only=True):
    """How far a variant of one precision may stand from the FP32 reference.

    ``relative_l2``: ‖candidate − reference‖₂ / ‖reference‖₂ over all samples of an output, at most this.
    ``cosine``: the smallest per-sample cosine similarity, at least this.
    ``flip_rate``: share of samples whose top-1 class may change; judged by its 95% Clopper–Pearson bounds.
    ``accuracy_drop``: how much lower the task accuracy may be, as a fraction; judged by its 95% paired bounds, and only
    where it is asked for: half a point takes more than a thousand labelled images to promise.
    """

    relative_l2: float
    cosine: float
    flip_rate: float
    accuracy_drop: float | None = None


# FP32 engines differ by summation order only; FP16 carries 11 significand bits through up to 19 layers; INT8 carries 8.
DEFAULT_THRESHOLDS: dict[str, Thresholds] = {
    Precision.FP32: Thresholds(relative_l2=1e-4, cosine=0.99999, flip_rate=0.01),
    Precision.FP16: Thresholds(relative_l2=1e-2, cosine=0.9995, flip_rate=0.01),
    Precision.BF16: Thresholds(relative_l2=5e-2, cosine=0.997, flip_rate=0.02),
    Precision.INT8: Thresholds(relative_l2=2e-1, cosine=0.97, flip_rate=0.03),
}


class OutputParity(Record, frozen=True, kw_only=True):
    """How one output of a variant compares with the reference over ``samples`` samples.

    ``snr_db`` is the reference's energy over the error's, in decibels; None without any error. ``tolerance`` is the
    smallest t for which |candidate − reference| ≤ t + t·|reference| holds everywhere (NumPy's allclose, both at t).
    """

    output: str
    samples: int
    max_abs: float
    mean_abs: float
    relative_l2: float
    cosine_min: float
    cosine_mean: float
    snr_db: float | None = None
    tolerance: float | None = None


class FlipCount(Record, frozen=True, kw_only=True):
    """Samples whose top-1 class changed, with one-sided 95% Clopper–Pearson bounds of the rate."""

    flips: int
    samples: int
    lower: float
    upper: float


class AccuracyDrop(Record, frozen=True, kw_only=True):
    """Task accuracy of both on the same labelled samples, as a difference of paired proportions (fractions).

    ``lost``: samples that only the reference got right; ``won``: only the candidate. ``drop`` is reference − candidate,
    with one-sided 95% bounds (Bonett & Price 2012); ``p_value`` is McNemar's exact test that neither is better.
    """

    lost: int
    won: int
    samples: int
    drop: float
    lower: float
    upper: float
    p_value: float


class ParityRecord(Record, frozen=True, kw_only=True):
    """One variant against the FP32 PyTorch reference. Accuracies are fractions, or None without true labels."""

    variant: str
    backend: str
    device: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    data: str = ""
    outputs: tuple[OutputParity, ...] = ()
    flips: FlipCount | None = None
    top5_flips: FlipCount | None = None
    drop: AccuracyDrop | None = None
    reference_accuracy: float | None = None
    candidate_accuracy: float | None = None
    sha256: str = ""
    tools: dict[str, str] = {}


class LayerParity(Record, frozen=True, kw_only=True):
    """One layer of a variant beside the reference's. ``largest`` is the reference's largest magnitude."""

    layer: str
    relative_l2: float
    max_abs: float
    cosine_min: float
    largest: float
    finite: bool


class LayerReport(Record, frozen=True, kw_only=True):
    """Where a variant's error comes from: its layers in order, and the first whose error jumps (None: none does)."""

    variant: str
    precision: Precision
    layers: tuple[LayerParity, ...]
    culprit: str | None
    reason: str


class ParityReport(Record, frozen=True, kw_only=True):
    """All variants of one bundle: what ``vggdeploy verify --json`` prints."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    created: str
    variants: tuple[ParityRecord, ...]
    layers: tuple[LayerReport, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the variants that ran here; ``unproven`` only when none ran."""
        found = {record.verdict for record in self.variants}
        order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.UNPROVEN)
        return next((v for v in order if v in found), Verdict.UNPROVEN)


class Machine(Record, frozen=True, kw_only=True):
    """Where a measurement was taken."""

    cpu: str
    cores: int
    memory_gib: float
    features: tuple[str, ...]
    system: str
    python: str
    gpu: str | None = None


class BenchRow(Record, frozen=True, kw_only=True):
    """One variant at one batch size. Times are milliseconds a batch, None where too few calls lie beyond the percentile.

    ``ratio`` is speed against the baseline at the same batch (above 1 is faster), with a 95% bootstrap interval over
    interleaved rounds. ``valid`` is False with ``reasons`` when something else than the variant was measured.
    """

    variant: str
    backend: str
    device: str
    batch: int
    rounds: int
    calls: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    images_per_second: float
    load_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: Verdict
    valid: bool
    reasons: tuple[str, ...] = ()
    sha256: str = ""


class ScenarioRow(Record, frozen=True, kw_only=True):
    """One variant under one of LoadGen's scenarios. Latencies are milliseconds a query.

    ``estimate_ms`` is LoadGen's early-stopping estimate (p90 of single_stream, p99 of multi_stream), None where too few
    queries ran; ``unique_over_same`` the median on distinct samples over that on one repeated sample.
    """

    variant: str
    backend: str
    device: str
    scenario: str
    queries: int
    batch: int
    target_qps: float | None
    latency_bound_ms: float | None
    samples_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    estimate_ms: float | None
    unique_over_same: float | None
    verdict: Verdict
    valid: bool
    reasons: tuple[str, ...] = ()
    sha256: str = ""


class BenchReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy bench --json`` prints."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    created: str
    machine: Machine
    threads: int
    data: str
    baseline: str
    rows: tuple[BenchRow, ...]
    scenarios: tuple[ScenarioRow, ...] = ()
    tools: dict[str, str] = {}


R = TypeVar("R")


def to_json(record: Any) -> bytes:
    """Indented UTF-8 JSON with a final newline.

    Raises:
        BundleError: a NaN or infinity is in it; JSON has neither, and null would read back as something else.
    """
    _refuse_non_finite(msgspec.to_builtins(record))
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=2) + b"\n"


def _refuse_non_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"{value} cannot be written as JSON", "find what was measured as that: run with --debug")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in inside:
        _refuse_non_finite(part)


def from_json(data: bytes, kind: type[R], *, what: str) -> R:
    """Decode and validate; ``what`` names the document in the error.

    Raises:
        BundleError: not JSON, cut short, or not of the schema.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError, UsageError) as error:
        cause = error.cause if isinstance(error, UsageError) else first_line(error)
        raise BundleError(f"{what} cannot be read: {cause}", "restore it from its source") from error
