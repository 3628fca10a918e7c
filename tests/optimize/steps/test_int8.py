"""INT8 from real calibration images: for CPUs and for TensorRT, proven, and with the layers in FP32 that a target needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from attacks.planting import rewrite_weight

from vggdeploy.bundle import Bundle, Variant, update_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.errors import BuildError, TargetError
from vggdeploy.optimize.steps import quantiser as int8
from vggdeploy.optimize.steps.calibration import Int8Options
from vggdeploy.optimize.steps.int8 import add_int8
from vggdeploy.optimize.tuning import first_hits, pack
from vggdeploy.optimize.variants import StepContext
from vggdeploy.records import OriginalNetwork, Size, to_json
from vggdeploy.runtime import open_session
from vggdeploy.types import Verdict
from vggdeploy.verify.localise import localise
from vggdeploy.verify.verify import VerifyOptions, verify_bundle

pytestmark = pytest.mark.late


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def quantised(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle with all INT8 variants, made by the command. Treat it as read-only."""
    out = tmp_path_factory.mktemp("int8") / "bundle"
    assert run(["optimize", str(bundle_dir), "--step", "int8", "-o", str(out), "--calibration-images", "64"]) == 0
    return Bundle.open(out)


def variant(bundle: Bundle, name: str) -> Variant:
    return bundle.manifest.variant(name)


def test_every_layer_computes_in_int8_and_stays_close(quantised: Bundle) -> None:
    for name in ("onnx-int8", "onnx-int8-symmetric", "openvino-int8"):
        found = variant(quantised, name)
        assert found.proof is not None
        assert found.proof.layers == {"int8": 11}
        assert found.parity is not None
        assert found.verdict is Verdict.PASS
        assert found.parity.outputs[0].relative_l2 < 0.05
        assert found.parity.data.startswith("digits test")  # which neither calibrated nor chose anything


@pytest.mark.parametrize("name", ["onnx-int8", "onnx-int8-symmetric"])
def test_layers_are_told_by_their_weights_and_a_healthy_graph_has_no_culprit(quantised: Bundle, name: str) -> None:
    found = localise(quantised, name)
    assert found.culprit is None
    names = [row.layer for row in found.layers]
    assert names[:4] == ["preprocess", "conv1_1", "relu1_1", "pool1"]
    assert names[-4:] == ["pool5", "fc6", "fc7", "logits"]
    assert len(names) == 1 + 8 + 8 + 5 + 3
    assert max(row.relative_l2 for row in found.layers) < 0.05


@pytest.mark.parametrize(
    ("weight", "change", "culprit"),
    [
        ("features.8.weight_quantized", lambda a: a[:, ::-1], "conv3_2"),
        ("features.0.weight_scale", lambda a: a * 1.5, "conv1_1"),
        ("classifier.3.weight_quantized", lambda a: a.T, "fc7"),
        ("classifier.6.weight_quantized", lambda a: a[::-1], "logits"),
    ],
)
@pytest.mark.parametrize("name", ["onnx-int8", "onnx-int8-symmetric"])
def test_a_fault_in_a_quantised_graph_is_found_at_its_layer(
    quantised: Bundle, tmp_path: Path, name: str, weight: str, change, culprit: str
) -> None:
    copy = Path(shutil.copytree(quantised.root, tmp_path / "bundle"))
    rewrite_weight(copy, name, weight, change)
    report = verify_bundle(Bundle.open(copy), VerifyOptions(variants=[name], data="golden", layers=True))
    assert report.verdict is Verdict.FAIL
    assert [found.culprit for found in report.layers] == [culprit]


def test_weights_are_a_quarter_and_stored_once(quantised: Bundle) -> None:
    size = {v.name: quantised.size(v) for v in quantised.manifest.variants}
    assert size["onnx-int8"] < 0.3 * size["onnx-fp32"]
    assert variant(quantised, "openvino-int8").path == variant(quantised, "onnx-int8").path


def test_one_calibration_serves_both_and_is_recorded(quantised: Bundle) -> None:
    cpu, trt = (variant(quantised, name).quantisation for name in ("onnx-int8", "onnx-int8-symmetric"))
    assert cpu is not None
    assert trt is not None
    assert (cpu.activations, trt.activations) == ("uint8", "int8")
    assert cpu.data == trt.data == "digits train (64 images)"
    assert (cpu.method, cpu.kept, cpu.bias_corrected) == ("min-max", (), True)


