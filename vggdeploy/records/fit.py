"""What ``vggdeploy fit`` tried on someone's pictures, and what it made of them."""

from __future__ import annotations

from enum import StrEnum

from vggdeploy.records.base import SCHEMA_VERSION, Record
from vggdeploy.records.bench import CpuRoof, Machine
from vggdeploy.records.evaluation import Rate
from vggdeploy.records.parity import AccuracyDrop
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Precision, Verdict


class FitGoal(Record, frozen=True, kw_only=True):
    """What is asked for; at least one of them is given.

    ``accuracy_drop``: a fraction, below the teacher, or without one below the most accurate network that was trained.
    ``accuracy``: a fraction. Of both the 95% one-sided bound on the validation images has to hold. ``latency_ms``: the median
    of one image. ``bytes``: of the variant's file. With an accuracy goal the fastest that holds everything is wanted,
    otherwise the most accurate.
    """

    accuracy_drop: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    bytes: int | None = None

    @property
    def asks_accuracy(self) -> bool:
        return self.accuracy_drop is not None or self.accuracy is not None


class Start(StrEnum):
    """What a network's weights are before its first training: random; those of the teacher, which was made narrower; or those
    of a backbone, which stay (frozen) or learn, too (tuned), below a new head."""

    FRESH = "fresh"
    PRUNED = "pruned"
    FROZEN = "frozen"
    TUNED = "tuned"


class Shape(Record, frozen=True, kw_only=True):
    """What is chosen of a network but its width, which follows from the speed that it is to have.

    ``convs`` are the convolutions of every block but the first, which has ``first``; each block has ``growth`` times the
    channels of the one before it. ``head``: ``avg`` and ``max`` pool each channel and have one linear layer, ``flat`` flattens.
    ``teacher``: whether it learns from the teacher's answers, too. Where its ``start`` is not fresh, blocks, convolutions and
    head are those of the network that it begins from, whatever stands here.
    """

    image_size: int
    blocks: int
    first: int
    convs: int
    growth: float
    head: str
    augment: str
    lr: float
    teacher: bool = False
    start: Start = Start.FRESH


class MeasuredLatency(Record, frozen=True, kw_only=True):
    """The fastest variant of an architecture on this machine: a batch of one, median in milliseconds."""

    variant: str
    threads: int
    ms: float


class Rung(Record, frozen=True, kw_only=True):
    """A trial after one more training: ``epochs`` of it, and how many of the ``samples`` validation images are right.

    ``answers`` are the classes that the network gave, as `vggdeploy.fit.material.pack` packs them.
    """

    epochs: int
    hits: int
    samples: int
    seconds: float
    answers: str = ""


class FitTrial(Record, frozen=True, kw_only=True):
    """One network. ``band`` counts the steps of speed, 0 is the fastest; the one behind the slowest is that of a backbone,
    whatever its speed. ``ended`` says why it was not trained to the end."""

    number: int
    band: int
    shape: Shape
    spec: ModelSpec
    macs: int
    parameters: int
    latency: MeasuredLatency
    rungs: tuple[Rung, ...] = ()
    complete: bool = False
    ended: str = ""

    @property
    def accuracy(self) -> float:
        """On the validation images; 0 before the first training."""
        return self.rungs[-1].hits / max(self.rungs[-1].samples, 1) if self.rungs else 0.0


class FitVariant(Record, frozen=True, kw_only=True):
    """One shipped file of a trial's network: proven, measured in turns with the others, and judged on validation images.

    ``validation``: of a cross-validation it is the first fold's, on which the variant was run. ``drop`` and ``misses`` are
    those of all folds in FP32, and of the first alone where the variant rounds. ``latency_ms`` of the winner is of a second
    measurement, since the first, ``chosen_ms``, has chosen it. ``drop`` is against the network that an
    accuracy drop counts from; None where none is asked for. ``verdict`` is that of its proof: ``inconclusive`` with too few
    test images to tell.
    """

    trial: int
    variant: str
    backend: str
    precision: Precision
    threads: int
    latency_ms: float
    bytes: int
    validation: Rate
    verdict: Verdict
    drop: AccuracyDrop | None = None
    misses: tuple[str, ...] = ()
    chosen_ms: float | None = None


class FitRoof(Record, frozen=True, kw_only=True):
    """How near the winner comes to what this machine's CPUs can multiply, and what keeps it from more.

    ``tera_ops`` are its operations, 10¹² a second, a multiply-add counted as two. ``share`` is what that is of the roof of
    the precision that it computes in, with all threads, and ``int8_share`` of INT8's; None where that roof was not measured, or
    where more was reached than it (``limits`` says which). ``times``: of a call while its library timed each kernel, the share
    that multiplies, that is other layers, that converts and rearranges, and that is outside of the kernels; empty where the
    library does not time them. ``limits`` are sentences, the largest loss first.
    """

    tera_ops: float
    threads: int
    share: float | None = None
    int8_share: float | None = None
    roofs: tuple[CpuRoof, ...] = ()
    times: dict[str, float] = {}
    limits: tuple[str, ...] = ()


class FitOpponent(Record, frozen=True, kw_only=True):
    """Something else made of the same images in a budget of time, measured in turns with the fit's winner.

    ``latency_ms`` is the median of one image, by the fastest of the numbers of threads that were tried; ``ratio`` how many
    times faster the winner is, with a 95% interval. ``seconds`` is what its training took; 0 where it has that of another row.
    ``ours`` is the winner itself.
    """

    name: str
    latency_ms: float
    threads: int
    ratio: float
    ratio_low: float
    ratio_high: float
    test: Rate
    bytes: int | None = None
    seconds: float = 0.0
    ours: bool = False


class FitReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy fit`` prints with ``--json``, and keeps in the bundle as ``fit.json``.

    ``images`` counts those that trained and judged, and the ``duplicates`` that were left out because an equal image is
    a test image. ``folds``: above 1, ``validation`` is a cross-validation. ``frontier`` are the trials that no other beats in
    accuracy and latency, by number, the fastest first. ``variants`` are those of the networks that were exported.
    ``test`` is the winner's accuracy on the test images, which decided nothing and were asked once, or again by a fit that went
    on after its end, which ``notes`` then say. ``roof`` is None where the time did not suffice to measure it. ``opponents`` are
    there where a benchmark made some.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    bundle: str
    created: str
    machine: Machine
    goal: FitGoal
    seed: int
    recipe: str
    budget_seconds: float
    seconds: float
    images: dict[str, int]
    classes: tuple[str, ...]
    folds: int
    trials: tuple[FitTrial, ...]
    frontier: tuple[int, ...]
    variants: tuple[FitVariant, ...]
    winner: FitVariant
    test: Rate
    test_drop: AccuracyDrop | None = None
    roof: FitRoof | None = None
    opponents: tuple[FitOpponent, ...] = ()
    reached: bool = False
    reason: str = ""
    more_time: str = ""
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    tools: dict[str, str] = {}
    command: str = ""
