"""A planted fault is found at its layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from attacks.planting import rewrite_weight

from vggdeploy.bundle import Bundle
from vggdeploy.errors import UsageError
from vggdeploy.records import LayerParity, LayerReport
from vggdeploy.types import Precision, Verdict
from vggdeploy.verify.localise import find_culprit, localise
from vggdeploy.verify.verify import VerifyOptions, verify_bundle


def planted(source: Path, target: Path, variant: str, name: str, change) -> LayerReport:
    """A copy of the bundle in which one weight of a variant is changed, hashes and all; then what verify finds."""
    shutil.copytree(source, target)
    rewrite_weight(target, variant, name, change)
    report = verify_bundle(Bundle.open(target), VerifyOptions(variants=[variant], layers=True))
    assert report.verdict is Verdict.FAIL
    (found,) = report.layers
    return found


@pytest.mark.parametrize(
    ("variant", "name", "change", "culprit"),
    [
        ("onnx-fp32", "shift", lambda a: a + 0.3, "preprocess"),
        ("onnx-fp16", "scale", lambda a: a * 1.2, "preprocess"),
        ("onnx-fp32", "features.0.weight", lambda a: a.transpose(0, 1, 3, 2), "conv1_1"),
        ("onnx-fp16", "features.8.weight", lambda a: a[:, ::-1], "conv3_2"),
        ("onnx-fp32", "features.13.bias", lambda a: a + 0.5, "conv4_2"),
        ("onnx-fp16", "classifier.3.weight", lambda a: a.T, "fc7"),
        ("onnx-fp32", "classifier.6.weight", lambda a: a[::-1], "logits"),
    ],
)
def test_a_changed_weight_is_found_at_its_layer(
    bundle_dir: Path, tmp_path: Path, variant: str, name: str, change, culprit: str
) -> None:
    found = planted(bundle_dir, tmp_path / "bundle", variant, name, change)
    assert found.culprit == culprit
    assert culprit in found.reason


def test_an_overflow_is_traced_to_the_layer_that_saturates(bundle_dir: Path, tmp_path: Path) -> None:
    found = planted(bundle_dir, tmp_path / "bundle", "onnx-fp16", "features.6.weight", lambda a: a * 30_000)
    assert found.culprit == "conv3_1"
    assert "overflows" in found.reason


def test_a_healthy_variant_has_no_culprit_and_every_layer_is_named(bundle_dir: Path) -> None:
    for variant in ("onnx-fp32", "onnx-fp16"):
        report = localise(Bundle.open(bundle_dir), variant)
        assert report.culprit is None
        names = [row.layer for row in report.layers]
        assert names[:4] == ["preprocess", "conv1_1", "relu1_1", "pool1"]
        assert names[-3:] == ["fc6", "fc7", "logits"]
        assert len(names) == 1 + 8 + 8 + 5 + 3


def test_passing_variants_are_not_taken_apart(bundle_dir: Path) -> None:
    assert verify_bundle(Bundle.open(bundle_dir), VerifyOptions(layers=True)).layers == ()


def test_only_onnx_can_be_taken_apart(bundle_dir: Path) -> None:
    with pytest.raises(UsageError, match="not ONNX"):
        localise(Bundle.open(bundle_dir), "torchscript-fp32")


def row(layer: str, error: float, *, finite: bool = True) -> LayerParity:
    return LayerParity(layer=layer, relative_l2=error, max_abs=0, cosine_min=1, largest=1, finite=finite)


def test_an_error_that_only_grows_names_nobody() -> None:
    rows = [row(f"l{i}", 1e-6 * 2**i) for i in range(12)]
    assert find_culprit(rows, Precision.FP32)[0] is None


def test_the_first_jump_is_named_and_not_the_largest_error() -> None:
    rows = [row("a", 1e-6), row("b", 0.5), row("c", 0.9)]
    assert find_culprit(rows, Precision.FP32)[0] == "b"


def test_what_is_not_finite_comes_before_what_is_large() -> None:
    assert find_culprit([row("a", 0.0, finite=False), row("b", 9.0)], Precision.FP16)[0] == "a"
