"""A trained network becomes smaller, step by step, and everything that works on a checkpoint works on what is left."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from vggdeploy.errors import CheckpointError, DataError, TargetError, UsageError
from vggdeploy.evaluate.evaluate import evaluate
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.layers import summarise
from vggdeploy.model.weights import load_model
from vggdeploy.optimize import fine_tune as restructure
from vggdeploy.optimize.held_out import HeldOut
from vggdeploy.optimize.steps.structure import low_rank_checkpoint, prune_checkpoint, quantisation_aware_checkpoint
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.optimize.tuning import Tuning, TuningJob, unpack
from vggdeploy.records import StepRecord, to_json
from vggdeploy.system.optional import installed
from vggdeploy.train.loop import train
from vggdeploy.train.recipe import Recipe
from vggdeploy.types import Verdict
from vggdeploy.verify.localise import localise

pytestmark = pytest.mark.late

UNTUNED = TuningJob(tuning=Tuning(epochs=0))


@pytest.fixture(scope="module")
def pruned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StepRecord]:
    path = tmp_path_factory.mktemp("pruned") / "checkpoint"
    return path, prune_checkpoint(checkpoint, path, 0.5, job=TuningJob(tuning=Tuning(epochs=1), threads=1))


@pytest.fixture(scope="module")
def small(pruned: tuple[Path, StepRecord], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StepRecord]:
    """Pruned, and then of low rank."""
    path = tmp_path_factory.mktemp("small") / "checkpoint"
    ranks = {"fc6": 12, "fc7": 20, "conv3_2": 16, "conv5_1": 20}
    return path, low_rank_checkpoint(pruned[0], path, ranks, job=UNTUNED)


def test_pruning_halves_the_work_and_keeps_what_was_learned(checkpoint: Path, pruned: tuple[Path, StepRecord]) -> None:
    path, step = pruned
    before, after = read_checkpoint(checkpoint), read_checkpoint(path)
    assert macs_of(after.spec) <= 0.5 * macs_of(before.spec)
    assert (step.before.macs, step.after.macs) == (macs_of(before.spec), macs_of(after.spec))
    assert step.after.parameters == summarise(after.spec).parameters < step.before.parameters
    assert step.after.bytes == (path / "model.safetensors").stat().st_size
    assert step.accuracy["test"] > 0.9
    assert step.untuned > 0.8  # already: the channels that went did not matter much
    assert set(step.sensitivity) == {x.name for x in summarise(before.spec).layers if x.kind in ("conv", "linear")} - {
        "fc8"
    }
    assert after.steps == (step,)
    assert step.teacher == before.weights_sha256  # the original taught


def test_the_record_says_what_was_lost_against_what_was_trained(
    checkpoint: Path, small: tuple[Path, StepRecord], pruned: tuple[Path, StepRecord]
) -> None:
    path, step = small
    found, trained = read_checkpoint(path), read_checkpoint(checkpoint)
    assert found.origin is not None
    assert found.origin.sha256 == trained.weights_sha256  # not the pruned one: the one that was trained
    assert [s.step for s in found.steps] == ["prune", "low-rank"]
    assert step.source == read_checkpoint(pruned[0]).weights_sha256
    # The drop is what comparing both, image by image, says.
    data = HeldOut.of(trained)
    before, after = data.hits(load_model(checkpoint)), data.hits(load_model(path))
    for split, drop in step.drop.items():
        stored = unpack(found.origin.hits[split], len(before[split]))
        assert stored is not None
        np.testing.assert_array_equal(stored, before[split])
        assert drop.lost == (before[split] & ~after[split]).sum()
        assert drop.won == (~before[split] & after[split]).sum()
        assert step.accuracy[split] == after[split].mean()
        assert found.origin.accuracy[split] == before[split].mean()
    assert evaluate(path).accuracy.rate == step.accuracy["test"]


def test_quantisation_aware_fine_tuning_keeps_the_structure_and_its_accuracy_in_int8(
    checkpoint: Path, tmp_path: Path
) -> None:
    step = quantisation_aware_checkpoint(checkpoint, tmp_path / "aware", job=TuningJob(tuning=Tuning(epochs=1)))
    before, after = read_checkpoint(checkpoint), read_checkpoint(tmp_path / "aware")
    assert after.spec == before.spec
    assert (step.step, step.epochs) == ("qat", 1)
    assert after.training["recipe"]["quantisation_aware"] is True
    assert step.drop["validation"].drop < 0.03
    with pytest.raises(UsageError, match="qat without an epoch"):
        quantisation_aware_checkpoint(checkpoint, tmp_path / "none", job=TuningJob(tuning=Tuning(epochs=0)))


def test_a_small_network_is_exported_built_and_proven_like_any_other(
    small: tuple[Path, StepRecord], tmp_path: Path
) -> None:
    bundle = export_bundle(small[0], tmp_path / "bundle", ExportOptions(outputs=("logits", "fc6", "fc7", "relu4_2")))
    assert {v.name: v.verdict for v in bundle.manifest.variants} == dict.fromkeys(
        ("torch-fp32", "onnx-fp32", "onnx-fp16", "torchscript-fp32"), Verdict.PASS
    )
    assert bundle.manifest.spec.ranks == (12, 20)
    report = localise(bundle, "onnx-fp16")
    assert report.culprit is None
    names = [row.layer for row in report.layers]
    assert names[:5] == ["preprocess", "conv1_1", "relu1_1", "pool1", "conv2_1"]
    assert names[-3:] == ["fc6", "fc7", "logits"]
    assert len(names) == 1 + 8 + 8 + 5 + 3  # each layer once, whether it is a product or not
    if installed("tensorrt_rtx"):
        engine = build_into(bundle, BuildPlan(engine="tensorrt-rtx")).variant
        assert engine.proof is not None
        assert engine.proof.layers == {"fp16": 10 + 5}  # two of eight convolutions are two; so are fc6 and fc7


def test_a_small_network_is_trained_on_and_keeps_its_story(small: tuple[Path, StepRecord], tmp_path: Path) -> None:
    path, step = small
    recipe = Recipe(arch="init", init=str(path), lr=1e-9, epochs=1, per_class=2)
    done = train(recipe, output=tmp_path / "more")
    assert done.checkpoint.spec == read_checkpoint(path).spec
    assert done.checkpoint.preprocess == read_checkpoint(path).preprocess
    assert done.checkpoint.steps[-1] == step
    assert done.checkpoint.origin == read_checkpoint(path).origin
    ours, theirs = load_model(tmp_path / "more").classifier.state_dict(), load_model(path).classifier.state_dict()
    for key, tensor in theirs.items():
        np.testing.assert_allclose(ours[key], tensor, atol=1e-6)
    fresh = train(msgspec.structs.replace(recipe, fresh="classifier"), output=tmp_path / "fresh")
    assert fresh.checkpoint.origin is None  # another network with the same widths
    with pytest.raises(CheckpointError, match="its convolutions are"):
        train(Recipe(width=0.125, hidden=128, init=str(path)), output=tmp_path / "other")


@pytest.mark.slow
def test_the_same_numbers_give_the_same_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    keep = {"conv4_1": 0.5, "fc6": 0.25}
    job = TuningJob(tuning=Tuning(epochs=1, lr=0.005), threads=1)
    first = prune_checkpoint(checkpoint, tmp_path / "a", keep, job=job)
    second = prune_checkpoint(checkpoint, tmp_path / "b", keep, job=job)
    assert read_checkpoint(tmp_path / "a").weights_sha256 == read_checkpoint(tmp_path / "b").weights_sha256
    assert first.widths == second.widths == {"conv4_1": 32, "fc6": 32}
    assert read_checkpoint(tmp_path / "a").spec.hidden == (32, 128)


def test_a_drop_that_is_too_large_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TargetError, match=r"accuracy fell by .* points \(up to .*143 images\), the limit is 0.5"
    ) as caught:
        prune_checkpoint(checkpoint, tmp_path / "out", 0.1, job=TuningJob(tuning=Tuning(epochs=0), max_drop=0.005))
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ranks", "cause"),
    [
        (129, "rank 129 makes no hidden linear layer smaller — fc6: give 1 to 42; fc7: give 1 to 63"),
        ({"fc6": 65}, "rank 65 of fc6 — its full rank is 64"),
        ({"fc7": 64}, "rank 64 would not make fc7 smaller — give 1 to 63"),
        ({"conv2_1": 17}, "rank 17 would not make conv2_1 smaller — give 1 to 15"),
        ({"fc8": 4}, "unknown layer with a rank 'fc8'"),
        (0, "rank 0 of fc6"),
    ],
)
def test_ranks_that_cannot_be_are_refused(checkpoint: Path, tmp_path: Path, ranks: Any, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        low_rank_checkpoint(checkpoint, tmp_path / "out", ranks, job=UNTUNED)
    assert cause in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_of_low_rank_already(small: tuple[Path, StepRecord], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank 20 would not make fc7 smaller — give 1 to 19"):
        low_rank_checkpoint(small[0], tmp_path / "same", {"fc7": 20}, job=UNTUNED)
    step = low_rank_checkpoint(small[0], tmp_path / "lower", {"fc7": 10}, job=UNTUNED)
    assert read_checkpoint(tmp_path / "lower").spec.ranks == (12, 10)
    assert step.after.parameters < step.before.parameters
    narrow = prune_checkpoint(small[0], tmp_path / "narrow", 0.8, job=UNTUNED)
    assert narrow.after.macs <= 0.8 * narrow.before.macs
    assert read_checkpoint(tmp_path / "narrow").spec.ranks == (12, 20)


@pytest.mark.parametrize("keep", [0.0, 1.5, -1.0, float("nan"), {"conv1_1": 0.0}])
def test_a_share_that_is_none_is_refused(checkpoint: Path, tmp_path: Path, keep: Any) -> None:
    with pytest.raises(UsageError, match="give a number above 0, at most 1"):
        prune_checkpoint(checkpoint, tmp_path / "out", keep, job=UNTUNED)


def test_data_of_other_classes_and_no_data_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the classes of fashion-mnist are not the model's: T-shirt/top, Trouser"):
        prune_checkpoint(checkpoint, tmp_path / "out", job=TuningJob(dataset="fashion-mnist"))
    nameless = edited(checkpoint, tmp_path / "nameless", dataset="")
    with pytest.raises(DataError, match="no data set is known for this model — name one: --data"):
        prune_checkpoint(nameless, tmp_path / "out", job=UNTUNED)
    with pytest.raises(UsageError, match="unknown layer 'conv9_9'"):
        prune_checkpoint(checkpoint, tmp_path / "out", {"conv9_9": 0.5}, job=UNTUNED)


def test_an_origin_of_other_images_is_no_origin(small: tuple[Path, StepRecord], tmp_path: Path) -> None:
    origin = read_checkpoint(small[0]).origin
    assert origin is not None
    for number, change in enumerate(({"dataset": "mnist"}, {"hits": {}}, {"hits": dict.fromkeys(origin.hits, "?")})):
        other = edited(small[0], tmp_path / str(number), origin=msgspec.structs.replace(origin, **change))
        with pytest.raises(CheckpointError, match="start again from the checkpoint that was trained"):
            low_rank_checkpoint(other, tmp_path / "out", {"fc7": 4}, job=UNTUNED)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interruption_or_a_full_disk_leaves_what_stood_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    out = tmp_path / "out"
    shutil.copytree(checkpoint, out)

    def fail(*args: Any, **options: Any) -> None:
        raise fault

    monkeypatch.setattr(restructure, "atomic_write", fail)
    job = TuningJob(tuning=Tuning(epochs=0), overwrite=True)
    with pytest.raises(type(fault)):
        low_rank_checkpoint(checkpoint, out, 8, job=job)
    assert read_checkpoint(out) == read_checkpoint(checkpoint)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UsageError, match="--force"):
        low_rank_checkpoint(checkpoint, out, 8, job=UNTUNED)


def test_an_older_checkpoint_has_no_origin(checkpoint: Path) -> None:
    found = read_checkpoint(checkpoint)
    assert (found.origin, found.steps) == (None, ())
    text = msgspec.json.encode(found).replace(b',"origin":null,"steps":[]', b"")
    assert b"origin" not in text
    assert msgspec.json.decode(text, type=Checkpoint) == found


def edited(source: Path, target: Path, **change: Any) -> Path:
    shutil.copytree(source, target)
    about = msgspec.structs.replace(read_checkpoint(source), **change)
    (target / CHECKPOINT_NAME).write_bytes(to_json(about))
    return target
