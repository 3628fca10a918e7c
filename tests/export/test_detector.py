"""An SSD over a VGG: exported, proven, opened without torch; its boxes are torchvision's, and what is wrong is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, ssd300_vgg16
from torchvision.ops import nms as torchvision_nms

from vggdeploy.bundle.detector import DETECTOR_NAME, BoxParity, read_detector
from vggdeploy.engine.boxes import Rules, decoded, found, nms
from vggdeploy.engine.detector import Detection, Detections, load_detector
from vggdeploy.errors import BundleError, ForeignModelError, InputError, IntegrityError, ParityError, UsageError
from vggdeploy.export import detector as export
from vggdeploy.export.detector import (
    DetectorOptions,
    compare_boxes,
    export_detector,
    torchvision_boxes,
    torchvision_rules,
)
from vggdeploy.model import backbone
from vggdeploy.spec import ModelSpec

pytestmark = pytest.mark.late
LABELS = ("cat", "<b>dog</b>", "bird")


class Levels(nn.Module):
    """Our backbone with the one attribute that SSD asks for as a list."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = backbone(ModelSpec.named("vgg11_bn", width=0.125, image_size=64), (3, 4, 5), seed=seed)
        self.out_channels = self.body.out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(self.body(x))


def small_ssd(seed: int = 0) -> SSD:
    torch.manual_seed(seed)
    network = SSD(
        Levels(seed),
        DefaultBoxGenerator([[2], [2, 3], [2]]),
        (64, 64),
        num_classes=len(LABELS) + 1,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.3, 0.25],
    )
    for head in network.head.classification_head.module_list:  # sure of itself in places, as a trained one is
        nn.init.normal_(head.weight, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def detector_dir(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return once("detector/ssd", lambda path: export_detector(small_ssd(), path, LABELS))


@pytest.fixture
def own_detector(detector_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(detector_dir, tmp_path / "ssd"))


def pictures(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(20))
def test_suppression_keeps_what_torchvision_keeps_to_the_last_box(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = np.sort(
        random.integers(0, 40, (300, 2, 2)).astype(np.float32), axis=1
    )  # whole numbers: ties, empty boxes
    boxes = corners.reshape(-1, 4) * np.float32(random.uniform(0.1, 3))
    scores = random.integers(0, 50, 300).astype(np.float32) / 50  # ties here too
    for threshold in (0.0, 0.3, 0.45, 1 / 3, 0.5, 1.0):
        theirs = torchvision_nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()
        np.testing.assert_array_equal(nms(boxes, scores, threshold), theirs)


def test_decoding_is_that_of_torchvision() -> None:
    random, coder = np.random.default_rng(0), small_ssd().box_coder
    anchors = np.concatenate([random.uniform(0, 30, (500, 2)), random.uniform(31, 64, (500, 2))], 1).astype(np.float32)
    offsets = random.normal(0, 20, (500, 4)).astype(np.float32)  # far enough to meet the bound before exp
    theirs = coder.decode_single(torch.from_numpy(offsets), torch.from_numpy(anchors)).numpy()
    np.testing.assert_allclose(decoded(offsets, anchors, (10.0, 10.0, 5.0, 5.0)), theirs, rtol=2e-6, atol=1e-4)


def test_known_scores_give_known_boxes() -> None:
    anchors = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 50, 40], [-5, 60, 20, 70]], np.float32)
    sure = np.log(np.array([[0.05, 0.9, 0.05], [0.2, 0.75, 0.05], [0.1, 0.2, 0.7], [0.99, 0.005, 0.005]], np.float32))
    one = found(sure, np.zeros((4, 4), np.float32), anchors, (64, 64), Rules(score_threshold=0.3))
    assert one.classes.tolist() == [1, 2]  # the second overlaps the first by 9/11; the last is background
    np.testing.assert_allclose(one.boxes, [[0, 0, 10, 10], [30, 30, 50, 40]])
    np.testing.assert_allclose(one.scores, [0.9, 0.7], rtol=1e-6)


def test_the_boxes_of_new_pictures_are_those_of_torchvision(detector_dir: Path) -> None:
    images = pictures(6)
    theirs = torchvision_boxes(small_ssd(), images)
    with load_detector(detector_dir) as detector:
        told = compare_boxes(theirs, detector.boxes(images))
    assert told.reference > 100
    assert told.matched >= 0.99 * max(told.reference, told.candidate)
    assert told.max_score < 1e-4


def test_boxes_that_are_decoded_wrongly_are_no_match(detector_dir: Path) -> None:
    """The attack on the comparison itself: sizes off by a fifth, or classes off by one."""
    images = pictures(2)
    theirs = torchvision_boxes(small_ssd(), images)
    with load_detector(detector_dir) as detector:
        ours = detector.boxes(images)
    wide = [replace(one, boxes=one.boxes * np.float32(1.2)) for one in ours]
    other = [replace(one, classes=one.classes % len(LABELS) + 1) for one in ours]
    for wrong in (wide, other):
        told = compare_boxes(theirs, wrong)
        assert told.matched < 0.5 * told.reference
    assert compare_boxes(theirs, [ours[1], ours[0]]).matched < 0.5 * told.reference


