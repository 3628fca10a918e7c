"""``vggdeploy train``, as it is typed."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.cli import train as command
from vggdeploy.cli.app import run
from vggdeploy.train.recipe import Recipe

QUICK = "train --width 0.05 --hidden 16 --epochs 1 --batch-size 256"


def test_the_defaults_in_the_help_are_the_recipes() -> None:
    recipe, found = Recipe(), {}
    for name, parameter in inspect.signature(command.train, eval_str=True).parameters.items():
        option = parameter.annotation.__metadata__[0]
        match = re.search(r"Default: (\S+)\.$", option.help)
        if name in Recipe.__struct_fields__ and match:
            found[name] = match[1]
    # What is off or empty says so in words.
    in_words = {"blocks": "", "init": "", "lr_features": None, "lr_rest": None, "compile": False, "distill": ""}
    expected = {name: str(getattr(recipe, name)) for name in Recipe.__struct_fields__ if name not in in_words}
    assert found == expected | {"augment": "none"}
    assert all(getattr(recipe, name) == value for name, value in in_words.items())


def test_a_run_ends_with_its_figures_and_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "digits-ckpt"
    assert run([*shlex.split(QUICK), "--seed", "3", "--momentum", "0.8", "-o", str(target)]) == 0
    said = capsys.readouterr()
    assert re.search(r"loss \d\.\d+, train accuracy [\d.]+%, validation [\d.]+%, test [\d.]+% of 359 images", said.out)
    assert re.search(r"[\d,]+ images/s on \w+", said.out)
    assert f"checkpoint: {target}" in said.out
    assert "epoch 1/1" in said.err
    assert f"next: vggdeploy export {target} -o {tmp_path / 'digits-bundle'}" in said.err
    assert read_checkpoint(target).training["recipe"]["seed"] == 3
    assert read_checkpoint(target).training["recipe"]["momentum"] == 0.8


def test_json_is_one_document_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*shlex.split(QUICK), "--json", "-o", str(tmp_path / "ckpt")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema_version"] == 1
    assert report["checkpoint"] == str(tmp_path / "ckpt")
    assert report["spec"]["in_channels"] == 1  # digits are grey
    assert report["training"]["samples"]["test"] == 359
    assert report["weights_sha256"] == read_checkpoint(tmp_path / "ckpt").weights_sha256


@pytest.mark.parametrize(
    ("line", "code", "answer"),
    [
        ("train -o X --arch vgg11bnn", 2, "did you mean 'vgg11_bn'"),
        ("train -o X --dataset mnits", 2, "did you mean 'mnist'"),
        ("train -o X --image-size 33", 2, "a multiple of 32"),
        ("train -o X --epochs 0", 2, "at least 1"),
        ("train -o X --epoch 3", 2, "--epochs"),
        ("train -o X --lr fast", 2, "lr"),
        ("train -o X --schedule linear", 2, "known: constant, cosine, one-cycle, step"),
        ("train -o X --half", 2, "--precision"),
        ("train -o X --imgsz 64", 2, "--image-size"),
        ("train", 2, "--output"),
        ("train -o X --device cuda:99", 5, "--device cpu"),
        ("train -o X --device tpu", 2, "cpu, cuda"),
        ("train -o X --threads 0", 2, "at least 1"),
    ],
)
def test_a_slip_is_one_line_and_what_to_type(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    code: int,
    answer: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(line)) == code
    said = capsys.readouterr()
    assert answer in said.err
    assert said.err.count("\n") <= 2
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_force_is_needed_to_replace(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*shlex.split(QUICK), "-o", str(checkpoint)]) == 2
    assert "--force" in capsys.readouterr().err


def test_somebody_elses_directory_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run([*shlex.split(QUICK), "--force", "-o", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
