"""From a checkpoint's history to its curves; old checkpoints, damaged ones, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vggdeploy.cli.app import run
from vggdeploy.errors import CheckpointError, MissingDependencyError, UsageError
from vggdeploy.report.history import HISTORY_NAME, Point, read_history
from vggdeploy.report.pictures import draw_curves, write_curves

LINES = [
    {"step": 2, "epoch": 0.2, "split": "train", "loss": 2.0, "accuracy": 0.25},
    {"step": 10, "epoch": 1, "split": "test", "loss": 1.5, "accuracy": 0.5, "lr": 0.05},
]


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "fashion-ckpt"
    shutil.copytree(checkpoint, copy)
    (copy / HISTORY_NAME).unlink(missing_ok=True)
    return copy


def write(root: Path, text: str) -> None:
    (root / HISTORY_NAME).write_text(text)


def test_each_line_is_a_point_and_unknown_keys_are_left_alone(own_checkpoint: Path) -> None:
    write(own_checkpoint, "\n".join(map(json.dumps, LINES)) + "\n\n")
    assert read_history(own_checkpoint) == [
        Point(step=2, epoch=0.2, split="train", loss=2.0, accuracy=0.25),
        Point(step=10, epoch=1.0, split="test", loss=1.5, accuracy=0.5),
    ]


def test_an_older_checkpoint_gives_a_point_an_epoch(own_checkpoint: Path) -> None:
    record = json.loads((own_checkpoint / "checkpoint.json").read_text())["training"]
    points = read_history(own_checkpoint)
    assert [p.accuracy for p in points if p.split == "train"] == [e["train_accuracy"] for e in record["history"]]
    assert [p.loss for p in points if p.split == "validation"] == [e["validation_loss"] for e in record["history"]]
    (test,) = [p for p in points if p.split == "test"]  # looked at once, with the weights that were kept
    assert (test.epoch, test.accuracy) == (record["best_epoch"], record["test_accuracy"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"epoch": 1, "split": "train", "lo', "line 2"),
        ('{"epoch": 1, "split": "dev", "loss": 1}', "line 2"),
        ('{"epoch": "one", "split": "train"}', "line 2"),
        ("\ufffd" * 3, "line 2"),
        ("[" * 10_000, "line 2"),
    ],
)
def test_a_damaged_line_is_named(own_checkpoint: Path, line: str, told: str) -> None:
    write(own_checkpoint, f"{json.dumps(LINES[0])}\n{line}\n")
    with pytest.raises(CheckpointError, match=told):
        read_history(own_checkpoint)


def test_weights_from_elsewhere_have_no_curves(own_checkpoint: Path) -> None:
    file = own_checkpoint / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"training": {}}))
    with pytest.raises(CheckpointError, match="no record of a training run"):
        read_history(own_checkpoint)


def test_a_record_of_another_kind_is_one_error(own_checkpoint: Path) -> None:
    file = own_checkpoint / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"training": {"history": [{"epoch": "x"}]}}))
    with pytest.raises(CheckpointError, match="training record"):
        read_history(own_checkpoint)


def test_the_command_writes_both_pictures_into_the_checkpoint(
    own_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in own_checkpoint.iterdir())
    assert run(["curves", str(own_checkpoint)]) == 0
    assert capsys.readouterr().out.split() == [str(own_checkpoint / "curves.png"), str(own_checkpoint / "curves.html")]
    assert sorted(p.name for p in own_checkpoint.iterdir()) == sorted([*before, "curves.png", "curves.html"])
    assert "Training of fashion-ckpt" in (own_checkpoint / "curves.html").read_text()


def test_other_directories_are_made_and_json_names_the_files(
    own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(own_checkpoint, "\n".join(map(json.dumps, LINES)))
    target = tmp_path / "a" / "b"
    assert run(["curves", str(own_checkpoint), "-o", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == [str(target / "curves.png"), str(target / "curves.html")]
    assert sorted(p.name for p in target.iterdir()) == ["curves.html", "curves.png"]


def test_a_bundles_files_are_fixed(own_bundle: Path) -> None:
    with pytest.raises(UsageError, match="part of a bundle"):
        write_curves(own_bundle / "checkpoint")
    assert not list(own_bundle.rglob("curves.*"))


def test_without_the_extra_it_is_named(own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggdeploy.system.optional.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        write_curves(own_checkpoint, tmp_path)
    assert "vggdeploy[plots]" in caught.value.hint
    with pytest.raises(MissingDependencyError):
        draw_curves([Point(epoch=1, split="train", loss=1.0)], tmp_path, name="x")


def test_what_is_no_checkpoint_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["curves", str(tmp_path / "none")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert "does not exist" in lines[0]
