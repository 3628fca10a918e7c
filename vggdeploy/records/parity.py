"""What parity measured of a variant beside the FP32 PyTorch reference, and the verdict."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.types import Precision, Verdict


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
    """One variant against the FP32 PyTorch reference. Accuracies are fractions, or None without true labels.

    ``limits`` are those that the verdict was reached by, None in records older than this field. ``products`` are the
    convolutions and matrix products by the type they compute in, as the shipped file has them; empty where it was not
    read (an engine: what was read when it was built stands in its variant's proof).
    """

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
    limits: Thresholds | None = None
    products: dict[str, int] = {}


class Check(Record, frozen=True, kw_only=True):
    """Something about the bundle as a whole that was compared: ``what``, and what it was compared with (``against``)."""

    what: str
    against: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()


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


class FleetTarget(Record, frozen=True, kw_only=True):
    """The golden pair on a target that is not this machine: one record for each variant, and no time of any.

    ``isa``: the instruction sets that the processor says it has, asked where the variants ran; ``tools``: the versions of
    what ran them. Both are empty where nothing could run.
    """

    target: str
    title: str
    isa: tuple[str, ...] = ()
    tools: dict[str, str] = {}
    variants: tuple[ParityRecord, ...] = ()


class ParityReport(Record, frozen=True, kw_only=True):
    """All variants of one bundle: what ``vggdeploy verify --json`` prints.

    ``notes`` say what was not looked at, and why; ``command`` is the line that made it.
    """

    schema_version: int = RESULT_VERSION
    bundle: str
    created: str
    variants: tuple[ParityRecord, ...]
    layers: tuple[LayerReport, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    fleet: tuple[FleetTarget, ...] = ()
    command: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the variants that ran, here or on a target, and of the checks; ``unproven`` only when no
        variant ran here."""
        ran = {record.verdict for record in self.variants}
        ran |= {Verdict.FAIL for target in self.fleet for record in target.variants if record.verdict is Verdict.FAIL}
        wrong = {check.verdict for check in self.checks} - {Verdict.PASS}
        found = ran | wrong
        order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.UNPROVEN)
        return next((v for v in order if v in found), Verdict.UNPROVEN)
