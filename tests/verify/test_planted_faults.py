"""Every fault that a deployment is known to hide, planted in a copied bundle with hashes and all: each is found, and told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from attacks.planting import (
    channels_reversed,
    convolution_in_fp32,
    flipped_bit,
    rewrite_checkpoint,
    rewrite_manifest,
    rewrite_onnx,
    rewrite_weight,
    swap_labels,
)

from vggdeploy.bundle import Bundle, Manifest
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.cli.app import run
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.records import ParityReport, from_json
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import Verdict

pytestmark = pytest.mark.late
FP32, FP16 = "onnx-fp32", "onnx-fp16"


@pytest.fixture(scope="module")
def colour_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of colour images, with ImageNet's mean and std: only there can channels be mixed up."""
    root = tmp_path_factory.mktemp("colour")
    spec = ModelSpec.named("vgg11", width=0.125, in_channels=3, classes=10, image_size=32, hidden=64)
    about = Checkpoint(spec=spec, preprocess=PreprocessSpec(resize=32, crop=32), labels=tuple("abcdefghij"))
    save_checkpoint(root / "checkpoint", new_vgg(spec, seed=3), about)
    export_bundle(root / "checkpoint", root / "bundle", ExportOptions(formats=[FP32, FP16]))
    return root / "bundle"


@pytest.fixture
def colour(colour_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(colour_dir, tmp_path / "colour"))


def verify(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, ParityReport]:
    code = run(["verify", str(root), "--json", *options])
    return code, from_json(capsys.readouterr().out.encode(), ParityReport, what="the report")


