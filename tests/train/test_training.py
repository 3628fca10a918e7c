"""The training run: it learns, it repeats itself bit for bit, and what fails leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from vggdeploy.bundle.checkpoint import WEIGHTS_NAME, read_checkpoint
from vggdeploy.data.loaders import ImageSet, load_split
from vggdeploy.errors import IncompatibleError, TrainingError, UsageError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.weights import load_model
from vggdeploy.train import loop, run
from vggdeploy.train.feed import epoch_batches
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.optimizer import learning_rate
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.record import HISTORY_NAME, CurvePoint, TrainingRecord, TrainingStep
from vggdeploy.train.step import Score, evaluate
from vggdeploy.types import Device, Precision

# Narrow, and few steps: what is claimed here holds at any width.
QUICK = Recipe(width=0.05, hidden=16, epochs=2, batch_size=256)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def record(checkpoint: Path) -> TrainingRecord:
    """The record of the shared checkpoint, read back from its file."""
    return msgspec.convert(read_checkpoint(checkpoint).training, TrainingRecord)


def test_it_learns_to_read_digits(record: TrainingRecord) -> None:
    assert record.test_accuracy is not None
    assert record.test_accuracy > 0.9
    assert record.history[-1].loss < record.history[0].loss / 4


def test_the_record_is_of_the_weights_that_were_kept(
    checkpoint: Path, record: TrainingRecord, digits_test: ImageSet
) -> None:
    network = Deployable(load_model(checkpoint), read_checkpoint(checkpoint).preprocess)
    score = evaluate(network, digits_test, device=CPU)
    assert score.accuracy == record.test_accuracy
    assert score.loss == pytest.approx(record.test_loss, rel=1e-4)
    best = max(h.validation_accuracy for h in record.history)
    kept = record.history[record.best_epoch - 1]
    assert record.validation_accuracy == kept.validation_accuracy == best
    assert (record.loss, record.train_accuracy) == (kept.loss, kept.train_accuracy)


def test_without_a_test_split_none_is_opened_and_none_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = QUICK.preprocess()
    train_split, validation = (load_split("digits", split, preprocess) for split in ("train", "validation"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a split was opened")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "open_split", refuse)
        blind = train(QUICK, output=tmp_path / "blind", data=run.Data(train_split, validation, None))
    assert (blind.training.test_accuracy, blind.training.test_loss) == (None, None)
    assert blind.training.samples == {"train": 1295, "validation": 143, "test": 0}
    # The test split had no say before: the weights are the same.
    seen = train(QUICK, output=tmp_path / "seen")
    assert seen.checkpoint.weights_sha256 == blind.checkpoint.weights_sha256
    assert seen.training.test_accuracy is not None


def test_the_record_says_how_it_was_made(checkpoint: Path, record: TrainingRecord) -> None:
    written = read_checkpoint(checkpoint)
    assert record.recipe.model_spec() == written.spec
    assert record.recipe.precision in ("fp32", "bf16", "fp16")  # resolved, not auto
    assert record.recipe.preprocess() == written.preprocess
    assert written.dataset == "digits"
    assert written.labels == tuple("0123456789")
    assert len(record.history) == record.recipe.epochs
    assert record.samples == {"train": 1295, "validation": 143, "test": 359}
    assert record.images_per_second > 0
    assert record.device == "cpu" or record.device.startswith("cuda")
    assert written.tools.keys() == {"vggdeploy", "torch"}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, precision: Precision) -> None:
    recipe = msgspec.structs.replace(QUICK, epochs=1, precision=str(precision), augment=("flip", "crop"))
    for name in ("one", "two"):
        torch.rand(3)  # what the caller drew before does not matter
        train(recipe, output=tmp_path / name)
    one, two = ((tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("one", "two"))
    assert one == two


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    hashes = {
        train(msgspec.structs.replace(QUICK, epochs=1, seed=s), output=tmp_path / str(s)).checkpoint.weights_sha256
        for s in (1, 2)
    }
    assert len(hashes) == 2


def test_the_callers_random_state_and_threads_stay(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(msgspec.structs.replace(QUICK, epochs=1), output=tmp_path / "ckpt", options=TrainOptions(threads=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_test_split_is_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        s: {x.tobytes() for x in load_split("digits", s, QUICK.preprocess()).images} for s in ("validation", "test")
    }
    seen: list[np.ndarray] = []
    forward = Deployable.forward

    def spy(self: Deployable, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.training:
            seen.extend(image.numpy())
        return forward(self, image)

    monkeypatch.setattr(Deployable, "forward", spy)
    train(
        msgspec.structs.replace(QUICK, epochs=1), output=tmp_path / "ckpt", options=TrainOptions(device=Device("cpu"))
    )
    trained = {x.tobytes() for x in seen}
    assert len(seen) == len(trained) == 1295
    assert not trained & held["validation"]
    assert not trained & held["test"]


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 3)])
def test_the_best_epoch_is_kept_or_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, epoch: int
) -> None:
    states: list[torch.Tensor] = []
    scores = {"validation": iter([0.3, 0.8, 0.5]), "test": iter([0.1, 0.2, 0.9])}

    def scripted(network: Deployable, data: ImageSet, **_: object) -> Score:
        states.append(network.features[0].weight.detach().clone())
        return Score(1.0, next(scores[data.split]))

    monkeypatch.setattr(run, "evaluate", scripted)
    result = train(msgspec.structs.replace(QUICK, epochs=3, keep=keep), output=tmp_path / "ckpt")
    assert result.training.best_epoch == epoch  # the test split, best in the third, has no say
    assert result.training.test_accuracy == (0.2, 0.9)[epoch - 2]
    assert torch.equal(load_model(tmp_path / "ckpt").features[0].weight, states[2 * epoch - 1])


def test_progress_counts_every_step_and_ends_each_epoch_with_validation(tmp_path: Path) -> None:
    events: list[TrainingStep] = []
    train(QUICK, output=tmp_path / "ckpt", on_step=events.append)
    steps = [e.step for e in events if e.validation is None]
    ends = [e for e in events if e.validation is not None]
    assert steps == list(range(1, 2 * 6 + 1))  # 1,295 images in batches of at most 256
    assert [(e.epoch, e.step) for e in ends] == [(1, 6), (2, 12)]
    assert all(e.steps == 12 and e.images_per_second > 0 and 0 <= e.accuracy <= 1 for e in events)


def test_a_loss_that_is_no_number_stops_the_run_and_writes_nothing(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(QUICK, arch="vgg11", lr=1e12, warmup=0.0)
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+ of 12 — .*--lr 0\.1$"):
        train(recipe, output=tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_early_stopping_ends_the_run_after_epochs_without_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.8, 0.8, 0.5, 0.9, 0.9])

    def scripted(network: Deployable, data: ImageSet, **_: object) -> Score:
        return Score(1.0, next(scores) if data.split == "validation" else 0.0)

    monkeypatch.setattr(run, "evaluate", scripted)
    done = train(msgspec.structs.replace(QUICK, epochs=6, patience=2), output=tmp_path / "ckpt").training
    assert [e.validation_accuracy for e in done.history] == [0.3, 0.8, 0.8, 0.5]  # 0.8 again is no better
    assert done.best_epoch == 3


def test_the_history_has_five_training_points_an_epoch_and_both_other_splits_once(tmp_path: Path) -> None:
    done = train(QUICK, output=tmp_path / "ckpt").training
    lines = (tmp_path / "ckpt" / HISTORY_NAME).read_text().splitlines()
    points = [msgspec.json.decode(line, type=CurvePoint) for line in lines]
    assert [(p.step, p.split) for p in points if p.epoch <= 1] == [
        (2, "train"), (3, "train"), (4, "train"), (5, "train"), (6, "train"), (6, "validation"), (6, "test"),
    ]  # fmt: skip
    assert [p.epoch for p in points][-3:] == [2.0, 2.0, 2.0]
    ends = [(p.loss, p.accuracy) for p in points if p.split == "test"]
    assert ends == [(e.test_loss, e.test_accuracy) for e in done.history]
    # Of the training points of an epoch, weighted by their images, the means are the epoch's.
    sizes = np.diff([0, *np.cumsum([len(b) for b in epoch_batches(1295, 256, seed=0, epoch=1)])[[1, 2, 3, 4, 5]]])
    last = [p.loss for p in points if p.split == "train"][5:]
    assert np.average(last, weights=sizes) == pytest.approx(done.history[1].loss)


def test_an_existing_checkpoint_is_refused_before_any_work(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "open_split", lambda *_, **__: pytest.fail("it began to work"))
    with pytest.raises(UsageError, match="--force"):
        train(QUICK, output=checkpoint)


def test_an_output_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "open_split", lambda *_, **__: pytest.fail("it began to work"))
    (tmp_path / "file").write_text("a file, where a directory is needed")
    with pytest.raises(OSError, match="Not a directory"):
        train(QUICK, output=tmp_path / "file" / "ckpt")


def test_a_device_that_is_not_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="no CUDA device 99"):
        train(QUICK, output=tmp_path / "ckpt", options=TrainOptions(device=Device("cuda", 99)))


def test_no_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="number of threads cannot be 0"):
        train(QUICK, output=tmp_path / "ckpt", options=TrainOptions(threads=0))


def test_an_interrupt_leaves_the_old_checkpoint_and_what_to_resume_from(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    train(msgspec.structs.replace(QUICK, epochs=1), output=target)
    before = {p.name: p.read_bytes() for p in target.iterdir()}

    def interrupt(now: TrainingStep) -> None:
        if now.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(QUICK, output=target, options=TrainOptions(overwrite=True), on_step=interrupt)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt", "ckpt.resume"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_command_leaves_what_to_resume_from_and_nothing_else(tmp_path: Path, number: int, code: int) -> None:
    target = tmp_path / "ckpt"
    command = [sys.executable, "-m", "vggdeploy", "train", "--width", "0.05", "--hidden", "16", "--epochs", "500"]
    command += ["--per-class", "10"]
    with subprocess.Popen([*command, "-o", target], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "epoch 1/500" in process.stderr.readline()
        assert "epoch 2/500" in process.stderr.readline()  # then the first has been saved
        os.kill(process.pid, number)
        said = process.stderr.read()
    assert process.returncode == code
    assert not target.exists()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["ckpt.resume"]
    assert number == signal.SIGKILL or "error: interrupted" in said


def test_images_that_do_not_fit_into_the_memory_give_the_same_weights(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(QUICK, epochs=1, augment=("flip",))
    hashes = {
        train(recipe, options=TrainOptions(memory=memory), output=tmp_path / str(memory)).checkpoint.weights_sha256
        for memory in (0, 2**30)
    }
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(QUICK, precision="fp32", arch="vgg11", dropout=0.0)
    plain = train(recipe, output=tmp_path / "plain").training
    fast = train(msgspec.structs.replace(recipe, compile=True), output=tmp_path / "compiled").training
    assert fast.history[-1].loss == pytest.approx(plain.history[-1].loss, rel=1e-3)
    assert load_model(tmp_path / "compiled").spec == load_model(tmp_path / "plain").spec


def test_a_short_try_ends_after_its_steps_with_its_schedule(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(QUICK, epochs=4, per_class=30, batch_size=100, max_steps=5)  # 3 steps an epoch
    seen: list[TrainingStep] = []
    done = train(recipe, output=tmp_path / "ckpt", on_step=seen.append).training
    steps = [now for now in seen if now.validation is None]
    assert [now.step for now in steps] == [1, 2, 3, 4, 5]
    assert {(now.steps, now.epochs) for now in seen} == {(5, 2)}
    assert [now.learning_rate for now in steps] == [learning_rate(recipe, at, 5) for at in range(5)]
    assert [record.epoch for record in done.history] == [1, 2]  # the second one is a part, and is scored all the same
    whole = msgspec.structs.replace(recipe, max_steps=999)
    assert len(train(whole, output=tmp_path / "whole").training.history) == 4


def test_a_short_try_takes_a_part_of_every_split(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(QUICK, epochs=1, max_images=150)
    done = train(recipe, output=tmp_path / "ckpt").training
    assert done.samples == {"train": 150, "validation": 143, "test": 150}
