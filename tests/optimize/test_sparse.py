"""``optimize --step sparse``: zeros that outlive the fine-tuning, what they cost, and claims of 2:4 that are not true."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from vggdeploy.build import options as build_options
from vggdeploy.build.engines import build_into
from vggdeploy.build.options import BuildOptions
from vggdeploy.build.request import BuildPlan
from vggdeploy.build.sparsity import sparse_kernels
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.errors import TargetError, UsageError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.formats.sparsity import sparse_weights
from vggdeploy.optimize.steps.structure import quantisation_aware_checkpoint, sparse_checkpoint
from vggdeploy.optimize.tuning import Tuning, TuningJob
from vggdeploy.records import to_json
from vggdeploy.verify.readback import wrong_precisions

pytestmark = pytest.mark.late
PRUNED = ("conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc6", "fc7", "logits")


@pytest.fixture(scope="module")
def sparse(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after the command, with its fine-tuning. Treat it as read-only."""
    out = tmp_path_factory.mktemp("sparse") / "checkpoint"
    assert run(["optimize", str(checkpoint), "--step", "sparse", "--epochs", "2", "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("sparse-bundle") / "bundle"
    return export_bundle(sparse, root, ExportOptions(formats=["onnx-fp32", "onnx-fp16"], samples=50))


def layers(path: Path) -> tuple[str, ...]:
    return sparse_weights(path / WEIGHTS_NAME, read_checkpoint(path).spec)


def test_the_zeros_outlive_the_fine_tuning_and_the_rest_learned(checkpoint: Path, sparse: Path) -> None:
    from vggdeploy.model.weights import load_model

    assert layers(checkpoint) == ()
    assert layers(sparse) == PRUNED
    before, after = load_model(checkpoint).state_dict(), load_model(sparse).state_dict()
    key = "features.8.weight"
    assert (after[key] == 0).sum() == after[key].numel() // 2
    moved = (after[key] != before[key]) & (after[key] != 0)
    assert moved.sum() > 0.9 * after[key].numel() / 2


def test_what_it_cost_is_recorded_against_the_original(checkpoint: Path, sparse: Path) -> None:
    step = read_checkpoint(sparse).steps[-1]
    assert step.step == "sparse"
    assert step.sparsity is not None and step.sparsity.layers == PRUNED
    assert step.sparsity.sha256 == read_checkpoint(sparse).weights_sha256
    assert set(step.drop) == {"validation", "test"}
    assert step.untuned < 1.0 and step.accuracy["validation"] > 0.8
    assert step.before.macs == step.after.macs  # nothing but a sparse kernel has less to do
    assert step.source == read_checkpoint(checkpoint).weights_sha256


def test_without_fine_tuning_it_is_sparse_at_once_and_a_limit_is_held(checkpoint: Path, tmp_path: Path) -> None:
    quick = TuningJob(tuning=Tuning(epochs=0))
    sparse_checkpoint(checkpoint, tmp_path / "quick", job=quick)
    assert layers(tmp_path / "quick") == PRUNED
    strict = TuningJob(tuning=Tuning(epochs=0), max_drop=0.001)
    with pytest.raises(TargetError, match="accuracy fell by"):
        sparse_checkpoint(checkpoint, tmp_path / "strict", job=strict)
    assert not (tmp_path / "strict").exists()


def test_qat_afterwards_keeps_the_zeros(sparse: Path, tmp_path: Path) -> None:
    quantisation_aware_checkpoint(sparse, tmp_path / "aware", job=TuningJob(tuning=Tuning(epochs=1)))
    assert layers(tmp_path / "aware") == PRUNED


def test_training_on_keeps_them_only_where_that_is_asked(sparse: Path, tmp_path: Path) -> None:
    common = ["train", "--init", str(sparse), "--arch", "init", "--epochs", "1", "--lr", "0.001"]
    assert run([*common, "--keep-zeros", "-o", str(tmp_path / "kept")]) == 0
    assert layers(tmp_path / "kept") == PRUNED
    assert run([*common, "-o", str(tmp_path / "dense")]) == 0
    assert layers(tmp_path / "dense") == ()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_no_optimiser_moves_a_held_zero(name: str) -> None:
    from vggdeploy.model.vgg import new_vgg
    from vggdeploy.optimize.steps.sparse import pruned_to_2_4
    from vggdeploy.spec import ModelSpec
    from vggdeploy.train.optimizer import new_optimizer
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.train.zeros import hold_zeros

    model = pruned_to_2_4(new_vgg(ModelSpec.named("vgg11", width=0.0625, image_size=32, hidden=16, classes=4)))[0]
    zero = {key: w == 0 for key, w in model.named_parameters() if w.ndim > 1}
    hold_zeros(model)
    optimiser = new_optimizer(Recipe(optimizer=name, lr=0.05, weight_decay=0.1), model)
    for _ in range(5):
        optimiser.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimiser.step()
    for key, weight in model.named_parameters():
        if key in zero and zero[key].any():
            assert (weight[zero[key]] == 0).all(), key


def test_narrow_and_folded_files_stay_sparse(bundle: Bundle) -> None:
    from vggdeploy.build.sparsity import sparse_layers

    assert sparse_layers(bundle, bundle.manifest.variant("onnx-fp32")) == PRUNED
    assert sparse_layers(bundle, bundle.manifest.variant("onnx-fp16")) == PRUNED
    assert wrong_precisions(bundle) == {}


def test_dense_weights_are_refused_before_a_build(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(build_options._NOT_IN_RTX, "sparse")
    plan = BuildPlan(engine="rtx", targets=["ada"], options=BuildOptions(sparse=True))
    with pytest.raises(UsageError, match="no layer of onnx-fp16 has 2:4 sparse weights") as caught:
        build_into(Bundle.open(bundle_dir), plan)
    assert "--step sparse" in caught.value.hint


def engine(bundle: Bundle, root: Path, monkeypatch: pytest.MonkeyPatch, *, sparse: bool = True) -> Bundle:
    """With the real builder of TensorRT for RTX, which takes the flag, and for which users are refused it."""
    monkeypatch.delitem(build_options._NOT_IN_RTX, "sparse", raising=False)
    copy = Bundle.open(shutil.copytree(bundle.root, root))
    return build_into(copy, BuildPlan(engine="rtx", targets=["ada"], options=BuildOptions(sparse=sparse))).bundle


def test_a_build_records_what_was_sparse_and_that_the_log_is_silent(bundle, tmp_path, monkeypatch) -> None:
    built = engine(bundle, tmp_path / "b", monkeypatch)
    record = built.manifest.variant("tensorrt-rtx-fp16-sm89").build
    assert record is not None and record.sparse is not None
    assert record.sparse.layers == PRUNED
    assert (record.sparse.eligible, record.sparse.chosen) == (None, None)
    assert wrong_precisions(built) == {}


def test_why_rtx_is_refused_the_flag_changes_no_byte_of_its_engines(bundle, tmp_path, monkeypatch) -> None:
    """When this fails the library has learned it, and the refusal can go."""
    digests = {
        sparse: made.sha256(made.manifest.variant("tensorrt-rtx-fp16-sm89").path)
        for sparse in (True, False)
        for made in [engine(bundle, tmp_path / str(sparse), monkeypatch, sparse=sparse)]
    }
    assert digests[True] == digests[False]


def test_a_record_of_an_engine_that_claims_more_than_the_file_holds_fails(bundle, tmp_path, monkeypatch) -> None:
    built = engine(bundle, tmp_path / "b", monkeypatch)
    variant = built.manifest.variant("tensorrt-rtx-fp16-sm89")
    claimed = msgspec.structs.replace(variant.build.sparse, layers=("conv1_1", *variant.build.sparse.layers))
    forged = msgspec.structs.replace(variant, build=msgspec.structs.replace(variant.build, sparse=claimed))
    with update_bundle(built) as draft:
        draft.manifest = built.manifest.with_variants(forged)
    cause = wrong_precisions(Bundle.open(built.root))[variant.name]
    assert cause == "conv1_1 is not 2:4 sparse, and its record says otherwise"
    assert run(["inspect", str(built.root)]) == 3


def test_a_checkpoint_that_claims_to_be_sparse_and_is_not_fails(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.root, tmp_path / "b"))
    checkpoint = copy.checkpoint()
    step = checkpoint.steps[-1]
    claimed = msgspec.structs.replace(step.sparsity, layers=("conv1_1", *step.sparsity.layers))
    forged = msgspec.structs.replace(checkpoint, steps=(msgspec.structs.replace(step, sparsity=claimed),))
    with update_bundle(copy) as draft:
        draft.write(f"checkpoint/{CHECKPOINT_NAME}", to_json(forged))
    assert wrong_precisions(Bundle.open(copy.root))["torch-fp32"].startswith("conv1_1 is not 2:4 sparse")


def test_an_onnx_that_lost_its_zeros_no_longer_counts(bundle: Bundle, tmp_path: Path) -> None:
    from vggdeploy.build.sparsity import sparse_layers

    copy = Bundle.open(shutil.copytree(bundle.root, tmp_path / "b"))
    path = copy.manifest.variant("onnx-fp16").path
    model = onnx.load(copy.path(path))
    for tensor in model.graph.initializer:
        if tensor.name == "features.8.weight":
            weights = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.where(weights == 0, np.float16(1e-4), weights), tensor.name))
    with update_bundle(copy) as draft:
        draft.write(path, model.SerializeToString())
    forged = Bundle.open(copy.root)
    assert "conv3_2" not in sparse_layers(forged, forged.manifest.variant("onnx-fp16"))


LOG = """[INFO] (Sparsity) Found 13 layer(s) eligible to use sparse tactics
[VERBOSE] (Sparsity) Chose 2 layer(s) using sparse tactics: conv3_1, conv3_2
[INFO] (Sparsity) Found 16 layer(s) eligible to use sparse tactics: conv2_1, conv3_1
[INFO] (Sparsity) Chose 4 layer(s) using sparse tactics
"""


def test_tensorrts_log_is_read_and_its_last_pass_counts() -> None:
    found = sparse_kernels(("conv3_1",), LOG)
    assert (found.eligible, found.chosen) == (16, 4)
    assert sparse_kernels(("conv3_1",), "[INFO] nothing of it").chosen is None
