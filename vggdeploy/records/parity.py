"""What parity measured of a variant beside the FP32 PyTorch reference, and the verdict."""

from __future__ import annotations

from typing import Literal

import msgspec

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.types import ImageSource, Precision, Verdict


class Thresholds(Record, frozen=True, kw_only=True):
    """How far a variant of one precision may stand from the FP32 reference.

    ``relative_l2``: ‖candidate − reference‖₂ / ‖reference‖₂ over all samples of an output, at most this.
    ``cosine``: the smallest per-sample cosine similarity, at least this.
    ``flip_rate``: share of samples whose top-1 class may change; judged by its one-sided 95% bounds.
    ``accuracy_drop``: how much lower the task accuracy may be, as a fraction; judged by its one-sided 95% bounds,
    and only where it is asked for: half a point takes more than a thousand labelled images to promise.
    """

    relative_l2: float
    cosine: float
    flip_rate: float
    accuracy_drop: float | None = None

    def stricter(self, other: Thresholds) -> Thresholds:
        """Of each limit the stricter one of the two."""
        drops = [t.accuracy_drop for t in (self, other) if t.accuracy_drop is not None]
        return Thresholds(
            relative_l2=min(self.relative_l2, other.relative_l2),
            cosine=max(self.cosine, other.cosine),
            flip_rate=min(self.flip_rate, other.flip_rate),
            accuracy_drop=min(drops, default=None),
        )


# What the package accepts of each precision at most, whatever a manifest says; benchmarks/parity_power.py has the study.
# FP32 engines differ by summation order only; TF32 and FP16 carry 11 significand bits through up to 19 layers (random VGG-11
# to 19 come to 1e-3 in both); INT8 carries 8, FP8 4 (0.03 and 0.12 in the same networks).
CEILINGS: dict[str, Thresholds] = {
    Precision.FP32: Thresholds(relative_l2=1e-5, cosine=0.9999999, flip_rate=0.01),
    Precision.TF32: Thresholds(relative_l2=4e-3, cosine=0.9999, flip_rate=0.01),
    Precision.FP16: Thresholds(relative_l2=4e-3, cosine=0.9999, flip_rate=0.01),
    Precision.BF16: Thresholds(relative_l2=2e-2, cosine=0.999, flip_rate=0.02),
    Precision.FP8: Thresholds(relative_l2=2e-1, cosine=0.97, flip_rate=0.03),
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


class Distance(Record, frozen=True, kw_only=True):
    """How far an output stood from the reference when its variant was made: what later distances are measured against."""

    source: ImageSource
    output: str
    relative_l2: float


class BatchParity(Record, frozen=True, kw_only=True):
    """The golden images in batches of one size: how many calls, and the largest relative L2 distance of an output."""

    batch: int
    calls: int
    relative_l2: float


class Repeats(Record, frozen=True, kw_only=True):
    """One batch, asked for again and again, also from several threads at once: how often the answer was another.

    ``upper``: one-sided 95% Clopper–Pearson bound of the share of calls that are answered otherwise.
    """

    calls: int
    differing: int
    threads: int
    upper: float


class FlipCount(Record, frozen=True, kw_only=True):
    """Samples whose top-1 class changed, with one-sided 95% bounds of the rate.

    ``anytime``: the bounds hold however often more samples are looked at (by betting: Waudby-Smith & Ramdas 2024). Where it is
    false they are Clopper & Pearson's, for a single look: of records older than this field.
    """

    flips: int
    samples: int
    lower: float
    upper: float
    anytime: bool = False


class AccuracyDrop(Record, frozen=True, kw_only=True):
    """Task accuracy of both on the same labelled samples, as a difference of paired proportions (fractions).

    ``lost``: samples that only the reference got right; ``won``: only the candidate. ``drop`` is reference − candidate,
    with one-sided 95% bounds: ``anytime``, those that hold however often more samples are looked at (by betting), else those
    of Bonett & Price 2012 for a single look. ``p_value`` is McNemar's exact two-sided test, for a single look, that neither is
    better.
    """

    lost: int
    won: int
    samples: int
    drop: float
    lower: float
    upper: float
    p_value: float
    anytime: bool = False


class ParityRecord(Record, frozen=True, kw_only=True):
    """One variant against the FP32 PyTorch reference. Accuracies are fractions, or None without true labels.

    Two verdicts, and ``verdict``, the worse of them. ``numerical`` is of the outputs: their distances on the images that were
    looked at, the precision and the layers that were read back, and repeated calls; a handful of images decides it. ``bounds``
    is of what is promised for images that nobody looked at: changed top-1 classes, and the accuracy where a limit of it was
    asked for. It alone can be ``inconclusive``, and is None where no bound was judged: on the golden pair, and of networks
    without classes. A failure in a record older than these two fields is not told apart: both are None.

    ``limits`` are those that the verdict was reached by, None in records older than this field. ``products`` are the
    convolutions and matrix products by the type they compute in, as the shipped file has them; empty where it was not
    read (an engine: what was read when it was built stands in its variant's proof). ``batches``, ``stress`` (the images of
    that set) and ``repeats`` are what the golden pair's record has beside. ``host`` is what the answers depend on beside
    the bytes: the CPU and its instructions, the GPU and its driver, the library and its version.
    """

    variant: str
    backend: str
    device: str
    verdict: Verdict
    numerical: Verdict | None = None
    bounds: Verdict | None = None
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
    source: ImageSource = ImageSource.REAL
    batches: tuple[BatchParity, ...] = ()
    stress: tuple[OutputParity, ...] = ()
    repeats: Repeats | None = None
    host: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.numerical is None and self.bounds is None and self.verdict is not Verdict.FAIL:
            judged = self.source is ImageSource.REAL and (self.flips is not None or self._limits_drop)
            bounds = self.verdict if judged and self.verdict is not Verdict.UNPROVEN else None
            sure = Verdict.PASS if self.verdict is Verdict.INCONCLUSIVE else self.verdict
            if self.verdict is Verdict.INCONCLUSIVE:
                bounds = Verdict.INCONCLUSIVE
            msgspec.structs.force_setattr(self, "numerical", sure)
            msgspec.structs.force_setattr(self, "bounds", bounds)
        elif self.numerical is not None and self.verdict is not worse(self.numerical, self.bounds):
            raise ValueError(
                f"the verdict is {self.verdict}, of numerical parity {self.numerical} and bounds {self.bounds or 'not judged'}"
            )
        elif self.numerical is None and self.bounds is not None:
            raise ValueError("bounds are judged, and numerical parity is not")

    @property
    def _limits_drop(self) -> bool:
        return self.limits is not None and self.limits.accuracy_drop is not None

    def failed(self, reasons: tuple[str, ...]) -> ParityRecord:
        """The same as a failure of its numerical parity, with ``reasons`` in place of its own."""
        return msgspec.structs.replace(self, verdict=Verdict.FAIL, numerical=Verdict.FAIL, reasons=reasons)

    @property
    def distances(self) -> tuple[Distance, ...]:
        """What later proofs of the variant are measured against."""
        measured = [(self.source, o) for o in self.outputs] + [(ImageSource.STRESS, o) for o in self.stress]
        return tuple(Distance(source=s, output=o.output, relative_l2=o.relative_l2) for s, o in measured)


_WORST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNPROVEN, Verdict.PASS)


