"""A student learns from its teacher: the loss has known answers, and a teacher of something else is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.errors import CheckpointError, UsageError
from vggdeploy.model.deployable import Deployable
from vggdeploy.records import to_json
from vggdeploy.train import state
from vggdeploy.train.distill import Teacher, soft_losses
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.record import TrainingRecord, TrainingStep

CPU = torch.device("cpu")


@pytest.fixture
def recipe(checkpoint: Path) -> Recipe:
    """A student half as wide as its teacher, which can read digits."""
    return Recipe(width=0.0625, hidden=32, per_class=20, epochs=2, distill=str(checkpoint), lr=0.02)


def test_the_loss_is_hintons() -> None:
    """T²·KL, by NumPy from the definition; its gradient is T·(q − p), eq. 2 of the paper times T²."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 6, 5))
    temperature = 3.0

    def soft(logits: Any) -> Any:
        e = np.exp(logits / temperature)
        return e / e.sum(axis=1, keepdims=True)

    p, q = soft(teacher), soft(student)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1)
    x = torch.from_numpy(student).requires_grad_()
    losses = soft_losses(x, torch.from_numpy(teacher), temperature)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-12)
    losses.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), temperature * (q - p), rtol=1e-10, atol=1e-14)
    assert soft_losses(x, x.detach(), temperature).abs().max().item() < 1e-12


def test_at_a_high_temperature_it_matches_logits() -> None:
    """Section 2.1: for large T the gradient is (z − v) / N, less both means."""
    z, v = torch.randn(2, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    soft_losses(z, v, 1e4).sum().backward()
    centred = (z - z.mean(dim=1, keepdim=True)) - (v - v.mean(dim=1, keepdim=True))
    torch.testing.assert_close(z.grad, centred.detach() / 10, rtol=1e-3, atol=1e-6)


def test_the_teacher_is_in_evaluation_mode_and_learns_nothing(checkpoint: Path) -> None:
    about = read_checkpoint(checkpoint)
    teacher = Teacher(str(checkpoint), labels=about.labels, preprocess=about.preprocess, device=CPU)
    images = torch.randint(0, 256, (4, 32, 32, 1), dtype=torch.uint8)
    answers = teacher(images)
    assert not answers.requires_grad
    torch.testing.assert_close(teacher(images[:2]), answers[:2])  # no batch statistics
    assert teacher.record.sha256 == about.weights_sha256


def test_images_that_stay_the_same_are_asked_about_once(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs: one pass over the split; with augmentation, every image is a new question."""
    about = read_checkpoint(recipe.distill)
    asked: list[int] = []
    plain = Deployable.forward

    def count(self: Deployable, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.training and not any(p.requires_grad for p in self.parameters()):
            asked.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(Deployable, "forward", count)
    teacher = Teacher(recipe.distill, labels=about.labels, preprocess=about.preprocess, device=CPU)
    three = msgspec.structs.replace(recipe, epochs=3)
    train(three, output=tmp_path / "a", options=TrainOptions(threads=1), teacher=teacher)
    assert sum(asked) == 10 * 20
    train(three, output=tmp_path / "b", options=TrainOptions(threads=1), teacher=teacher)  # it knows these images
    assert sum(asked) == 10 * 20
    train(
        msgspec.structs.replace(three, per_class=10),
        output=tmp_path / "c",
        options=TrainOptions(threads=1),
        teacher=teacher,
    )
    assert sum(asked) == 10 * 30  # others: what it knows is not for them
    moved = msgspec.structs.replace(three, augment=("crop",))
    train(moved, output=tmp_path / "d", options=TrainOptions(threads=1), teacher=teacher)
    assert sum(asked) == 10 * 30 + 3 * 10 * 20
    hashes = [read_checkpoint(tmp_path / name).weights_sha256 for name in "ab"]
    alone = train(three, output=tmp_path / "e", options=TrainOptions(threads=1)).checkpoint.weights_sha256
    assert hashes == [alone, alone]


def test_answers_without_any_label_teach_the_digits(tmp_path: Path, recipe: Recipe) -> None:
    """The loss is the teacher's alone; and the record names it."""
    alone = msgspec.structs.replace(
        recipe, distill_weight=1.0, width=0.125, dropout=0.0, epochs=4, per_class=60, keep="last", lr=0.05
    )
    done = train(alone, output=tmp_path / "student", options=TrainOptions(threads=1)).training
    assert done.test_accuracy > 0.85
    assert done.teacher is not None
    assert done.teacher.sha256 == read_checkpoint(recipe.distill).weights_sha256
    found = msgspec.convert(read_checkpoint(tmp_path / "student").training, TrainingRecord)
    assert found.teacher == done.teacher
    assert done.loss < functional.cross_entropy(torch.zeros(1, 10), torch.tensor([3])).item()  # the labels', as always


def test_a_killed_student_goes_on_to_the_same_bits(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(state, "MAX_SHARE", 1e9)
    whole = train(recipe, output=tmp_path / "whole", options=TrainOptions(threads=1)).checkpoint.weights_sha256
    other = train(
        msgspec.structs.replace(recipe, distill=""), output=tmp_path / "labels", options=TrainOptions(threads=1)
    )
    assert other.checkpoint.weights_sha256 != whole

    def stop(now: TrainingStep) -> None:
        if now.step == 6:
            raise InterruptedError

    moved = tmp_path / "teacher"
    shutil.copytree(recipe.distill, moved)
    own = msgspec.structs.replace(recipe, distill=str(moved))
    with pytest.raises(InterruptedError):
        train(own, output=tmp_path / "broken", options=TrainOptions(threads=1), on_step=stop)
    shutil.move(moved, tmp_path / "aside")
    shutil.copytree(tmp_path / "labels", moved)  # another network in its place
    with pytest.raises(UsageError, match="learned from another teacher"):
        train(own, output=tmp_path / "broken", options=TrainOptions(threads=1, resume=True))
    shutil.rmtree(moved)
    shutil.move(tmp_path / "aside", moved)
    resumed = train(own, output=tmp_path / "broken", options=TrainOptions(threads=1, resume=True))
    assert resumed.checkpoint.weights_sha256 == whole


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"labels": tuple("abcdefghij")}, "class 0 of the teacher .* is 'a', of this run '0'"),
        ({"resize": 40}, "sees other images: its resize is 40, this run's 32"),
        ({"interpolation": "bicubic"}, "its interpolation is bicubic"),
    ],
)
def test_a_teacher_of_something_else_is_refused_before_any_work(
    tmp_path: Path, recipe: Recipe, change: dict[str, Any], cause: str
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(recipe.distill, teacher)
    about = read_checkpoint(teacher)
    if "labels" not in change:
        change = {"preprocess": msgspec.structs.replace(about.preprocess, **change)}
    (teacher / "checkpoint.json").write_bytes(to_json(msgspec.structs.replace(about, **change)))
    with pytest.raises(CheckpointError, match=cause):
        train(msgspec.structs.replace(recipe, distill=str(teacher)), output=tmp_path / "student")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["teacher"]


def test_a_teacher_with_other_classes_and_no_teacher_at_all(tmp_path: Path, checkpoint: Path) -> None:
    about = read_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="has 10 classes, this run 2"):
        Teacher(str(checkpoint), labels=("a", "b"), preprocess=about.preprocess, device=CPU)
    with pytest.raises(CheckpointError, match="does not exist"):
        Teacher(str(tmp_path / "none"), labels=about.labels, preprocess=about.preprocess, device=CPU)