def test_activations_are_unsigned_for_cpus_and_symmetric_for_tensorrt(quantised: Bundle) -> None:
    def zero_points(name: str) -> list[np.ndarray]:
        graph = onnx.load(quantised.path(variant(quantised, name).path)).graph
        values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        return [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]

    assert {z.dtype.name for z in zero_points("onnx-int8")} == {"uint8"}
    assert {z.dtype.name for z in zero_points("onnx-int8-symmetric")} == {"int8"}
    assert not any(z.any() for z in zero_points("onnx-int8-symmetric"))


def test_weights_have_a_scale_for_each_channel(quantised: Bundle) -> None:
    graph = onnx.load(quantised.path(variant(quantised, "onnx-int8").path)).graph
    dims = {t.name: list(t.dims) for t in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and len(dims.get(n.input[0], ())) > 1]
    assert len(weights) == 11
    assert all(dims[node.input[1]] == [dims[node.input[0]][0]] for node in weights)


def test_class_scores_are_not_rounded_to_256_steps(quantised: Bundle) -> None:
    images = quantised.golden()[0]["image"]
    for name in ("onnx-int8", "onnx-int8-symmetric"):
        with open_session(quantised, variant(quantised, name)) as session:
            logits = session.run({"image": images})["logits"]
        assert len(np.unique(logits)) > 256


