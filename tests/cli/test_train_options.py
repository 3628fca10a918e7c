"""The options of ``vggdeploy train`` beyond its values: recipes, blocks, folders, resuming, TensorBoard."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.system.optional import installed

QUICK = "train --width 0.05 --hidden 16 --epochs 1 --batch-size 64 --per-class 8"


def test_a_recipe_of_ones_own_and_an_option_over_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('width = 0.05\nhidden = 16\nepochs = 3\nper_class = 8\nbatch_size = 40\naugment = ["flip"]\n')
    assert (
        run(["train", "--recipe", str(file), "--epochs", "1", "--augment", "none", "-o", str(tmp_path / "ckpt")]) == 0
    )
    recipe = read_checkpoint(tmp_path / "ckpt").training["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["augment"]) == (1, 40, [])
    assert recipe["precision"] != "auto"  # resolved
    assert recipe["momentum"] == 0.9  # and complete


@pytest.mark.parametrize("batch_norm", [True, False])
def test_any_stack_of_blocks(tmp_path: Path, batch_norm: bool) -> None:
    arch = "" if batch_norm else " --arch custom"
    line = f"{QUICK} --blocks 1x64,2x128,1x200 --image-size 16{arch} -o {tmp_path / 'ckpt'}"
    assert run(shlex.split(line)) == 0
    spec = read_checkpoint(tmp_path / "ckpt").spec
    assert (spec.arch, spec.batch_norm, spec.image_size) == ("custom", batch_norm, 16)
    assert spec.blocks == ((3,), (6, 6), (10,))


def test_ones_own_images(tmp_path: Path) -> None:
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(level - 40, level + 40, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    line = f"{QUICK} --dataset folder:{tmp_path / 'photos'} --augment flip,crop,rotate,colour -o {tmp_path / 'ckpt'}"
    assert run(shlex.split(line)) == 0
    written = read_checkpoint(tmp_path / "ckpt")
    assert (written.labels, written.preprocess.mode) == (("dark", "light"), "RGB")
    assert written.training["samples"] == {"train": 16, "validation": 2, "test": 4}


def test_a_killed_run_is_resumed_and_force_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "ckpt"
    line = [*shlex.split(QUICK.replace("--epochs 1", "--epochs 400")), "-o", str(target)]
    with subprocess.Popen([sys.executable, "-m", "vggdeploy", *line], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "epoch 2/400" not in process.stderr.readline():
            pass
        os.kill(process.pid, signal.SIGKILL)
    assert run(line) == 2
    assert "go on with it: --resume; or start again: --force" in capsys.readouterr().err
    assert run([*shlex.split(QUICK), "--resume", "-o", str(target)]) == 2
    assert "another recipe: epochs 400 → 1" in capsys.readouterr().err
    assert run([*shlex.split(QUICK), "--force", "-o", str(target)]) == 0
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["ckpt"]


def test_fine_tuning_tells_what_it_starts_from(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"train --width 0.125 --hidden 128 --per-class 4 --epochs 1 --init {checkpoint} --fresh head"
    line += f" --freeze features --lr 0.01 -o {tmp_path / 'ckpt'}"
    assert run(shlex.split(line)) == 0
    said = capsys.readouterr().err
    assert "weights: " in said
    assert "fresh, not from there: classifier.6.weight, classifier.6.bias" in said


@pytest.mark.parametrize(
    ("options", "code", "answer"),
    [
        ("--recipe clasic", 2, "did you mean 'classic'"),
        ("--recipe none.toml", 2, "cannot be read"),
        ("--recipe misspelt.toml", 2, "key 'epoch' is unknown"),
        ("--recipe typed.toml", 2, "epochs is 'three'"),
        ("--image-size 16", 2, "at least 32"),
        ("--blocks 1x64,2y128", 2, "is not a list of blocks"),
        ("--blocks 1x8 --arch vgg11", 2, "leave --arch out"),
        ("--step-every 3", 2, "--schedule step"),
        ("--augment flipp", 2, "did you mean 'flip'"),
        ("--optimizer adam", 2, "did you mean 'adamw'"),
        ("--freeze features", 2, "--init"),
        ("--init none.pth", 1, "none.pth does not exist"),
        ("--resume", 2, "no run to resume"),
        ("--dataset folder:none", 1, "none does not exist"),
        ("--dataset folder:empty", 1, "empty/b holds no images"),
        ("--precision fp16 --device cpu", 5, "FP16 training needs a GPU"),
        ("--per-class 500", 1, "training images, not 500"),
    ],
)
def test_a_slip_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    code: int,
    answer: str,
) -> None:
    home = tmp_path / "home"
    (home / "empty" / "a").mkdir(parents=True)
    (home / "empty" / "b").mkdir()
    Image.new("L", (32, 32)).save(home / "empty" / "a" / "1.png")
    (home / "misspelt.toml").write_text("epoch = 3")
    (home / "typed.toml").write_text('epochs = "three"')
    before = sorted(home.rglob("*"))
    monkeypatch.chdir(home)
    assert run(["train", "-o", "X", "--width", "0.05", "--hidden", "16", *shlex.split(options)]) == code
    said = capsys.readouterr()
    assert answer in said.err
    assert said.err.count("\n") <= 2
    assert said.out == ""
    assert sorted(home.rglob("*")) == before


def test_tensorboard_is_missed_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert run([*shlex.split(QUICK), "--tensorboard", str(tmp_path / "tb"), "-o", str(tmp_path / "ckpt")]) == 5
    assert "vggdeploy[tensorboard]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not installed("tensorboard"), reason="pip install 'vggdeploy[tensorboard]'")
def test_tensorboard_reads_the_whole_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run([*shlex.split(QUICK), "--tensorboard", str(tmp_path / "tb"), "-o", str(tmp_path / "ckpt")]) == 0
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = {f"{what}/{split}" for what in ("loss", "accuracy") for split in ("train", "validation", "test")}
    assert set(events.Tags()["scalars"]) == tags | {"learning_rate"}
    last = read_checkpoint(tmp_path / "ckpt").training["history"][-1]
    assert events.Scalars("accuracy/test")[-1].value == pytest.approx(last["test_accuracy"])
    assert events.Scalars("loss/validation")[-1].value == pytest.approx(last["validation_loss"])


def test_the_curves_are_drawn_into_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "ck"
    assert run(["train", "--epochs", "1", "--hidden", "16", "--width", "0.0625", "-o", str(out)]) == 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (out / "curves.html").read_text()
    assert (out / "history.jsonl").read_text().count("\n") >= 6  # five points of training, and the scores
