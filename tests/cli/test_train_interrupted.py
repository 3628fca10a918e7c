"""Ctrl-C in ``train``: what was learned is kept, and the line that is printed ends, alone, with the same bits."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vggdeploy.bundle.checkpoint import read_checkpoint

OPTIONS = [
    "--dataset", "digits", "--width", "0.05", "--hidden", "16", "--epochs", "2", "--per-class", "30", "--lr", "0.03",
    "--augment", "flip,crop", "--threads", "1",
]  # fmt: skip

# The command itself; in the middle of the named call it gets the signal, as a terminal or a container would send it.
PROGRAM = """
import importlib, os, signal, sys
module, name, at, number = sys.argv[1].split(":")
place, calls = importlib.import_module(module), [0]
*parts, name = name.split(".")
for part in parts:
    place = getattr(place, part)
real = getattr(place, name)

def sent(*args, **kwargs):
    calls[0] += 1
    if calls[0] == int(at):
        os.kill(os.getpid(), int(number))
    return real(*args, **kwargs)

setattr(place, name, sent)
from vggdeploy.cli.app import main
main(sys.argv[2:])
"""


def train(home: Path, *arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", PROGRAM, program] if program else [sys.executable, "-m", "vggdeploy"]
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [*line, "train", *arguments],
        cwd=home, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nobody interrupted."""
    home = tmp_path_factory.mktemp("whole")
    done = train(home, *OPTIONS, "-o", "ckpt")
    assert done.returncode == 0, done.stderr
    return read_checkpoint(home / "ckpt").weights_sha256


@pytest.mark.parametrize(
    ("call", "number", "code", "saved"),
    [
        ("vggdeploy.train.step:rate_factor:2", signal.SIGINT, 130, "2 steps are saved"),  # in the first epoch
        pytest.param(
            "vggdeploy.train.step:Score:2", signal.SIGINT, 130, "5 steps are saved", marks=pytest.mark.late
        ),  # after the epoch's scores are known, before they are kept
        pytest.param(
            "vggdeploy.train.step:rate_factor:7", signal.SIGTERM, 143, "7 steps are saved", marks=pytest.mark.late
        ),
    ],
)
def test_the_printed_line_alone_ends_with_the_same_bits(
    call: str, number: int, code: int, saved: str, whole: str, tmp_path: Path
) -> None:
    broken = train(tmp_path, *OPTIONS, "-o", "my ckpt", program=f"{call}:{number}")
    assert broken.returncode == code, broken.stderr
    assert saved in broken.stderr
    assert "stopping after this step, and saving" in broken.stderr
    assert not (tmp_path / "my ckpt").exists()
    [line] = re.findall("^next: vggdeploy train (.*)$", broken.stderr, re.MULTILINE)
    assert shlex.split(line) == ["-o", "my ckpt", "--resume"]
    resumed = train(tmp_path, *shlex.split(line))
    assert resumed.returncode == 0, resumed.stderr
    assert read_checkpoint(tmp_path / "my ckpt").weights_sha256 == whole


@pytest.mark.late
def test_before_the_first_step_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    broken = train(tmp_path, *OPTIONS, "-o", "ckpt", program=f"vggdeploy.train.loop:open_split:1:{signal.SIGINT}")
    assert broken.returncode == 130
    assert "--resume" not in broken.stderr
    assert "saving" not in broken.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.late
def test_a_second_press_does_not_wait_for_the_step(tmp_path: Path) -> None:
    twice = PROGRAM.replace("    return real", "        os.kill(os.getpid(), int(number))\n    return real")
    done = subprocess.run(
        [sys.executable, "-c", twice, f"vggdeploy.train.step:rate_factor:2:{signal.SIGINT}", "train", *OPTIONS, "-o", "ckpt"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "saved" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.late
def test_another_wish_than_the_stored_recipes_is_refused(tmp_path: Path) -> None:
    broken = train(tmp_path, *OPTIONS, "-o", "ckpt", program=f"vggdeploy.train.step:rate_factor:1:{signal.SIGINT}")
    assert broken.returncode == 130
    done = train(tmp_path, "-o", "ckpt", "--resume", "--lr", "0.1")
    assert done.returncode == 2
    assert "another recipe: lr 0.03 → 0.1" in done.stderr
