"""How well a model classifies, as records: what ``vggdeploy evaluate`` finds out and prints."""

from __future__ import annotations

from vggdeploy.errors import counted
from vggdeploy.records import RESULT_VERSION, Record

MATRIX_CLASSES = 100  # up to here a report holds the whole confusion matrix: ImageNet's would be a million numbers
LISTED_PAIRS = 20


class Rate(Record, frozen=True, kw_only=True):
    """``hits`` of ``samples``, with the two-sided 95% Clopper–Pearson interval of the rate."""

    hits: int
    samples: int
    rate: float
    lower: float
    upper: float


class ClassScore(Record, frozen=True, kw_only=True):
    """One class. ``images`` are of it, ``predicted`` were taken for it, ``correct`` are both.

    ``precision`` = correct / predicted, ``recall`` = correct / images, ``f1`` = 2 · correct / (images + predicted);
    None where that divides by zero.
    """

    index: int
    label: str
    images: int
    predicted: int
    correct: int
    precision: float | None
    recall: float | None
    f1: float | None


class Confusion(Record, frozen=True, kw_only=True):
    """``images`` of the class ``label`` that were taken for the class ``predicted``; both are class indices."""

    label: int
    predicted: int
    images: int


class EvaluationReport(Record, frozen=True, kw_only=True):
    """One variant on one split of a data set.

    ``top5`` is None with five classes or fewer, where it is always 1. ``loss`` is the mean cross-entropy in nats.
    ``calibration_error`` is the expected calibration error over 15 bins of equal width. ``balanced_accuracy`` and
    ``macro_f1`` are the means of recall and F1 over the classes that have images. ``confusion[i][j]`` counts the images
    of class i taken for class j, None with more than `MATRIX_CLASSES` classes; ``confused`` are the `LISTED_PAIRS` most
    frequent confusions. ``notes`` say what a reader has to know about the figures; ``command`` is the line that made
    the report.
    """

    schema_version: int = RESULT_VERSION
    target: str
    variant: str
    backend: str
    device: str
    sha256: str
    dataset: str
    split: str
    accuracy: Rate
    top5: Rate | None
    loss: float
    calibration_error: float
    balanced_accuracy: float
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    confused: tuple[Confusion, ...]
    notes: tuple[str, ...] = ()
    seconds: float
    created: str
    tools: dict[str, str] = {}
    command: str = ""

    @property
    def data(self) -> str:
        """The images, as other records name them."""
        return f"{self.dataset} {self.split} ({counted(self.accuracy.samples, 'image')})"
