"""An SSD of torchvision as a directory that `vggdeploy.engine.detector` opens without torch, proven before it is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from numpy.typing import NDArray
from torchvision.models.detection.ssd import SSD

from vggdeploy.bundle.arrays import array_bytes
from vggdeploy.bundle.detector import (
    ANCHORS,
    DETECTOR_NAME,
    IMAGES,
    MODEL,
    BoxParity,
    DetectorManifest,
)
from vggdeploy.bundle.manifest import FileRecord
from vggdeploy.bundle.store import now
from vggdeploy.engine.boxes import Found, Rules, found
from vggdeploy.engine.detector import distances, open_session
from vggdeploy.errors import ParityError, UsageError, counted
from vggdeploy.export.onnx import export_onnx
from vggdeploy.model.detector_graph import DetectorGraph, default_boxes
from vggdeploy.parity.judge import judge
from vggdeploy.parity.stress import stress_images
from vggdeploy.records import CEILINGS, ParityRecord, to_json
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.files import atomic_directory, sha256_of
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, ImageSource, Precision, TensorSpec, Verdict

GOLDEN = 4  # of stress images, where no others are given: answers of 8,732 boxes are a megabyte an image
# The first of them are black and white: their boxes have equal scores all over, and which of those stays is chance.
EVEN = 2
SAME = 0.1  # pixels between the corners of two boxes that are one
# Of torchvision's boxes. Where a network is sure, many scores are 1 to the last bit, and torch.topk leaves open which of equal
# scores comes first, and with it which box stays: of an untrained SSD300 over 21 classes, 2 to 9 of 200.
MOST_LOST = 0.05


@dataclass(frozen=True)
class DetectorOptions:
    """``images``: golden images ``uint8 [N, side, side, C]`` beside the stress images. ``name``: default, the directory's."""

    images: NDArray[np.uint8] | None = None
    name: str = ""
    batch: BatchRange = field(default_factory=lambda: BatchRange(1, 1, 8))
    overwrite: bool = False


def export_detector(
    detector: SSD,
    output: str | os.PathLike[str],
    labels: Sequence[str],
    options: DetectorOptions = DetectorOptions(),
) -> DetectorManifest:
    """Write an SSD's ONNX file, its default boxes and its golden answers, once the file is proven.

    Proven is that ONNX Runtime, from the bytes that are shipped, gives the heads' raw numbers that PyTorch gives, within the
    limits of FP32; and that NumPy makes of these numbers the boxes that torchvision makes of them. How many boxes are the same
    from pixels on is recorded and not judged: where a network is unsure, a last bit decides which of two boxes stays.

    Args:
        detector: a trained `torchvision.models.detection.SSD`, such as ``ssd300_vgg16``, with a fixed square size.
        output: the directory.
        labels: class names by index from 1 on; the background, 0, has none.

    Raises:
        UsageError: no SSD, no square size, or another number of labels than the heads have classes.
        BuildError: the exporter refused the model.
        ParityError: the file does not compute what the model does; nothing is written.
    """
    preprocess = _preprocess_of(detector)
    classes = int(detector.head.classification_head.num_columns) - 1
    if len(labels) != classes:
        raise UsageError(
            f"{counted(len(labels), 'label')} given, and the heads tell {classes:,} classes apart",
            "give one for each class, without the background",
        )
    target = Path(output)
    was_training = detector.training
    detector.eval()
    try:
        with atomic_directory(target, marker=DETECTOR_NAME, overwrite=options.overwrite) as root:
            return _written(root, detector, preprocess, tuple(labels), options, name=options.name or target.name)
    finally:
        detector.train(was_training)


