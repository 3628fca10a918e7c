"""The directory of a detector: one ONNX file, its default boxes, its golden images and answers, and what was proven of it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import msgspec

from vggdeploy.bundle.manifest import FileRecord
from vggdeploy.bundle.variant import Sha256
from vggdeploy.errors import BundleError, IntegrityError, counted
from vggdeploy.records import ParityRecord, Record, from_json
from vggdeploy.spec import MAX_CLASSES, MAX_SIDE, PreprocessSpec
from vggdeploy.system.files import read_regular, safe_join
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, TensorSpec, Verdict

DETECTOR_NAME = "detector.json"
MODEL, ANCHORS, IMAGES, OFFSETS, LOGITS = "model.onnx", "anchors.npy", "images.npy", "offsets.npy", "logits.npy"
SCHEMA_VERSION = 1
_MAX_BYTES = 16 * 2**20
_MAX_ANCHORS = 2**20
_AGAIN = "restore it from its source, or export it again"


class BoxParity(Record, frozen=True, kw_only=True):
    """The boxes of the shipped file beside those of torchvision, for the golden images that are not all black or white.

    ``reference`` and ``candidate`` count them; ``matched`` are torchvision's that have a box of the same class with the same
    corners, to a tenth of a pixel; ``max_score`` is how far the scores of such a pair differ at most.
    """

    reference: int
    candidate: int
    matched: int
    max_score: float


class DetectorManifest(Record, frozen=True, kw_only=True):
    """The whole of ``detector.json``. ``labels``: class names without the background, whose index is 0.

    ``boxes``: what NumPy and torchvision make of the same numbers of the heads. ``from_pixels``: beside torchvision's whole
    forward pass, from pixels on.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    anchors: Annotated[int, msgspec.Meta(ge=1, le=_MAX_ANCHORS)]
    weights: tuple[float, float, float, float]
    score_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    nms_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    candidates: Annotated[int, msgspec.Meta(ge=1)]
    most: Annotated[int, msgspec.Meta(ge=1)]
    batch: BatchRange
    parity: ParityRecord
    boxes: BoxParity
    from_pixels: BoxParity
    reference_sha256: Sha256
    tools: dict[str, str] = {}
    files: tuple[FileRecord, ...] = ()

    @property
    def input(self) -> TensorSpec:
        side = self.preprocess.crop
        return TensorSpec("image", "uint8", ("N", side, side, self.preprocess.channels))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        classes = len(self.labels) + 1
        return (
            TensorSpec("offsets", "float32", ("N", self.anchors, 4)),
            TensorSpec("logits", "float32", ("N", self.anchors, classes)),
        )


def read_detector(path: str | os.PathLike[str]) -> tuple[DetectorManifest, dict[str, HashedFile]]:
    """The manifest, and its files by name: each is compared with its hash when it is read.

    Raises:
        BundleError: no detector there, or a manifest that cannot be read or makes no sense.
        IntegrityError: a file without a hash, or outside the directory. ParityError is never raised: a verdict that is no pass
            is a BundleError.
    """
    root = Path(path)
    try:
        data = read_regular(root / DETECTOR_NAME, limit=_MAX_BYTES)
    except OSError as error:
        raise BundleError(
            f"{root} is no detector: {DETECTOR_NAME} cannot be read ({error.strerror})",
            "make one with vggdeploy.export.detector.export_detector",
        ) from error
    manifest = from_json(data, DetectorManifest, what=f"{root}/{DETECTOR_NAME}")
    _check(manifest, root)
    files = {r.path: HashedFile(safe_join(root, r.path), r.sha256, r.size) for r in manifest.files}
    missing = sorted({MODEL, ANCHORS, IMAGES, OFFSETS, LOGITS} - files.keys())
    if missing:
        raise IntegrityError(f"{root}/{DETECTOR_NAME} has no hash for {', '.join(missing)}", _AGAIN)
    return manifest, files


def _check(manifest: DetectorManifest, root: Path) -> None:
    def check(holds: bool, cause: str) -> None:
        if not holds:
            raise BundleError(f"{root}/{DETECTOR_NAME} {cause}", _AGAIN)

    version = manifest.schema_version
    check(version == SCHEMA_VERSION, f"has schema version {version}; this vggdeploy reads version {SCHEMA_VERSION}")
    check(1 <= len(manifest.labels) < MAX_CLASSES, f"has {counted(len(manifest.labels), 'label')}")
    check(manifest.preprocess.resize == manifest.preprocess.crop <= MAX_SIDE, "crops, which a detector does not")
    check(all(math.isfinite(w) and w > 0 for w in manifest.weights), "has weights of boxes that are not above 0")
    check(manifest.parity.verdict is Verdict.PASS, f"was not proven: {'; '.join(manifest.parity.reasons)}")
    model = [r.sha256 for r in manifest.files if r.path == MODEL]
    check(model == [manifest.parity.sha256], "has a proof of other bytes than those of its file")
    check(len({r.path for r in manifest.files}) == len(manifest.files), "lists a file twice")
