"""What became of a trained network when its structure was changed: what it was, and what each step cost."""

from __future__ import annotations

from vggdeploy.records.base import Record
from vggdeploy.records.parity import AccuracyDrop


class Size(Record, frozen=True, kw_only=True):
    """Trainable parameters, multiply-accumulates for one image, bytes of the FP32 weights' file."""

    parameters: int
    macs: int
    bytes: int


class Origin(Record, frozen=True, kw_only=True):
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


class StepRecord(Record, frozen=True, kw_only=True):
    """One change of structure with its fine-tuning. ``before`` is the checkpoint it was made from, of weights ``source``.

    ``accuracy`` and ``drop`` are by split, after fine-tuning; the drop is against the *origin*, not the step before.
    ``untuned`` is the accuracy on the validation split before fine-tuning. ``widths`` and ``ranks`` are those of the
    layers that were changed; ``sensitivity`` holds, for every layer, pairs of a width and how much the validation loss
    rises, in nats, when that layer alone has it.
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
    sensitivity: dict[str, tuple[tuple[int, float], ...]] = {}
    epochs: int = 0
    teacher: str = ""
    seconds: float = 0.0