def _written(
    root: Path,
    detector: SSD,
    preprocess: PreprocessSpec,
    labels: tuple[str, ...],
    options: DetectorOptions,
    *,
    name: str,
) -> DetectorManifest:
    graph = DetectorGraph(detector, preprocess).eval()
    images = stress_images(preprocess, GOLDEN)
    if options.images is not None:
        images = np.concatenate([images, options.images])
    anchors = default_boxes(detector, preprocess).numpy()
    with torch.inference_mode():
        golden = {n: a.numpy() for n, a in zip(graph.names, graph(torch.from_numpy(images)), strict=True)}
    side = preprocess.crop
    image = TensorSpec("image", "uint8", ("N", side, side, preprocess.channels))
    export_onnx(graph, root / MODEL, image=image, batch=options.batch)
    for file, array in ((ANCHORS, anchors), (IMAGES, images), *((f"{n}.npy", a) for n, a in golden.items())):
        (root / file).write_bytes(array_bytes(array))
    outputs = tuple(TensorSpec(n, "float32", ("N", *a.shape[1:])) for n, a in golden.items())
    shipped = HashedFile.of(root / MODEL)
    rules = Rules(
        tuple(detector.box_coder.weights),
        detector.score_thresh,
        detector.nms_thresh,
        detector.topk_candidates,
        detector.detections_per_img,
    )
    with open_session(shipped, preprocess, outputs, options.batch) as session:
        compared = distances(session, images, golden)
        given = [session.run({"image": one[None]}) for one in images[EVEN:]]
    ours = [found(g["logits"][0], g["offsets"][0], anchors, (side, side), rules) for g in given]
    boxes = compare_boxes([torchvision_rules(detector, g, anchors) for g in given], ours)
    from_pixels = compare_boxes(torchvision_boxes(detector, images[EVEN:]), ours)
    judged = judge(compared, None, CEILINGS[Precision.FP32], golden=True)
    reasons = list(judged.reasons)
    lost = max(boxes.reference, boxes.candidate) - boxes.matched
    if lost > MOST_LOST * boxes.reference:
        reasons.append(
            f"{lost:,} of {boxes.reference:,} boxes are not those of torchvision; the limit is {MOST_LOST:.0%}"
        )
    if judged.verdict is not Verdict.PASS or reasons:
        raise ParityError(
            f"the exported detector is not the model: {'; '.join(reasons)}", "run with --debug and report it"
        )
    manifest = DetectorManifest(
        name=name,
        created=now(),
        preprocess=preprocess,
        labels=labels,
        anchors=len(anchors),
        weights=rules.weights,
        score_threshold=rules.score_threshold,
        nms_threshold=rules.nms_threshold,
        candidates=rules.candidates,
        most=rules.most,
        batch=options.batch,
        parity=ParityRecord(
            variant="onnx-fp32",
            backend="onnxruntime",
            device="cpu",
            verdict=judged.verdict,
            numerical=judged.numerical,
            bounds=judged.bounds,
            data=f"golden images ({len(images)})",
            outputs=compared,
            sha256=shipped.sha256,
            source=ImageSource.GOLDEN,
            limits=CEILINGS[Precision.FP32],
        ),
        boxes=boxes,
        from_pixels=from_pixels,
        reference_sha256=_sha256_of(detector),
        tools={m.__name__: str(m.__version__) for m in (torch, torchvision, onnxruntime)},
        files=tuple(
            FileRecord(path=path.name, sha256=sha256_of(path), size=path.stat().st_size)
            for path in sorted(root.iterdir())
        ),
    )
    (root / DETECTOR_NAME).write_bytes(to_json(manifest))
    return manifest


def torchvision_boxes(detector: SSD, images: NDArray[np.uint8]) -> list[Found]:
    """What torchvision's own forward pass answers to prepared images."""
    batch = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
    with torch.inference_mode():
        answers = [detector([image])[0] for image in batch]
    return [Found(a["boxes"].numpy(), a["scores"].numpy(), a["labels"].numpy()) for a in answers]


def torchvision_rules(detector: SSD, outputs: Mapping[str, NDArray[np.float32]], anchors: NDArray[np.float32]) -> Found:
    """What torchvision makes of what the heads of the shipped file gave for one image."""
    heads = {"bbox_regression": torch.from_numpy(outputs["offsets"]), "cls_logits": torch.from_numpy(outputs["logits"])}
    with torch.inference_mode():
        (answer,) = detector.postprocess_detections(heads, [torch.from_numpy(anchors)], [detector.transform.fixed_size])
    return Found(answer["boxes"].numpy(), answer["scores"].numpy(), answer["labels"].numpy())


def compare_boxes(reference: Sequence[Found], candidate: Sequence[Found]) -> BoxParity:
    """Each box of the reference with the nearest one of its class; a box is the partner of one other at most.

    By their corners and not by their overlap: boxes that were cut to the picture's edge have no area.
    """
    matched, farthest = 0, 0.0
    for theirs, ours in zip(reference, candidate, strict=True):
        if not len(theirs.boxes) or not len(ours.boxes):
            continue
        apart = np.abs(theirs.boxes[:, None] - ours.boxes[None]).max(axis=2)
        apart[theirs.classes[:, None] != ours.classes[None, :]] = np.inf
        for row, score in zip(apart, theirs.scores, strict=True):
            best = int(row.argmin())
            if row[best] <= SAME:
                matched += 1
                farthest = max(farthest, abs(float(score) - float(ours.scores[best])))
                apart[:, best] = np.inf
    counts = [sum(len(one.boxes) for one in side) for side in (reference, candidate)]
    return BoxParity(reference=counts[0], candidate=counts[1], matched=matched, max_score=farthest)


def _preprocess_of(detector: SSD) -> PreprocessSpec:
    if not isinstance(detector, SSD):
        raise UsageError(
            f"a {type(detector).__name__} cannot be exported as a detector", "give a torchvision.models.detection.SSD"
        )
    transform: Any = detector.transform
    size = transform.fixed_size
    if size is None or size[0] != size[1]:
        raise UsageError(f"its input has the size {size}", "give an SSD of a fixed square size, such as ssd300_vgg16")
    return PreprocessSpec(
        mode="L" if len(transform.image_mean) == 1 else "RGB",
        resize=size[0],
        crop=size[0],
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
    )


def _sha256_of(detector: SSD) -> str:
    """Of all weights, by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(detector.state_dict().items()):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()
