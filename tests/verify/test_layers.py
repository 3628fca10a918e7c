"""A planted fault is found at its layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from attacks.faults import FAULTS, HARMLESS, planted
from attacks.network import Network
from attacks.planting import rewrite_onnx, rewrite_weight

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.records import LayerReport
from vggdeploy.types import Verdict
from vggdeploy.verify.localise import localise
from vggdeploy.verify.verify import VerifyOptions, verify_bundle


def found_after(source: Path, target: Path, variant: str, name: str, change) -> LayerReport:
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
    found = found_after(bundle_dir, tmp_path / "bundle", variant, name, change)
    assert found.culprit == culprit
    assert found.reason.startswith(f"{culprit} ")


def test_an_overflow_is_traced_to_the_layer_that_saturates(bundle_dir: Path, tmp_path: Path) -> None:
    found = found_after(bundle_dir, tmp_path / "bundle", "onnx-fp16", "features.6.weight", lambda a: a * 30_000)
    assert found.culprit == "conv3_1"
    assert "overflows" in found.reason
    assert found.evidence == ("output", "weights")


def test_a_healthy_variant_has_no_culprit_and_every_layer_is_named(bundle_dir: Path) -> None:
    for variant in ("onnx-fp32", "onnx-fp16"):
        report = localise(Bundle.open(bundle_dir), variant)
        assert (report.culprit, report.evidence) == (None, ())
        assert all(row.isolated is not None and row.relative_l2 is not None for row in report.layers)
        # An error of its own is below the one that all layers before it add up to.
        assert sum(row.isolated < row.relative_l2 for row in report.layers) > 20  # type: ignore[operator]
        names = [row.layer for row in report.layers]
        assert names[:4] == ["preprocess", "conv1_1", "relu1_1", "pool1"]
        assert names[-3:] == ["fc6", "fc7", "logits"]
        assert len(names) == 1 + 8 + 8 + 5 + 3


def test_passing_variants_are_not_taken_apart(bundle_dir: Path) -> None:
    assert verify_bundle(Bundle.open(bundle_dir), VerifyOptions(layers=True)).layers == ()


def test_only_onnx_can_be_taken_apart(bundle_dir: Path) -> None:
    with pytest.raises(UsageError, match="not ONNX"):
        localise(Bundle.open(bundle_dir), "torchscript-fp32")


# What is planted and where; how the reason begins, what the evidence is. The first three had no answer, or a wrong one, when
# a layer was named for a jump of the error that all layers before it add up to.
@pytest.mark.parametrize(
    ("variant", "fault", "layer", "said", "evidence"),
    [
        ("onnx-fp32", "no padding", "conv1_1", "has pads 0 where the network has 1", ("structure",)),
        ("onnx-fp32", "classes in another order", "logits", "has 10 of its classes in another order", ("weights",)),
        ("onnx-fp16", "LeakyReLU(0.01) for ReLU", "relu4_1", "is LeakyRelu (alpha 0.01)", ("structure",)),
        ("onnx-fp16", "two classes exchanged", "logits", "has classes ", ("weights",)),
        ("onnx-fp16", "weights in 6 bits", "conv3_2", "has weights of ", ("weights",)),
        ("onnx-fp16", "weights and bias × 1.01", "fc6", "has 1.01 times the network's weights", ("weights",)),
        ("onnx-fp32", "average pool for max pool", "pool2", "is AveragePool where", ("structure",)),
        ("onnx-fp32", "no ReLU", "fc7", "is missing", ("structure",)),
        ("onnx-fp32", "wrong at batch 1", "logits", "holds Shape, Gather, Equal, Mul", ("structure",)),
    ],
)
def test_a_fault_is_named_with_what_differs(
    bundle_dir: Path, tmp_path: Path, variant: str, fault: str, layer: str, said: str, evidence: tuple[str, ...]
) -> None:
    root = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    spec = Bundle.open(root).manifest.spec
    rewrite_onnx(root, variant, lambda model: model.CopyFrom(planted(model, spec, FAULTS[fault], layer)))
    report = localise(Bundle.open(root), variant)
    assert (report.culprit, report.evidence) == (layer, evidence)
    assert report.reason.startswith(f"{layer} {said}")


@pytest.mark.parametrize("fault", ["no padding", "stride 2"])
def test_layers_whose_shapes_do_not_fit_end_in_no_bug(
    fault: str, own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Bundle.open(own_bundle).manifest.spec
    rewrite_onnx(own_bundle, "onnx-fp32", lambda m: m.CopyFrom(planted(m, spec, FAULTS[fault], "conv1_1")))
    assert run(["verify", str(own_bundle), "--variant", "onnx-fp32", "--layers", "--data", "golden"]) == 3
    shown = capsys.readouterr()
    assert "conv1_1 has" in " ".join(shown.out.split())
    assert "bug" not in shown.out + shown.err


def test_what_no_answer_shows_is_found_where_it_stands(bundle_dir: Path, tmp_path: Path) -> None:
    """Channels in another order, and the next layer reads them so: the answers are right, the file is not the checkpoint's, and
    both layers are named."""
    root = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    (fault,) = HARMLESS.values()
    spec = Bundle.open(root).manifest.spec
    rewrite_onnx(root, "onnx-fp32", lambda model: model.CopyFrom(planted(model, spec, fault, "conv3_1")))
    bundle = Bundle.open(root)
    report = verify_bundle(bundle, VerifyOptions(variants=["onnx-fp32"], data="golden"))
    assert report.verdict is Verdict.FAIL
    assert report.variants[0].outputs[0].relative_l2 < 1e-5
    found = localise(bundle, "onnx-fp32")
    assert found.reason == report.variants[0].reasons[0]
    assert found.culprit == "conv3_1"
    assert found.reason.endswith("of its channels in another order; also seen at conv3_2")


def test_names_of_weights_are_not_needed(bundle_dir: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))

    def renamed(model: onnx.ModelProto) -> None:
        names = {tensor.name: f"w{i}" for i, tensor in enumerate(model.graph.initializer)}
        for tensor in model.graph.initializer:
            tensor.name = names[tensor.name]
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]

    rewrite_onnx(root, "onnx-fp32", renamed)
    report = localise(Bundle.open(root), "onnx-fp32")
    assert report.culprit is None
    assert len(report.layers) == 1 + 8 + 8 + 5 + 3


def test_a_graph_of_features_ends_where_it_ends(features_dir: Path, float_bundle_dir: Path) -> None:
    report = localise(Bundle.open(features_dir), "onnx-fp32")
    assert (report.culprit, report.layers[-1].layer) == (None, "logits")
    report = localise(Bundle.open(float_bundle_dir), "onnx-fp32")
    assert (report.culprit, report.layers[0].layer) == (None, "conv1_1")


def test_answers_of_another_number_than_images_fail_and_are_traced(own_bundle: Path) -> None:
    spec = Bundle.open(own_bundle).manifest.spec

    def doubled(model: onnx.ModelProto) -> None:
        net = Network(model, spec)
        node = net.tap(net.made("logits"))
        net.replace(node, "Concat", node.input[0], axis=0)

    rewrite_onnx(own_bundle, "onnx-fp32", doubled)
    options = VerifyOptions(variants=["onnx-fp32"], data="golden", layers=True)
    report = verify_bundle(Bundle.open(own_bundle), options)
    assert report.verdict is Verdict.FAIL
    assert "it holds Concat" in report.variants[0].reasons[0]
    assert report.layers[0].culprit == "logits"
    assert "holds Concat" in report.layers[0].reason
