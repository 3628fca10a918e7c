"""What networks begin from: a teacher that has not seen what judges, and a backbone that fits; else they are refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import pytest
import torch
from safetensors.torch import save_file

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.data.sources import default_preprocess, get_dataset
from vggdeploy.errors import CheckpointError
from vggdeploy.fit import finish, ladder, latency, material
from vggdeploy.fit.family import BANDS, Family
from vggdeploy.fit.fit import fit
from vggdeploy.fit.ladder import Ladder
from vggdeploy.fit.material import Material
from vggdeploy.fit.starts import Backbone, Starts, why_not_cut
from vggdeploy.fit.trials import Settings
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.optimize.steps.widths import macs_of, widths_of
from vggdeploy.records import to_json
from vggdeploy.records.fit import FitGoal, Start
from vggdeploy.search.goals import Budget
from vggdeploy.spec import ModelSpec
from vggdeploy.types import silent


@pytest.fixture(scope="module")
def folds() -> Material:
    return Material.of("digits", None, seed=0, on_progress=silent)


@pytest.fixture(scope="module")
def digits() -> Material:
    """The digits as they are divided, as if they were many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "FEW", 0)
        return Material.of("digits", None, seed=0, on_progress=silent)


@pytest.fixture(scope="module")
def weights(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights that does not say what it was trained on."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in load_model(checkpoint).state_dict().items()}, path)
    return path


def changed(checkpoint: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The checkpoint with another record of its training."""
    shutil.copytree(checkpoint, target)
    about = read_checkpoint(checkpoint)
    training = msgspec.json.decode(msgspec.json.encode(about.training))
    change(training)
    (target / CHECKPOINT_NAME).write_bytes(to_json(msgspec.structs.replace(about, training=training)))
    return target


def test_a_teacher_that_has_not_seen_what_judges_may_be_cut(checkpoint: Path, digits: Material) -> None:
    assert why_not_cut(checkpoint, digits) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda training: training["recipe"].update(hold_out=False),  # it has learned the validation images
        lambda training: training["recipe"].update(dataset="mnist"),  # whatever else its record says
        lambda training: training["samples"].update(
            test=training["samples"]["test"] - 1
        ),  # they were divided otherwise
        lambda training: training["samples"].update(validation=0),
        lambda training: training.clear(),  # nobody knows what it has seen
    ],
)
def test_a_teacher_that_may_have_seen_validation_or_test_images_is_not_cut(
    change: Callable[[dict[str, Any]], object], checkpoint: Path, digits: Material, tmp_path: Path
) -> None:
    teacher = changed(checkpoint, tmp_path / "teacher", change)
    assert why_not_cut(teacher, digits)
    starts = Starts.of(digits, teacher, None)
    assert starts.original is None
    assert starts.left_out


def test_of_few_images_all_judge_so_no_teacher_is_cut(checkpoint: Path, folds: Material) -> None:
    assert "all of them judge in turn" in why_not_cut(checkpoint, folds)


def test_a_teacher_of_another_data_set_is_not_cut(checkpoint: Path, digits: Material, tmp_path: Path) -> None:
    about = msgspec.structs.replace(read_checkpoint(checkpoint), dataset="mnist")
    save_checkpoint(tmp_path / "teacher", load_model(checkpoint), about)
    assert "does not say" in why_not_cut(tmp_path / "teacher", digits)


@pytest.mark.late
def test_a_cut_teacher_is_as_fast_as_was_asked_and_has_the_teachers_weights(checkpoint: Path, digits: Material) -> None:
    original = Starts.of(digits, checkpoint, None).original
    assert original is not None
    whole = load_model(checkpoint)
    target = 0.2 * macs_of(whole.spec)
    spec = original.sized(target, macs_of)
    assert abs(math.log(macs_of(spec) / target)) < 0.3
    small = original.cut(spec)
    assert widths_of(small.spec) == widths_of(spec)
    mine, theirs = (model.features[0].weight.detach().flatten(1) for model in (small, whole))
    assert all(any(torch.equal(row, other) for other in theirs) for row in mine)
    assert original.sized(10 * macs_of(whole.spec), macs_of) == whole.spec  # no wider than it is


@pytest.mark.late
def test_a_frozen_backbone_stays_and_a_tuned_one_learns(weights: Path, digits: Material, tmp_path: Path) -> None:
    starts = Starts.of(digits, None, str(weights))
    assert starts.backbone is not None
    spec = starts.backbone.model.spec
    family = Family.of(digits.dataset).on(spec.image_size, Start.FROZEN, Start.TUNED)
    rungs = Ladder(digits, tmp_path, 0, 1, None, starts)
    given = starts.backbone.model.features.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "_IMAGES", 1300)
        for number, shape in enumerate(family.first(BANDS)):
            rungs.begin(number, shape, spec)
            found = rungs.climb(number, shape, 0, lambda step, part: None)
            assert found.hits > 0.3 * found.samples  # of ten digits, after an epoch of a new head
            learned = load_model(rungs.path(number, 1)).features.state_dict()
            same = [torch.equal(learned[name], tensor) for name, tensor in given.items()]
            assert all(same) == (shape.start is Start.FROZEN)


def broken(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state["features.0.weight"][0, 0, 0, 0] = math.nan
    return state


def other_channels(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"features.0.weight": state["features.0.weight"].repeat(1, 3, 1, 1)}


def no_vgg(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3), "conv1.weight": torch.zeros(64, 3, 7, 7)}


@pytest.mark.parametrize(
    ("change", "told"), [(broken, "NaN"), (other_channels, "it takes RGB images"), (no_vgg, "is no VGG")]
)
def test_a_backbone_that_does_not_fit_is_refused_before_any_work(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    told: str,
    checkpoint: Path,
    digits: Material,
    tmp_path: Path,
) -> None:
    state = change({name: tensor.clone() for name, tensor in load_model(checkpoint).state_dict().items()})
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=told) as refused:
        Backbone.of(str(tmp_path / "odd.safetensors"), digits)
    assert refused.value.hint


def test_a_backbone_of_the_same_pictures_is_a_teacher(
    checkpoint: Path, folds: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="was trained on digits itself"):
        Backbone.of(str(checkpoint), folds)
    line = ["fit", "digits", "-o", str(tmp_path / "b"), "--min-accuracy", "30", "--init", str(tmp_path / "none.pth")]
    assert run(line) == 1
    assert "none.pth does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("written", ["folder:photos", "folder:photos/", "folder+skip-bad:photos"])
def test_a_backbone_of_the_same_folder_is_one_however_its_path_is_written(
    written: str, digits: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec.named("vgg11", width=0.125, in_channels=1, classes=10, image_size=32, hidden=32)
    about = Checkpoint(
        spec=spec, preprocess=default_preprocess("digits", 32), labels=tuple("0123456789"), dataset=written
    )
    save_checkpoint(tmp_path / "backbone", new_vgg(spec), about)
    Backbone.of(str(tmp_path / "backbone"), digits)
    with pytest.raises(CheckpointError, match="itself, with images that judge here"):
        Backbone.of(str(tmp_path / "backbone"), replace(digits, name=f"folder:{tmp_path / 'photos'}"))


def test_a_backbone_from_elsewhere_brings_its_own_mean_and_its_own_size(
    checkpoint: Path, digits: Material, tmp_path: Path
) -> None:
    spec = ModelSpec.named("vgg11", width=0.125, in_channels=1, classes=7, image_size=64, hidden=32)
    before = read_checkpoint(checkpoint).preprocess
    about = Checkpoint(
        spec=spec, preprocess=msgspec.structs.replace(before, crop=64, resize=64, mean=(0.25,), std=(0.125,)),
        labels=tuple("abcdefg"), dataset="elsewhere",
    )  # fmt: skip
    save_checkpoint(tmp_path / "elsewhere", new_vgg(spec), about)
    found = Backbone.of(str(tmp_path / "elsewhere"), digits)
    assert found.preprocess.mean == (0.25,)
    assert (found.model.spec.image_size, found.model.spec.classes) == (32, 10)  # digits are small; five pools need 32
    assert found.begun(1).spec == found.model.spec


@pytest.mark.parametrize("starts", [(Start.FRESH, Start.PRUNED), (Start.FROZEN, Start.TUNED)])
def test_every_start_is_asked_for_and_optuna_knows_it_again(starts: tuple[Start, ...]) -> None:
    family = Family.of(get_dataset("fashion-mnist"), teacher_size=32).on(32, *starts)
    assert [shape.start for shape in family.first(2)] == list(starts)
    assert family.teacher
    for shape in family.first(2):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(family.parameters(shape))
        assert family.suggest(study.ask()) == shape
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {family.suggest(study.ask()).start for _ in range(30)}
    assert seen == set(starts)


@pytest.mark.slow
def test_a_fit_tries_what_was_given_beside_fresh_networks(
    weights: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name, value in (
        (ladder, "_IMAGES", 1300), (ladder, "FACTOR", 1), (latency, "STEPS", ()), (latency, "_SECONDS", 0.05),
        (finish, "_SECONDS", 0.05), (finish, "_ROUNDS", 3),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, value)
    report = fit(
        "digits", tmp_path / "b", FitGoal(accuracy=0.3), Budget(trials=3),
        Settings(threads=1, samples=50, init=str(weights)),
    )  # fmt: skip
    assert [trial.shape.start for trial in report.trials] == [Start.FRESH, Start.FROZEN, Start.TUNED]
    assert report.trials[1].band == report.trials[2].band == BANDS
    monkeypatch.setattr(material, "FEW", 0)
    cut = fit(
        str(checkpoint), tmp_path / "c", FitGoal(latency_ms=1e6), Budget(trials=3), Settings(threads=1, samples=50)
    )
    assert Start.PRUNED in {trial.shape.start for trial in cut.trials}
    assert not any("not made narrower" in note for note in cut.notes)
    both = {trial.band: trial.latency.ms for trial in cut.trials if trial.shape.start is Start.FRESH}
    pruned = next(trial for trial in cut.trials if trial.shape.start is Start.PRUNED)
    assert 1 / 4 < pruned.latency.ms / both[pruned.band] < 4  # it competes in its band of speed
    assert np.isfinite(cut.test.rate)
