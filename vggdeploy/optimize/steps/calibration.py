"""The images that 8 bits are made with: some to measure ranges on, others to judge by. Never the test images of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggdeploy.bundle import Manifest
from vggdeploy.errors import DataError, UsageError, counted, unknown_name
from vggdeploy.verify.samples import Samples, to_input

MIN_IMAGES = 32  # fewer leave the tails of the ranges to chance
DEFAULT_IMAGES = 300  # NNCF's default; ranges hardly move beyond it
MAX_JUDGED = 5000
DEFAULT_PERCENTILE = 99.99  # of the values of an activation
INT8_TARGETS = ("cpu", "tensorrt")
NAMES = {"cpu": "onnx-int8", "tensorrt": "onnx-int8-symmetric", "fp8": "onnx-fp8"}


@dataclass(frozen=True)
class Int8Options:
    """``data``: a data set in place of the model's own. ``percentile`` belongs to that method. ``targets``: what is made:
    ``cpu`` (U8/S8) and ``tensorrt`` (symmetric S8/S8). ``max_drop``: how much accuracy may be lost, as a fraction."""

    data: str = ""
    images: int = DEFAULT_IMAGES
    method: str = "min-max"
    percentile: float | None = None
    targets: tuple[str, ...] = INT8_TARGETS
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in INT8_TARGETS:
                raise unknown_name("INT8 target", target, INT8_TARGETS)
        if not self.targets:
            raise UsageError("--int8-for names no runtime", f"name one or more of {','.join(INT8_TARGETS)}")
        if self.percentile is not None and self.method != "percentile":
            raise UsageError(f"the method {self.method} has no percentile", "give --calibration-method percentile, too")
        if self.percentile is not None and not 90 <= self.percentile <= 100:
            raise UsageError(f"the percentile is {self.percentile:g}", "give 90 to 100")
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise UsageError(f"the accuracy drop is {self.max_drop:.1%}", "give points above 0 and below 100")


@dataclass(frozen=True)
class CalibrationData:
    """``ranges``: training images; ``judged``: validation images with their labels. Both as the graph wants them."""

    ranges: Samples
    judged: Samples


def load_calibration(dataset: str, manifest: Manifest, *, images: int, data_dir: Path | None) -> CalibrationData:
    """Images of a data set, prepared as the model's preprocessing says, whatever their size and mode.

    Args:
        dataset: a name, or ``folder:PATH``; "" for the one that the model was trained on.
        images: of the training split, at random.

    Raises:
        UsageError: fewer than `MIN_IMAGES` are asked for; the data set's classes are not the model's.
        DataError: no data set is known, it cannot be read, it has too few images, or they are all of one class.
        InputError: an image that cannot be read; it is named.
    """
    from vggdeploy.data.loaders import load_split
    from vggdeploy.data.sources import get_dataset

    if images < MIN_IMAGES:
        raise UsageError(f"the number of calibration images cannot be {images}", f"give at least {MIN_IMAGES}")
    name = dataset or manifest.dataset
    if not name:
        raise DataError(
            "8 bits are calibrated on real images, and no data set is known for this model",
            "name one: --calibration-data folder:PATH",
        )
    classes = get_dataset(name).classes
    if len(classes) != manifest.spec.classes or (manifest.labels and set(classes) != set(manifest.labels)):
        raise UsageError(
            f"{name} has the classes {_some(classes)}, the model {_some(manifest.labels) or manifest.spec.classes}",
            "calibrate on what the model was trained for: --calibration-data",
        )
    train = load_split(name, "train", manifest.preprocess, data_dir=data_dir, limit=images)
    if len(train) < MIN_IMAGES:
        raise DataError(
            f"{name} has {len(train)} training images to calibrate on", f"give a data set with at least {MIN_IMAGES}"
        )
    seen = len(np.unique(train.labels))
    if seen < 2:
        raise DataError(
            f"all {len(train)} calibration images are {classes[int(train.labels[0])]}",
            "give images of every class: the ranges of what only the others excite would be wrong",
        )
    held = load_split(name, "validation", manifest.preprocess, data_dir=data_dir, limit=MAX_JUDGED)
    return CalibrationData(
        Samples(to_input(train.images, manifest), train.labels, f"{train.name} train ({counted(len(train), 'image')})"),
        Samples(
            to_input(held.images, manifest), held.labels, f"{held.name} validation ({counted(len(held), 'image')})"
        ),
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")
