"""A run that was killed goes on as if nothing had been: to the last bit of the weights."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import SafetensorError

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.errors import CheckpointError, TrainingError, UsageError
from vggdeploy.model.weights import load_model
from vggdeploy.train import state, step
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.record import TrainingRecord, TrainingStep
from vggdeploy.train.state import RESUME_NAME, STATE_NAME

pytestmark = pytest.mark.late

# Dropout, augmentation, momentum, a moving learning rate and batch norm: whatever a resumed run could get wrong.
QUICK = Recipe(
    width=0.05, hidden=16, epochs=3, batch_size=64, per_class=30, augment=("flip", "crop")
)  # 5 steps an epoch

# A real process that trains, saves after every step, and kills itself where it is told.
PROCESS = """
import os, signal, sys
import msgspec
import vggdeploy.system.files, vggdeploy.train.run, vggdeploy.train.state
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.recipe import Recipe

output, recipe, resume, moment, when = sys.argv[1:]
vggdeploy.train.state.SAVE_EVERY, vggdeploy.train.state.MAX_SHARE = 0.0, 1e9
calls = {}

def deadly(module, name, at):
    real = getattr(module, name)
    def wrapped(*args, **kwargs):
        calls[name] = calls.get(name, 0) + 1
        if calls[name] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(module, name, wrapped)

def step(now):
    if moment == "step" and now.step == int(when):
        os.kill(os.getpid(), signal.SIGKILL)

if moment == "evaluate":
    deadly(vggdeploy.train.run, "evaluate", int(when))
elif moment == "save":  # the draft is written and does not stand in its place yet
    deadly(vggdeploy.system.files, "_place", int(when))
elif moment == "remove":
    deadly(vggdeploy.train.state.shutil, "rmtree", int(when))
