"""The images that a bundle is proven and measured on: of a data set, of the golden pair, or synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggdeploy.bundle import Bundle, Manifest
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.data.specs import match_classes
from vggdeploy.errors import DataError, MissingDependencyError, UsageError, counted
from vggdeploy.parity.reference import Rows, sample_bytes
from vggdeploy.preprocess import normalise
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import ImageSource

if TYPE_CHECKING:
    from vggdeploy.data.loaders import Images

DEFAULT_SAMPLES = 1000
GOLDEN_IMAGES = 32
GOLDEN_BYTES = 4 * 2**20  # of inputs
GOLDEN_OUTPUT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Samples:
    """Images to prove on, as the graph wants them; the model's class of each where known; how a record names them.

    ``note`` says how data set and model were matched, where their names do not say it. ``dataset`` and ``classes`` are
    the data set's own name and names.
    """

    images: Rows
    labels: NDArray[np.int64] | None
    data: str
    note: str = ""
    dataset: str = ""
    classes: tuple[str, ...] = ()
    source: ImageSource = ImageSource.REAL


@dataclass(frozen=True)
class PreparedImages:
    """Images of a split, prepared whenever they are asked for, and as the graph wants them."""

    split: Images
    preprocess: PreprocessSpec
    dtype: str

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        pixels = self.split.batch(np.arange(*rows.indices(len(self.split))))
        return pixels if self.dtype == "uint8" else normalise(pixels, self.preprocess)


def open_samples(
    dataset: str, about: Manifest | Checkpoint, *, limit: int | None, data_dir: Path | None, dtype: str = "uint8"
) -> Samples:
    """Test images of a data set, prepared as the model's preprocessing says, a batch at a time.

    Args:
        limit: only the first so many, which are a random sample; None for all.
        dtype: the graph's input: pixels (``uint8``), or normalised (``float32``).

    Raises:
        DataError: no data set is known for this model, or it cannot be found.
        UsageError: its classes are not the model's, or a limit below 1.
    """
    from vggdeploy.data.loaders import open_split

    if not dataset:
        raise DataError("no data set is known for this model", "name one: --data digits")
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} samples were asked for", "give at least 1, for example --samples 1000")
    split: Images = open_split(dataset, "test", about.preprocess, data_dir=data_dir, memory=0)
    split = split.take(np.arange(len(split))[:limit])
    labels, note = None, ""
    if about.spec.classes:  # else what an image shows is nothing that the model says
        labels, note = match_classes(
            split.labels, split.classes, about.labels, about.spec.classes, data=dataset, option="--data"
        )
    note = "; ".join(filter(None, (note, split.left_out)))
    images = PreparedImages(split, about.preprocess, dtype)
    return Samples(images, labels, f"{split.name} test ({counted(len(split), 'image')})", note, dataset, split.classes)


def samples_or_synthetic(
    checkpoint: Checkpoint, limit: int | None, data_dir: Path | None, *, dtype: str = "uint8"
) -> tuple[Samples, str]:
    """Real test images; where there are none, synthetic ones and the sentence that says so."""
    try:
        real = open_samples(checkpoint.dataset, checkpoint, limit=limit, data_dir=data_dir, dtype=dtype)
        return real, real.note
    except (DataError, MissingDependencyError) as error:
        images = synthetic_images(golden_count(checkpoint), checkpoint.preprocess)
        wanted = images if dtype == "uint8" else normalise(images, checkpoint.preprocess)
        made = Samples(wanted, None, "synthetic", source=ImageSource.SYNTHETIC)
        return made, f"proven on synthetic images only: {error.cause}"


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


@dataclass(frozen=True)
class Pool:
    """Distinct inputs to measure on, in memory, as the graph wants them."""

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    data: str


def measuring_pool(bundle: Bundle, data: str, limit: int, data_dir: Path | None) -> Pool:
    """Real test images where there are any, else the golden ones."""
    manifest = bundle.manifest
    try:
        dtype = manifest.input.dtype
        real = open_samples(data or manifest.dataset, manifest, limit=limit, data_dir=data_dir, dtype=dtype)
        return Pool(real.images[:], real.labels, real.data)
    except (DataError, MissingDependencyError):
        if data:  # asked for by name: then nothing else will do
            raise
        inputs, _ = bundle.golden()
        images = inputs[manifest.input.name]
        return Pool(images, None, f"golden pair ({counted(len(images), 'image')})")


def synthetic_images(count: int, spec: PreprocessSpec, *, seed: int = 0) -> NDArray[np.uint8]:
    """``uint8 [count, crop, crop, channels]``: coarse random colours, smoothly enlarged, with fine noise on top.

    Plain noise would do as input, and excites few of the channels that pictures excite.
    """
    random = np.random.Generator(np.random.PCG64(seed))  # the stream of PCG64 is fixed by NumPy's policy
    size, channels = spec.crop, spec.channels
    images = np.empty((count, size, size, channels), np.uint8)
    for image in images:
        cells = int(random.integers(2, 9))
        for channel in range(channels):
            coarse = Image.fromarray(random.integers(0, 256, (cells, cells), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
            noise = random.integers(-16, 17, (size, size), dtype=np.int16)
            image[..., channel] = np.clip(smooth + noise, 0, 255)
    return images
