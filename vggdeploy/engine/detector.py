"""An SSD in an application: boxes with labels from pictures, by ONNX Runtime and NumPy. Torch-free."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle.arrays import read_array
from vggdeploy.bundle.detector import ANCHORS, IMAGES, MODEL, DetectorManifest, read_detector
from vggdeploy.engine.boxes import Found, Rules, found
from vggdeploy.errors import ForeignModelError, ParityError, UsageError
from vggdeploy.model.formats.onnx import read_onnx_file
from vggdeploy.parity.judge import judge
from vggdeploy.parity.metrics import OutputStats
from vggdeploy.preprocess import ImageLike, squeeze
from vggdeploy.records import CEILINGS, OutputParity
from vggdeploy.runtime.base import CheckedSession, Source
from vggdeploy.runtime.registry import get_backend
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system import html
from vggdeploy.system.sealed import HashedFile, SealedFile
from vggdeploy.types import BatchRange, Precision, TensorSpec, Verdict

Array = NDArray[Any]
# What the graph of a VGG with an SSD's heads is made of; no operator that holds a graph of its own or reads a file.
OPERATORS = frozenset({
    "Add", "Cast", "Clip", "Concat", "Constant", "Conv", "Div", "Expand", "Flatten", "Gather", "MaxPool", "Max", "Mul", "Pow",
    "ReduceL2", "ReduceSum", "Relu", "Reshape", "Shape", "Slice", "Sqrt", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


class Detection(dict[str, Any]):
    """One box: the label, its class index, its score (0–1), and its corners x₁, y₁, x₂, y₂ in pixels of the picture given.

    A dictionary with these four keys, so that every JSON encoder takes it.
    """

    __slots__ = ()

    def __init__(self, label: str, index: int, score: float, box: tuple[float, float, float, float]) -> None:
        super().__init__(label=label, index=index, score=score, box=box)

    @property
    def label(self) -> str:
        return str(self["label"])

    @property
    def index(self) -> int:
        return int(self["index"])

    @property
    def score(self) -> float:
        return float(self["score"])

    @property
    def box(self) -> tuple[float, float, float, float]:
        left, top, right, bottom = self["box"]
        return left, top, right, bottom

    def __repr__(self) -> str:
        corners = ", ".join(f"{edge:.1f}" for edge in self.box)
        return f"Detection(label={self.label!r}, score={self.score:.4f}, box=({corners}))"


class Detections(list[Detection]):
    """The boxes of one picture, best first: a list, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows = ((d.label, f"{d.score:.2%}", *(f"{edge:.1f}" for edge in d.box)) for d in self)
        return html.table(("label", "score", "x₁", "y₁", "x₂", "y₂"), rows, left=(True, *[False] * 5))