def test_the_bundles_are_right_before_anything_is_planted(
    colour_dir: Path, bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root, options in ((colour_dir, ["--data", "golden"]), (bundle_dir, [])):
        code, report = verify(root, capsys, "--strict-preprocess", *options)
        assert code == 0
        assert {check.verdict for check in report.checks} == {Verdict.PASS}
    accuracy = Bundle.open(bundle_dir).manifest.reference_accuracy
    assert accuracy is not None
    assert [(c.what, c.against) for c in report.checks] == [
        ("network", "the checkpoint in the bundle"),
        ("preprocessing", "the checkpoint in the bundle"),
        ("labels", "the checkpoint in the bundle"),
        ("labels", "digits"),
        ("preprocessing of golden files", "what the 20 files became at export"),
        ("the reference's accuracy", f"{accuracy.hits} of 359 images of digits at export"),
        ("decoding, resizing and cropping", "135 golden arrays"),
        ("preprocessing with the manifest's settings", "torchvision's transforms with those of the training"),
    ]


Plant = Callable[[Path], None]

# What is planted; in which variant; the layer that has to be named.
IN_A_GRAPH: dict[str, tuple[Plant, str, str]] = {
    "a wrong mean": (lambda root: rewrite_weight(root, FP32, "shift", lambda a: a + 0.02), FP32, "preprocess"),
    "a wrong std": (lambda root: rewrite_weight(root, FP16, "scale", lambda a: a * 1.1), FP16, "preprocess"),
    "BGR for RGB": (lambda root: rewrite_onnx(root, FP32, channels_reversed), FP32, "preprocess"),
    "BGR for RGB in FP16": (lambda root: rewrite_onnx(root, FP16, channels_reversed), FP16, "preprocess"),
    "BGR for RGB in the first weights": (
        lambda root: rewrite_weight(root, FP32, "features.0.weight", lambda a: a[:, ::-1]), FP32, "conv1_1"
    ),
    "a transposed kernel": (
        lambda root: rewrite_weight(root, FP32, "features.8.weight", lambda a: a.transpose(0, 1, 3, 2)), FP32, "conv3_2"
    ),
    "input and output channels exchanged": (
        lambda root: rewrite_weight(root, FP16, "features.8.weight", lambda a: a.transpose(1, 0, 2, 3)), FP16, "conv3_2"
    ),
    "a saturating FP16 layer": (
        lambda root: rewrite_weight(root, FP16, "features.6.weight", lambda a: a * 30_000), FP16, "conv3_1"
    ),
    "an exponent bit of one FP32 weight": (
        lambda root: rewrite_weight(root, FP32, "features.11.weight", flipped_bit(30, 7)), FP32, "conv4_1"
    ),
    "a sign bit of one FP32 weight": (
        lambda root: rewrite_weight(root, FP32, "features.13.weight", flipped_bit(31)), FP32, "conv4_2"
    ),
    "an exponent bit of one FP16 weight": (
        lambda root: rewrite_weight(root, FP16, "features.0.weight", flipped_bit(14)), FP16, "conv1_1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_A_GRAPH)
def test_a_fault_in_a_graph_fails_and_its_layer_is_named(
    name: str, colour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, variant, layer = IN_A_GRAPH[name]
    plant(colour)
    code, report = verify(colour, capsys, "--data", "golden", "--layers")
    assert code == 3
    verdicts = {r.variant: r.verdict for r in report.variants}
    assert verdicts.pop(variant) is Verdict.FAIL
    assert set(verdicts.values()) == {Verdict.PASS}
    (found,) = report.layers
    assert (found.variant, found.culprit) == (variant, layer)
    assert {check.verdict for check in report.checks} == {Verdict.PASS}


@pytest.mark.parametrize("index", [0, 3, 7])
def test_one_convolution_in_fp32_is_found_although_its_answers_are_right(
    index: int, colour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_onnx(colour, FP16, convolution_in_fp32(index))
    code, report = verify(colour, capsys, "--data", "golden", "--variant", FP16)
    assert code == 3
    (record,) = report.variants
    names = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"]
    assert f"1 in fp32 (of 11): {names[index]}" in " ".join(record.reasons)
    assert record.outputs[0].relative_l2 < 1e-2


# What is planted; what the reason says. No variant's answers are wrong: only who reads the manifest is led astray.
IN_THE_MANIFEST: dict[str, tuple[Callable[[Manifest], Manifest], str, str]] = {
    "a swapped label": (
        swap_labels,
        "labels",
        "class 0 is 'b' in the manifest, 'a' in the checkpoint; 2 labels differ",
    ),
    "no labels": (lambda m: msgspec.structs.replace(m, labels=()), "labels", "the manifest has 0 labels"),
    "another crop's resize": (
        lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, resize=40)),
        "preprocessing",
        "resize is 40 in the manifest, 32 in the checkpoint",
    ),
    "another interpolation": (
        lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, interpolation="bicubic")),
        "preprocessing",
        "interpolation is 'bicubic' in the manifest, 'bilinear' in the checkpoint",
    ),
}


@pytest.mark.parametrize("name", IN_THE_MANIFEST)
def test_a_fault_in_the_manifest_alone_fails(name: str, colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, what, reason = IN_THE_MANIFEST[name]
    rewrite_manifest(colour, change)
    code, report = verify(colour, capsys, "--data", "golden", "--strict-preprocess")
    assert code == 3
    assert {r.verdict for r in report.variants} == {Verdict.PASS}
    wrong = [check for check in report.checks if check.verdict is Verdict.FAIL]
    assert wrong[0].what == what
    assert reason in wrong[0].reasons[0]
    # With the manifest's settings images become other pixels: that is seen on images, too.
    seen = ["preprocessing of golden files", "preprocessing with the manifest's settings"]
    seen = seen if what == "preprocessing" else []
    assert [check.what for check in wrong[1:]] == seen


def test_a_wrong_mean_in_the_manifest_fails(colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def darker(manifest: Manifest) -> Manifest:
        spec = msgspec.structs.replace(manifest.preprocess, mean=(0.5, 0.5, 0.5))
        return msgspec.structs.replace(manifest, preprocess=spec)

    rewrite_manifest(colour, darker)
    code, report = verify(colour, capsys, "--data", "golden", "--strict-preprocess")
    assert code == 3
    assert [c.what for c in report.checks if c.verdict is Verdict.FAIL] == [
        "preprocessing",
        "preprocessing of golden files",
        "preprocessing with the manifest's settings",
    ]


def test_labels_swapped_in_manifest_and_checkpoint_are_seen_by_the_data_set(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_manifest(own_bundle, swap_labels)
    rewrite_checkpoint(
        own_bundle, lambda c: msgspec.structs.replace(c, labels=(c.labels[1], c.labels[0], *c.labels[2:]))
    )
    code, report = verify(own_bundle, capsys, "--variant", FP32, "--samples", "352")
    assert code == 3
    wrong, accuracy = [check for check in report.checks if check.verdict is Verdict.FAIL]
    assert accuracy.what == "the reference's accuracy"  # of two classes every image counts as the other's now
    assert (wrong.what, wrong.against) == ("labels", "digits")
    assert wrong.reasons == ("class 0 is '1' in the manifest, '0' in the classes of digits; 2 labels differ",)


def test_a_mean_wrong_in_manifest_and_checkpoint_moves_the_reference_away_from_the_golden_pair(
    colour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark = {"mean": (0.3, 0.3, 0.3)}
    for rewrite in (rewrite_manifest, rewrite_checkpoint):
        rewrite(colour, lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, **dark)))
    code, report = verify(colour, capsys, "--data", "golden")
    assert code == 3
    # The graphs hold the mean that was trained: they differ from the checkpoint of now, too.
    assert {r.variant for r in report.variants if r.verdict is Verdict.FAIL} == {"torch-fp32", FP32, FP16}


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("where", [200, -200])
def test_one_flipped_bit_of_any_file_is_found_by_its_hash(
    colour: Path, where: int, bit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(p for p in colour.rglob("*") if p.is_file() and p.stat().st_size > 400):
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[where] ^= 1 << bit
        path.write_bytes(damaged)
        assert run(["verify", str(colour)]) == 1, path.name
        assert path.name in (told := capsys.readouterr().err)
        if path.name != "manifest.json":  # which may be no JSON any more, before its digest is looked at
            assert "was altered: its SHA-256 is not" in told
        path.write_bytes(data)


def test_a_bit_too_low_to_change_an_answer_is_within_every_limit(
    colour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What parity cannot see, and does not have to: only a hash that was not rewritten, or a signature, tells of it."""
    rewrite_weight(colour, FP32, "features.11.weight", flipped_bit(0, 7))
    code, report = verify(colour, capsys, "--data", "golden", "--variant", FP32)
    assert code == 0
    assert report.variants[0].outputs[0].relative_l2 < 1e-6


def test_the_table_shows_what_is_wrong_with_the_manifest(colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_manifest(colour, swap_labels)
    assert run(["verify", str(colour), "--data", "golden"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "network, preprocessing: as in the checkpoint in the bundle" in shown
    assert "labels, against the checkpoint in the bundle" in shown
    assert "✘ labels: class 0 is 'b' in the manifest, 'a' in the checkpoint" in shown


def test_a_label_that_is_markup_stays_text(colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_manifest(colour, lambda m: msgspec.structs.replace(m, labels=("[red]<script>", *m.labels[1:])))
    assert run(["verify", str(colour), "--data", "golden"]) == 3
    assert "class 0 is '[red]<script>' in the manifest" in " ".join(capsys.readouterr().out.split())


def test_pixels_that_come_out_otherwise_fail(
    colour: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vggdeploy.parity import pixels
    from vggdeploy.verify import consistency

    real = consistency.prepare
    monkeypatch.setattr(pixels, "prepare", lambda *args: np.roll(real(*args), 1, axis=0))
    monkeypatch.setattr(consistency, "prepare", lambda *args: np.roll(real(*args), 1, axis=0))
    code, report = verify(colour, capsys, "--data", "golden", "--strict-preprocess")
    assert code == 3
    assert [c.what for c in report.checks if c.verdict is Verdict.FAIL] == [
        "decoding, resizing and cropping",
        "preprocessing with the manifest's settings",
    ]


IN_MANIFEST_AND_CHECKPOINT: dict[str, dict[str, object]] = {
    "another resize filter": {"interpolation": "bicubic"},
    "another size before the crop": {"resize": 36},
    "another mean": {"mean": (0.3, 0.3, 0.3)},
    "another std": {"std": (0.25, 0.25, 0.25)},
}


@pytest.mark.parametrize("name", IN_MANIFEST_AND_CHECKPOINT)
def test_preprocessing_changed_in_manifest_and_checkpoint_is_seen_on_the_golden_files(
    name: str, colour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No two records contradict each other then; `verify` sees it without being asked to look at images."""
    change = IN_MANIFEST_AND_CHECKPOINT[name]
    for rewrite in (rewrite_manifest, rewrite_checkpoint):
        rewrite(
            colour, lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, **change))
        )
    code, report = verify(colour, capsys, "--variant", FP32)
    assert code == 3
    (wrong,) = [check for check in report.checks if check.verdict is Verdict.FAIL]
    assert wrong.what == "preprocessing of golden files"


def test_a_mean_changed_in_both_is_seen_where_the_graph_takes_normalised_numbers(
    float_bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There the golden pair holds normalised numbers, and says nothing of how they were made. (The stress set does.)"""
    own = Path(shutil.copytree(float_bundle_dir, tmp_path / "float"))
    for rewrite in (rewrite_manifest, rewrite_checkpoint):
        rewrite(
            own, lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, mean=(0.4,)))
        )
    code, report = verify(own, capsys, "--variant", FP32, "--data", "golden")
    assert code == 3
    (wrong,) = [check for check in report.checks if check.verdict is Verdict.FAIL]
    assert wrong.reasons[0] == "normalisation makes other numbers of the same pixels"