def worse(numerical: Verdict, bounds: Verdict | None) -> Verdict:
    """The verdict of a comparison: the worse of its two."""
    return next(v for v in _WORST if v in (numerical, bounds))


class Check(Record, frozen=True, kw_only=True):
    """Something about the bundle as a whole that was compared: ``what``, and what it was compared with (``against``)."""

    what: str
    against: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()


Evidence = Literal["structure", "weights", "output"]


class LayerParity(Record, frozen=True, kw_only=True):
    """One layer of a variant beside the reference's. ``largest`` is the reference's largest magnitude.

    ``isolated`` is the relative L2 distance of what the layer makes of the reference's input: its own error. The other
    distances are of what it makes of what the layers before it made. None where nothing of the reference's shape is made.
    """

    layer: str
    relative_l2: float | None
    max_abs: float | None
    cosine_min: float | None
    largest: float
    finite: bool
    isolated: float | None = None


class LayerReport(Record, frozen=True, kw_only=True):
    """Where a variant's error comes from: its layers in order, and the one at fault (None: none is).

    ``evidence`` says what differs: its ``structure`` (operations and their settings), its ``weights`` (or biases), or its
    ``output`` when it is run alone.
    """

    variant: str
    precision: Precision
    layers: tuple[LayerParity, ...]
    culprit: str | None
    reason: str
    evidence: tuple[Evidence, ...] = ()


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
        there = {record.verdict for target in self.fleet for record in target.variants}
        ran |= there - {Verdict.PASS, Verdict.UNPROVEN}
        wrong = {check.verdict for check in self.checks} - {Verdict.PASS}
        found = ran | wrong
        order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.UNPROVEN)
        return next((v for v in order if v in found), Verdict.UNPROVEN)