class Detector:
    """An open detector. Made by `load_detector`; closed by ``close()`` or the end of its ``with`` block. Thread-safe."""

    def __init__(self, manifest: DetectorManifest, session: CheckedSession, anchors: NDArray[np.float32]) -> None:
        self.manifest = manifest
        self._session = session
        self.anchors = anchors
        self._rules = rules_of(manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Detector({self.manifest.name}: {len(self.manifest.labels)} classes)"

    def close(self) -> None:
        self._session.__exit__(None, None, None)

    def run(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """What the heads give of prepared images ``uint8 [N, side, side, C]``: ``offsets [N, A, 4]`` and ``logits``.

        Raises:
            InputError: another dtype or shape, an empty or too large batch.
        """
        return self._session.run({"image": images})

    def detect(self, image: ImageLike, *, score: float = 0.5) -> Detections:
        """The boxes of one picture whose score is ``score`` or more, best first.

        Args:
            image: a path, bytes, open file, PIL image or ``uint8`` array ``[H, W(, C)]``. It is squeezed to the network's
                square, as torchvision's SSD does it; boxes are in pixels of the picture given.

        Raises:
            InputError: an image that cannot be used.
            UsageError: a score outside 0…1.
        """
        if not 0 <= score <= 1:
            raise UsageError(f"the score cannot be {score}", "give 0 to 1")
        pixels, (width, height) = squeeze(image, self.manifest.preprocess)
        (one,) = self.boxes(pixels[None])
        side = self.manifest.preprocess.crop
        scale = np.array((width, height, width, height), np.float64) / side
        answers = Detections()
        for box, confidence, label in zip(one.boxes, one.scores.tolist(), one.classes.tolist(), strict=True):
            if confidence >= score:
                left, top, right, bottom = (box * scale).tolist()
                name = self.manifest.labels[label - 1]
                answers.append(Detection(name, label, confidence, (left, top, right, bottom)))
        return answers

    def boxes(self, images: NDArray[np.uint8]) -> list[Found]:
        """The boxes of prepared images, in pixels of the network's input, for each image. Raises as `run`."""
        outputs = self.run(images)
        side = self.manifest.preprocess.crop
        return [
            found(logits, offsets, self.anchors, (side, side), self._rules)
            for logits, offsets in zip(outputs["logits"], outputs["offsets"], strict=True)
        ]


def rules_of(manifest: DetectorManifest) -> Rules:
    return Rules(manifest.weights, manifest.score_threshold, manifest.nms_threshold, manifest.candidates, manifest.most)


def load_detector(path: str | os.PathLike[str], *, threads: int | None = None) -> Detector:
    """Open a detector that `vggdeploy.export.detector.export_detector` wrote, and repeat its golden images.

    Every file is compared with its SHA-256 before it is used, and the graph with what such graphs are made of before ONNX
    Runtime sees it.

    Raises:
        BundleError: no detector, or a damaged one. IntegrityError: bytes that are not the manifest's.
        ForeignModelError: the ONNX file holds something else than a VGG with the heads of an SSD.
        ParityError: on this machine the golden images get other answers.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    manifest, files = read_detector(path)
    anchors = read_array(files[ANCHORS], TensorSpec("anchors", "float32", ("N", 4)))
    session = open_session(files[MODEL], manifest.preprocess, manifest.outputs, manifest.batch, threads)
    session.__enter__()
    try:
        images = read_array(files[IMAGES], manifest.input)
        specs = manifest.outputs
        golden = {spec.name: read_array(files[f"{spec.name}.npy"], spec) for spec in specs}
        compared = distances(session, images, golden)
        judged = judge(compared, None, CEILINGS[Precision.FP32], golden=True)
        if judged.verdict is not Verdict.PASS or len(anchors) != manifest.anchors:
            cause = (
                "; ".join(judged.reasons) or f"it has {len(anchors)} default boxes, and {manifest.anchors} are named"
            )
            raise ParityError(f"{manifest.name} does not answer here as it was proven: {cause}", "export it again")
    except BaseException:
        session.__exit__(None, None, None)
        raise
    return Detector(manifest, session, anchors)


def open_session(
    file: HashedFile,
    preprocess: PreprocessSpec,
    outputs: tuple[TensorSpec, ...],
    batch: BatchRange,
    threads: int | None = None,
) -> CheckedSession:
    """A session of a detector's file on the CPU, not entered yet."""
    side = preprocess.crop
    source = Source(
        file=file,
        spec=ModelSpec.named("vgg16"),
        preprocess=preprocess,
        inputs=(TensorSpec("image", "uint8", ("N", side, side, preprocess.channels)),),
        outputs=outputs,
        batch=batch,
        threads=threads,
        refuse=check_graph,
    )
    return CheckedSession(get_backend("onnxruntime").load().SESSION(source), name=file.path.name, batch=batch)


def check_graph(file: SealedFile) -> None:
    """Raise a ForeignModelError for a graph that holds what no SSD of ours does."""
    model = read_onnx_file(memoryview(file.map()), file.name)
    foreign = {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.nodes} - OPERATORS
    strange = sorted(foreign) + model.others
    if strange:
        raise ForeignModelError(
            f"{file.name} is no detector of vggdeploy: it has {', '.join(strange[:3])}", "export it again"
        )


def distances(session: CheckedSession, images: Array, golden: dict[str, Array]) -> tuple[OutputParity, ...]:
    """How far the answers to the golden images stand from the reference's, in the batches that the session takes."""
    stats = {name: OutputStats(name) for name in golden}
    size = session.batch.opt
    for start in range(0, len(images), size):
        given = session.run({"image": images[start : start + size]})
        for name, one in stats.items():
            one.update(golden[name][start : start + size], given[name])
    return tuple(one.result() for one in stats.values())