recipe = msgspec.json.decode(recipe, type=Recipe)
train(recipe, output=output, options=TrainOptions(resume=resume == "resume", threads=1), on_step=step)
"""


def process(output: Path, recipe: Recipe, moment: str, *, resume: bool = True) -> int:
    """Run it; returns how it ended."""
    name, _, when = moment.partition(" ")
    arguments = [str(output), msgspec.json.encode(recipe).decode(), "resume" if resume else "start", name, when or "0"]
    done = subprocess.run([sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def sha256(output: Path) -> str:
    return read_checkpoint(output).weights_sha256


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = train(QUICK, output=tmp_path / "whole", options=TrainOptions(threads=1))
    target = tmp_path / "killed"
    assert process(target, QUICK, "step 3", resume=False) == -signal.SIGKILL
    assert process(target, QUICK, "save 5") == -signal.SIGKILL  # at the end of an epoch
    assert process(target, QUICK, "evaluate 2") == -signal.SIGKILL  # between validation and test
    assert process(target, QUICK, "never") == 0
    assert sha256(target) == whole.checkpoint.weights_sha256
    found = msgspec.convert(read_checkpoint(target).training, TrainingRecord)
    timeless = [msgspec.structs.replace(e, seconds=0) for e in found.history]
    assert timeless == [msgspec.structs.replace(e, seconds=0) for e in whole.training.history]
    assert (target / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]  # no state, no draft of one


class Killed(Exception):
    """Ends a run in this process as abruptly as a signal would."""


def interrupt(recipe: Recipe, output: Path, last: int, *, overwrite: bool = False) -> None:
    def at(now: TrainingStep) -> None:
        if now.step == last:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, output=output, options=TrainOptions(overwrite=overwrite, threads=1), on_step=at)


@pytest.fixture(autouse=True)
def saved_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(state, "MAX_SHARE", 1e9)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw", "lr": 0.001, "schedule": "one-cycle"},
        {"precision": "bf16", "clip": 0.5, "keep": "last"},
        {"optimizer": "muon", "lr_rest": 0.02},
        {"max_steps": 9},
        {"freeze": "features", "unfreeze_every": 1, "lr_features": 0.001, "init": True, "epochs": 3},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("last", [5, 8])
def test_every_kind_of_run_resumes(
    tmp_path: Path, checkpoint: Path, change: dict[str, Any], last: int, finished: dict[str, str]
) -> None:
    if "init" in change:
        change = {**change, "init": str(checkpoint), "width": 0.125, "hidden": 128}
    recipe = msgspec.structs.replace(QUICK, **{"epochs": 2, **change})
    key = str(sorted(change))
    if key not in finished:
        finished[key] = train(
            recipe, output=tmp_path / "whole", options=TrainOptions(threads=1)
        ).checkpoint.weights_sha256
    interrupt(recipe, tmp_path / "broken", last)
    resumed = train(recipe, output=tmp_path / "broken", options=TrainOptions(resume=True, threads=1))
    assert resumed.checkpoint.weights_sha256 == finished[key]


@pytest.fixture(scope="module")
def finished() -> dict[str, str]:
    return {}


def test_the_best_epoch_so_far_is_a_checkpoint(tmp_path: Path) -> None:
    interrupt(QUICK, tmp_path / "ckpt", 12)
    best = tmp_path / "ckpt.resume" / "best"
    record = msgspec.convert(read_checkpoint(best).training, TrainingRecord)
    assert len(record.history) == record.best_epoch == state.Saver(tmp_path / "ckpt").standing().best_epoch
    assert load_model(best).spec == QUICK.model_spec()


def test_an_interrupted_run_is_not_forgotten_by_accident(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    interrupt(QUICK, target, 7)
    with pytest.raises(UsageError, match="--resume; or start again: --force"):
        train(QUICK, output=target)
    interrupt(msgspec.structs.replace(QUICK, seed=5), target, 2, overwrite=True)
    standing = state.Saver(target).standing()
    assert (standing.recipe.seed, standing.step) == (5, 1)


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    interrupt(QUICK, tmp_path / "ckpt", 7)
    other = msgspec.structs.replace(QUICK, lr=0.1, epochs=4)
    with pytest.raises(UsageError, match=r"another recipe: epochs 3 → 4, lr 0\.05 → 0\.1"):
        train(other, output=tmp_path / "ckpt", options=TrainOptions(resume=True))


def test_other_images_are_refused(tmp_path: Path) -> None:
    interrupt(QUICK, tmp_path / "ckpt", 7)
    file = tmp_path / "ckpt.resume" / RESUME_NAME
    file.write_text(file.read_text().replace(state.Saver(tmp_path / "ckpt").standing().data, "0" * 64))
    with pytest.raises(UsageError, match="other images of digits"):
        train(QUICK, output=tmp_path / "ckpt", options=TrainOptions(resume=True))


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run to resume: .*ckpt\.resume"):
        train(QUICK, output=tmp_path / "ckpt", options=TrainOptions(resume=True))


def test_force_is_given_once(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "ckpt"
    train(msgspec.structs.replace(QUICK, epochs=1), output=target)
    interrupt(QUICK, target, 7, overwrite=True)
    before = sha256(target)
    assert train(QUICK, output=target, options=TrainOptions(resume=True)).checkpoint.weights_sha256 != before


@pytest.mark.parametrize(
    ("name", "damage", "cause"),
    [
        (RESUME_NAME, lambda d: d[:100], "cannot be read"),
        (RESUME_NAME, lambda d: d.replace(b'"schema_version": 1', b'"schema_version": 9', 1), "schema version 9"),
        (STATE_NAME, lambda d: d[:1000], "cannot be read"),
        (STATE_NAME, None, "cannot be read"),
    ],
)
def test_a_damaged_state_is_one_clear_error(tmp_path: Path, name: str, damage: Any, cause: str) -> None:
    interrupt(QUICK, tmp_path / "ckpt", 3)
    file = tmp_path / "ckpt.resume" / name
    data = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(data))
    with pytest.raises(CheckpointError, match=cause):
        train(QUICK, output=tmp_path / "ckpt", options=TrainOptions(resume=True))


def test_a_full_disk_offers_only_what_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is the run's own: before the first one is saved there is nothing that ``--resume`` could go on from."""
    target = tmp_path / "ckpt"

    def full(tensors: Any, path: Path) -> None:
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(state.safetensors.torch, "save_file", full)
        with pytest.raises(
            TrainingError, match=r"cannot be saved .*No space left.* — free some disk space, and start again"
        ):
            train(QUICK, output=target, options=TrainOptions(threads=1))
    interrupt(QUICK, target, 3)
    monkeypatch.setattr(state.safetensors.torch, "save_file", full)
    with pytest.raises(TrainingError, match="go on from the state before: --resume"):
        train(QUICK, output=target, options=TrainOptions(resume=True, threads=1))


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "ckpt"
    good = train(QUICK, output=tmp_path / "good", options=TrainOptions(threads=1))
    with monkeypatch.context() as patch:
        losses, calls = step._losses, [0]

        def poisoned(*args: Any, **options: Any) -> torch.Tensor:
            calls[0] += 1
            return losses(*args, **options) * (float("nan") if calls[0] == 2 * 9 - 1 else 1.0)  # two a step

        patch.setattr(step, "_losses", poisoned)
        with pytest.raises(TrainingError, match=r"nan at step 9 of 15 — .*best epoch so far is the checkpoint"):
            train(QUICK, output=target, options=TrainOptions(threads=1))
    assert not target.exists()
    assert load_model(tmp_path / "ckpt.resume" / "best").spec == QUICK.model_spec()
    # What was saved is from before: without the poison the run goes on to the same end.
    assert train(QUICK, output=target, options=TrainOptions(resume=True, threads=1)).checkpoint.weights_sha256 == (
        good.checkpoint.weights_sha256
    )
