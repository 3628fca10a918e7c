"""The images that a bundle is proven and measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggdeploy.bundle import Bundle, Manifest
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.errors import DataError, MissingDependencyError, UsageError
from vggdeploy.parity.compare import sample_bytes
from vggdeploy.parity.synthetic import synthetic_images
from vggdeploy.preprocess import normalise

DEFAULT_SAMPLES = 1000
SYNTHETIC = "synthetic"
GOLDEN_IMAGES = 32
GOLDEN_BYTES = 4 * 2**20  # of inputs
GOLDEN_OUTPUT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Samples:
    """Images to prove on: ``uint8 [N, H, W, C]``, labels where known, and how a record names them."""

    images: Any
    labels: Any
    data: str


def load_samples(dataset: str, about: Manifest | Checkpoint, *, limit: int | None, data_dir: Path | None) -> Samples:
    """Test images of a data set, prepared as the model's preprocessing says.

    Raises:
        DataError: no data set is known for this model, or it cannot be found.
        UsageError: its classes are not the model's.
    """
    from vggdeploy.data.loaders import load_split

    if not dataset:
        raise DataError("no data set is known for this model", "name one: --data digits")
    found = load_split(dataset, "test", about.preprocess, data_dir=data_dir, limit=limit)
    if len(found.classes) != about.spec.classes:
        raise UsageError(
            f"{dataset} has {len(found.classes)} classes, the model {about.spec.classes}",
            "name the data set that the model was trained on: --data",
        )
    return Samples(found.images, found.labels, f"{found.name} test ({len(found)} images)")


def samples_or_synthetic(checkpoint: Checkpoint, limit: int | None, data_dir: Path | None) -> tuple[Samples, str]:
    """Real test images; where there are none, synthetic ones and the sentence that says so."""
    try:
        return load_samples(checkpoint.dataset, checkpoint, limit=limit, data_dir=data_dir), ""
    except (DataError, MissingDependencyError) as error:
        images = synthetic_images(golden_count(checkpoint), checkpoint.preprocess)
        return Samples(images, None, SYNTHETIC), f"proven on synthetic images only: {error.cause}"


def golden_count(about: Checkpoint | Manifest) -> int:
    """How many images the golden pair holds: enough to tell, and small enough to travel in every bundle.

    Of large feature maps that is one image: millions of values, each of which has to be right.
    """
    count = max(2, min(GOLDEN_IMAGES, GOLDEN_BYTES // (about.preprocess.crop**2 * about.preprocess.channels)))
    if isinstance(about, Manifest):
        count = min(count, GOLDEN_OUTPUT_BYTES // sum(map(sample_bytes, about.outputs)))
    return max(1, count)


def to_input(images: Any, manifest: Manifest) -> Any:
    """Prepared ``uint8 [N, H, W, C]`` images as the graph's input wants them."""
    return images if manifest.input.dtype == "uint8" else normalise(images, manifest.preprocess)


def measuring_pool(bundle: Bundle, data: str, limit: int, data_dir: Path | None) -> Samples:
    """Distinct inputs to measure on: real test images where there are any, else the golden ones. As the graph wants
    them."""
    manifest = bundle.manifest
    try:
        found = load_samples(data or manifest.dataset, manifest, limit=limit, data_dir=data_dir)
        return Samples(to_input(found.images, manifest), found.labels, found.data)
    except (DataError, MissingDependencyError):
        if data:  # asked for by name: then nothing else will do
            raise
        inputs, _ = bundle.golden()
        images = inputs[manifest.input.name]
        return Samples(images, None, f"golden pair ({len(images)} images)")
