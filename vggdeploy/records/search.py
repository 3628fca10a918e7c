"""What a search for the fastest variant tried, and what it found."""

from __future__ import annotations

from vggdeploy.records.base import SCHEMA_VERSION, Record
from vggdeploy.records.bench import CpuRoof, Machine
from vggdeploy.records.parity import AccuracyDrop
from vggdeploy.types import Precision


class Goal(Record, frozen=True, kw_only=True):
    """What is asked for.

    ``accuracy_drop``: how much of the original's accuracy may be lost, as a fraction; the one-sided 95% upper bound of
    the paired drop on the validation split has to stay at or below it. ``latency_ms``: the median of a batch of one image.
    ``size_mb``: of the variant's file, in 10⁶ bytes. ``target``: ``cpu``, or an engine's library and its GPU,
    ``tensorrt-rtx:sm89``.
    """

    accuracy_drop: float
    latency_ms: float | None = None
    size_mb: float | None = None
    target: str = "cpu"


class Point(Record, frozen=True, kw_only=True):
    """What the search chooses for a trial.

    ``keep`` is the share of the multiply-accumulates that stays, ``hidden`` that of the widths of fc6 and fc7. ``lr`` is the
    learning rate of the fine-tuning, ``teacher`` the weight of the original's answers in its loss; the rest is the labels'.
    """

    keep: float
    hidden: float
    lr: float
    teacher: float


class Trial(Record, frozen=True, kw_only=True):
    """One network that was looked at.

    ``quantisation_aware``: whether it was fine-tuned once more with INT8's rounding, as INT8 had missed the goal. ``cost`` is
    `vggdeploy.search.goals.cost`. ``drop`` is that of its FP32 model on the validation split; None with the
    reason in ``skipped`` where it was not fine-tuned.
    """

    number: int
    point: Point
    widths: dict[str, int]
    macs: int
    parameters: int
    cost: float
    quantisation_aware: bool = False
    drop: AccuracyDrop | None = None
    skipped: str = ""
    seconds: float = 0.0


class Candidate(Record, frozen=True, kw_only=True):
    """One variant of one trial's network.

    ``drop`` is its own on the validation split, which decides; ``test_drop`` on the test split, which is only reported,
    and only of what was chosen. ``latency_ms`` is the median of a batch of one, ``ratio`` how many times faster that is
    than the original in FP32 on plain ONNX Runtime, measured in turns with it; both None where it cannot run here.
    ``tera_ops`` are its operations, 10¹² a second, and ``roof_share`` is what that is of the roof of its precision.
    """

    trial: int
    variant: str
    backend: str
    precision: Precision
    threads: int
    bytes: int
    macs: int
    cost: float
    drop: AccuracyDrop
    latency_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    tera_ops: float | None = None
    roof_share: float | None = None
    misses: tuple[str, ...] = ()
    test_drop: AccuracyDrop | None = None


class SearchReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy search`` prints with ``--json``, and keeps in the bundle as ``search.json``.

    ``front`` holds the candidates that no other beats in accuracy, speed and size together, the fastest first; ``chosen``
    is the name of the winner's variant, of trial ``winner``; both None when nothing holds the goal. ``measured`` is
    False where the target is not this machine, and candidates are ranked by what they compute and move. ``roofs``: the
    fastest matrix product of each precision on this machine's CPUs.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    source_sha256: str
    bundle: str
    created: str
    machine: Machine
    goal: Goal
    seed: int
    epochs: int
    measured: bool
    original_latency_ms: float | None
    original_bytes: int
    trials: tuple[Trial, ...]
    front: tuple[Candidate, ...]
    winner: int | None = None
    chosen: str | None = None
    reason: str = ""
    interrupted: bool = False
    roofs: tuple[CpuRoof, ...] = ()
    tools: dict[str, str] = {}
    command: str = ""

    def chose(self, one: Candidate) -> bool:
        """Whether this candidate is the winner."""
        return (one.trial, one.variant) == (self.winner, self.chosen)


class Size(Record, frozen=True, kw_only=True):
    """Trainable parameters, multiply-accumulates for one image, bytes of the FP32 weights' file."""

    parameters: int
    macs: int
    bytes: int


class OriginalNetwork(Record, frozen=True, kw_only=True):
    """The network that was trained, before any step changed its structure.

    ``sha256`` is its weights'. ``accuracy`` is that on each split of ``dataset``. ``hits`` say which images it had right:
    Base64 of NumPy's ``packbits``, in the split's own order. So the paired drop against it can be found where its weights
    are not.
    """

    sha256: str
    title: str
    size: Size
    dataset: str
    accuracy: dict[str, float]
    hits: dict[str, str]


class SparsityRecord(Record, frozen=True, kw_only=True):
    """The ``layers`` of one file whose weights are 2:4 (see `vggdeploy.model.formats.sparsity`); ``sha256`` names the file."""

    sha256: str
    layers: tuple[str, ...]


class StepRecord(Record, frozen=True, kw_only=True):
    """One change of structure with its fine-tuning. ``before`` is the checkpoint it was made from, of weights ``source``.

    ``accuracy`` and ``drop`` are by split, after fine-tuning; the drop is against the *origin*, not the step before.
    ``untuned`` is the accuracy on the validation split before fine-tuning. ``widths`` and ``ranks`` are those of the
    layers that were changed; ``sensitivity`` holds, for every layer, pairs of a width and how much the validation loss
    rises, in nats, when that layer alone has it. ``sparsity``: what is 2:4 in the weights that the step wrote.
    """

    step: str
    source: str
    before: Size
    after: Size
    untuned: float
    accuracy: dict[str, float]
    drop: dict[str, AccuracyDrop]
    widths: dict[str, int] = {}
    ranks: dict[str, int] = {}
    sparsity: SparsityRecord | None = None
    sensitivity: dict[str, tuple[tuple[int, float], ...]] = {}
    epochs: int = 0
    teacher: str = ""
    seconds: float = 0.0