def test_a_build_takes_the_symmetric_file(quantised: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    from vggdeploy.build.engines import build_into
    from vggdeploy.build.request import BuildPlan
    from vggdeploy.types import Precision

    added = build_into(quantised, BuildPlan(engine="tensorrt-rtx", precision=Precision.INT8, targets=["sm89"]))
    assert added.variant.build is not None
    assert added.variant.build.source == "onnx-int8-symmetric"
    assert added.variant.proof is not None
    assert added.variant.proof.layers == {"int8": 11}


def test_layers_stay_in_fp32_until_the_limits_hold(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of one layer are made so uneven that its scales cannot hold them, and it is the one that is kept."""
    quantise = int8.quantise

    def worse(model: onnx.ModelProto, *args: object, **kwargs: object) -> onnx.ModelProto:
        found = quantise(model, *args, **kwargs)  # type: ignore[arg-type]
        for tensor in found.graph.initializer:
            if tensor.name == "classifier.3.weight_quantized":
                coarse = onnx.numpy_helper.to_array(tensor) // 100 * 100
                tensor.CopyFrom(onnx.numpy_helper.from_array(coarse, tensor.name))
        return found

    monkeypatch.setattr(int8, "quantise", worse)
    bundle = add_int8(Bundle.open(own_bundle), StepContext(int8=Int8Options(images=64, targets=("cpu",))))
    found = variant(bundle, "onnx-int8")
    assert found.quantisation is not None
    assert found.quantisation.kept == ("classifier.3",)
    assert found.proof is not None
    assert found.proof.layers == {"int8": 10, "fp32": 1}
    assert found.verdict is Verdict.PASS


def test_the_limit_is_for_what_the_steps_before_lost_too(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that was trained to have every validation image right: of this one INT8 loses nothing, of that one it does.

    Three images have other labels now, so this one has them wrong, whatever the CPU that trained it made of it.
    """
    from vggdeploy.data import loaders

    real = loaders.load_split

    def relabelled(name: str, split: str, *arguments: Any, **options: Any) -> Any:
        found = real(name, split, *arguments, **options)
        changed = np.where(np.arange(len(found)) < 3, (found.labels + 1) % 10, found.labels)
        return replace(found, labels=changed) if split == "validation" else found

    monkeypatch.setattr(loaders, "load_split", relabelled)
    opened = Bundle.open(own_bundle)
    inside = f"checkpoint/{CHECKPOINT_NAME}"
    checkpoint = read_checkpoint(opened.root / "checkpoint")
    origin = OriginalNetwork(
        sha256="0" * 64, title="x", size=Size(parameters=1, macs=1, bytes=1), dataset="digits",
        accuracy={"validation": 1.0}, hits={"validation": pack(np.ones(143, bool))},
    )  # fmt: skip
    with update_bundle(opened) as draft:
        draft.write(inside, to_json(msgspec.structs.replace(checkpoint, origin=origin)))
    strict = StepContext(int8=Int8Options(images=64, targets=("cpu",), max_drop=0.02))
    with pytest.raises(TargetError, match=r"against the network as it was trained, accuracy may fall by \d"):
        add_int8(Bundle.open(own_bundle), strict)
    loose = replace(strict, int8=replace(strict.int8, max_drop=0.3))
    found = variant(add_int8(Bundle.open(own_bundle), loose), "onnx-int8")
    assert found.quantisation is not None
    assert found.quantisation.kept == ()


@pytest.mark.parametrize(
    ("dataset", "split", "count", "known"),
    [("digits", "validation", 11, True), ("digits", "validation", 9, True), ("digits", "validation", 17, False),
     ("digits", "test", 11, False), ("mnist", "validation", 11, False)],
)  # fmt: skip
def test_what_the_trained_network_had_right_is_known_of_its_own_images(
    dataset: str, split: str, count: int, known: bool
) -> None:
    right = np.arange(11) % 3 == 0
    size = Size(parameters=1, macs=1, bytes=1)
    origin = OriginalNetwork(
        sha256="", title="", size=size, dataset="digits", accuracy={}, hits={"validation": pack(right)}
    )
    found = first_hits(origin, dataset, split, count)
    assert (found is not None) == known
    if found is not None:
        np.testing.assert_array_equal(found, right[:count])
    assert first_hits(None, dataset, split, count) is None


def test_a_target_that_cannot_be_promised_is_exit_4(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(own_bundle)
    command = [
        "optimize",
        str(own_bundle),
        "--step",
        "int8",
        "--max-accuracy-drop",
        "0.1",
        "--calibration-images",
        "32",
    ]
    assert run(command) == 4
    assert "143 images" in capsys.readouterr().err
    assert files(own_bundle) == before


def test_a_parity_failure_is_exit_3_and_nothing_is_written(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What holds on the validation images can still miss the test images."""
    from vggdeploy.optimize.steps import int8 as step

    monkeypatch.setattr(step._Judge, "_holds", lambda self, record: True)
    quantise = int8.quantise

    def wrong(*args: object, **kwargs: object) -> onnx.ModelProto:
        found = quantise(*args, **kwargs)  # type: ignore[arg-type]
        for tensor in found.graph.initializer:
            if tensor.name == "classifier.6.weight_quantized":
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
        return found

    monkeypatch.setattr(int8, "quantise", wrong)
    before = files(own_bundle)
    assert run(["optimize", str(own_bundle), "--step", "int8", "--int8-for", "cpu", "--calibration-images", "32"]) == 3
    assert "onnx-int8 does not compute what was trained" in capsys.readouterr().err
    assert files(own_bundle) == before
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--calibration-images", "5"], 2, "at least 32"),
        (["--calibration-data", "mnistt"], 2, "did you mean 'mnist'"),
        (["--calibration-data", "cifar10"], 2, "the model 0, 1, 2, … (10)"),
        (["--calibration-method", "minmax"], 2, "did you mean 'min-max'"),
        (["--percentile", "99"], 2, "--calibration-method percentile"),
        (["--percentile", "5", "--calibration-method", "percentile"], 2, "90 to 100"),
        (["--int8-for", "gpu"], 2, "the INT8 target 'gpu' is unknown"),
        (["--max-accuracy-drop", "-1"], 2, "percentage points"),
    ],
)
def test_a_slip_is_answered(
    bundle_dir: Path, options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["optimize", str(bundle_dir), "--step", "int8", *options]) == code
    assert said in capsys.readouterr().err


def test_options_of_int8_need_the_step(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", str(bundle_dir), "--step", "openvino-fp32", "--calibration-images", "64"]) == 2
    assert "--calibration-images belongs to --step int8" in capsys.readouterr().err


def test_a_foreign_graph_with_an_operator_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Mystery", ["image"], ["logits"], domain="nobody")
    graph = onnx.helper.make_graph(
        [node], "foreign",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4])],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nobody", 1)]
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)
    batch = {"image": np.zeros((1, 4), np.float32)}
    with pytest.raises(BuildError, match="cannot calibrate") as caught:
        int8.calibrate(path, [batch], method="min-max", percentile=99.99, scratch=tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_and_nothing_is_written(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(own_bundle)
    usage = shutil.disk_usage(own_bundle)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run(["optimize", str(own_bundle), "--step", "int8", "--calibration-images", "32"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert files(own_bundle) == before
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_an_interrupted_step_leaves_the_bundle_as_it_was(own_bundle: Path) -> None:
    before = files(own_bundle)
    with subprocess.Popen(
        [sys.executable, "-m", "vggdeploy", "optimize", own_bundle, "--step", "int8"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "quantising" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(60)
    assert code == 130, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert files(own_bundle) == before
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_every_method_ends_in_proven_variants(
    bundle_dir: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    command = ["optimize", str(bundle_dir), "--step", "int8", "-o", str(out), "--calibration-method", method, "--json"]
    assert run(command) == 0
    found = {v["name"]: v for v in json.loads(capsys.readouterr().out)["variants"]}
    for name in ("onnx-int8", "onnx-int8-symmetric", "openvino-int8"):
        assert found[name]["parity"]["verdict"] == "pass"
        assert found[name]["quantisation"]["method"] == method