def test_a_picture_of_any_shape_gets_boxes_in_its_own_pixels(detector_dir: Path) -> None:
    pixels = pictures(1)[0]
    wide = Image.fromarray(pixels).resize((256, 64), Image.Resampling.NEAREST)
    with load_detector(detector_dir) as detector:
        square, stretched = detector.detect(pixels, score=0.02), detector.detect(wide, score=0.02)
    assert isinstance(square, Detections)
    assert square
    assert max(d.box[2] for d in stretched) > 64 >= max(d.box[2] for d in square)
    assert max(d.box[3] for d in stretched) <= 64
    assert json.loads(json.dumps(square))[0]["label"] in LABELS


@pytest.mark.parametrize("name", ["model.onnx", "anchors.npy", "logits.npy", "images.npy"])
def test_one_changed_byte_is_refused(own_detector: Path, name: str) -> None:
    data = bytearray((own_detector / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own_detector / name).write_bytes(data)
    with pytest.raises(IntegrityError):
        load_detector(own_detector)


def test_another_networks_file_with_its_own_hash_is_no_proof(own_detector: Path, tmp_path: Path) -> None:
    """The hash is put right, too: the golden answers are another network's."""
    export_detector(small_ssd(seed=1), tmp_path / "other", LABELS)
    shutil.copy(tmp_path / "other/model.onnx", own_detector / "model.onnx")
    manifest = json.loads((own_detector / DETECTOR_NAME).read_text())
    theirs = json.loads((tmp_path / "other" / DETECTOR_NAME).read_text())
    (new,) = [f for f in theirs["files"] if f["path"] == "model.onnx"]
    manifest["files"] = [new if f["path"] == "model.onnx" else f for f in manifest["files"]]
    (own_detector / DETECTOR_NAME).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="proof of other bytes"):
        load_detector(own_detector)
    manifest["parity"]["sha256"] = new["sha256"]
    (own_detector / DETECTOR_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ParityError, match="does not answer here as it was proven"):
        load_detector(own_detector)


def test_a_graph_with_an_operator_of_another_kind_never_reaches_the_library(own_detector: Path) -> None:
    import onnx

    from vggdeploy.system.files import sha256_of

    model = onnx.load(own_detector / "model.onnx")
    model.graph.node.append(onnx.helper.make_node("Loop", ["image"], ["unused"]))
    onnx.save(model, own_detector / "model.onnx")
    manifest = json.loads((own_detector / DETECTOR_NAME).read_text())
    for record in manifest["files"]:
        path = own_detector / record["path"]
        record["sha256"], record["size"] = sha256_of(path), path.stat().st_size
        if record["path"] == "model.onnx":
            manifest["parity"]["sha256"] = record["sha256"]
    (own_detector / DETECTOR_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ForeignModelError, match="Loop"):
        load_detector(own_detector)


def test_files_never_lead_outside(own_detector: Path) -> None:
    manifest = json.loads((own_detector / DETECTOR_NAME).read_text())
    manifest["files"][0]["path"] = "../outside.npy"
    (own_detector / DETECTOR_NAME).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError):
        read_detector(own_detector)


def test_a_failed_proof_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes that are not torchvision's: a detector whose weights change between the proof's two sides."""
    nothing = BoxParity(reference=100, candidate=100, matched=90, max_score=0.0)
    monkeypatch.setattr(export, "compare_boxes", lambda *_: nothing)
    with pytest.raises(ParityError, match="10 of 100 boxes"):
        export_detector(small_ssd(), tmp_path / "ssd", LABELS)
    assert not (tmp_path / "ssd").exists()


def test_bad_requests_are_told(detector_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 labels given, and the heads tell 3 classes apart"):
        export_detector(small_ssd(), tmp_path / "ssd", LABELS[:2])
    with pytest.raises(UsageError, match="Linear cannot be exported"):
        export_detector(nn.Linear(1, 1), tmp_path / "ssd", LABELS)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="is no detector"):
        load_detector(tmp_path)
    with load_detector(detector_dir) as detector:
        with pytest.raises(UsageError, match="score"):
            detector.detect(pictures(1)[0], score=2)
        with pytest.raises(InputError):
            detector.run(pictures(1, side=32))


def test_a_notebook_shows_names_as_text() -> None:
    shown = Detections([Detection("<script>x</script>", 1, 0.5, (0.0, 1.0, 2.0, 3.0))])._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown


def test_it_is_opened_without_torch(detector_dir: Path) -> None:
    code = (
        "import sys, numpy as np; from vggdeploy.engine.detector import load_detector; "
        f"d = load_detector({str(detector_dir)!r}); d.detect(np.zeros((9, 7, 3), np.uint8)); d.close(); "
        "print({'torch', 'torchvision', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_ssd300_over_vgg16_is_exported_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).eval()
    images = pictures(2, side=300)
    labels = [f"class {i}" for i in range(1, 21)]
    manifest = export_detector(network, tmp_path / "ssd300", labels, DetectorOptions(images=images))
    assert manifest.anchors == 8732
    new = pictures(3, side=300)[2:]
    with load_detector(tmp_path / "ssd300") as detector:
        told = compare_boxes([torchvision_rules(network, detector.run(new), detector.anchors)], detector.boxes(new))
    assert told.reference > 0
    assert told.matched >= 0.95 * max(told.reference, told.candidate)
