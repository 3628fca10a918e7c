"""torchrun, for real: two processes make the step that one makes, and only one of them writes and prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from vggdeploy.bundle.checkpoint import WEIGHTS_NAME, read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.model.vgg import new_vgg
from vggdeploy.train.feed import epoch_batches

pytestmark = pytest.mark.late

# Without dropout: what a process draws is its own. 160 images.
OPTIONS = "--width 0.05 --hidden 16 --dropout 0 --per-class 16 --precision fp32 --threads 1"
# What is run, and how far all weights may part, as a share of what they moved. torch's own batch norm on the CPU, which
# the single process uses, is off by up to 1% in a gradient (the shared one by 1e-4, both against FP64), and maps of a
# pixel blow that up with every step: so one step.
RUNS = [("--arch vgg11 --epochs 2 --batch-size 64", 1e-4), ("--arch vgg11_bn --epochs 1 --batch-size 160", 0.02)]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # without it torchrun warns on stderr
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=120, env=environment
    )


@pytest.mark.parametrize(("kind", "share"), RUNS)
def test_two_processes_match_one_with_the_same_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, share: float
) -> None:
    options = ["train", *OPTIONS.split(), *kind.split(), "--json"]
    both = torchrun("-m", "vggdeploy", *options, "-o", str(tmp_path / "two"))
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["training"]["processes"] == 2
    assert both.stderr.count("epoch 1/") == 1
    assert "Warning" not in both.stderr
    assert run([*options, "-o", str(tmp_path / "one")]) == 0
    one, two = (safetensors.torch.load_file(tmp_path / name / WEIGHTS_NAME) for name in ("one", "two"))
    start = new_vgg(read_checkpoint(tmp_path / "one").spec).state_dict()
    parted = sum((one[key].double() - two[key].double()).square().sum() for key in one)
    moved = sum((one[key].double() - start[key].double()).square().sum() for key in one if "num_batches" not in key)
    assert (parted / moved) ** 0.5 < share
    records = [read_checkpoint(tmp_path / name).training["history"] for name in ("one", "two")]
    for alone, shared in zip(*records, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert shared["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-3)
        assert shared["train_accuracy"] == pytest.approx(alone["train_accuracy"], abs=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    capsys.readouterr()


SCRIPT = """
import sys, torch
from vggdeploy.model.vgg import new_vgg
from vggdeploy.train.environment import SharedBatchNorm, join_processes
torch.manual_seed(0)
x, up = torch.randn(9, 3, 4, 4) * 3 + 50, torch.randn(9, 3, 4, 4)
plain, shared = torch.nn.BatchNorm2d(3), SharedBatchNorm(3)
with join_processes(torch.device("cpu")) as processes:
    whole = x.clone().requires_grad_()
    plain(whole).backward(up)
    mine = slice(0, 2) if processes.first else slice(2, 9)  # uneven shares
    part = x[mine].clone().requires_grad_()
    out = shared(part)
    out.backward(up[mine])
    processes.add_up_gradients(shared.parameters())
    plain.eval(), shared.eval()
    close = lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert close(part.grad, whole.grad[mine]), (part.grad, whole.grad[mine])
    assert close(shared.weight.grad, plain.weight.grad) and close(shared.bias.grad, plain.bias.grad)
    assert close(shared(x), plain(x))
    assert shared.state_dict().keys() == plain.state_dict().keys()
    assert int(shared.num_batches_tracked) == 1 and processes.total(1.0, processes.rank) == (2.0, 1.0)
"""


def test_shared_batch_norm_is_batch_norm_over_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr


def test_shares_of_a_batch_may_differ_by_one() -> None:
    sizes = [len(b) for b in epoch_batches(160, 64, seed=0, epoch=0)]
    assert any(size % 2 for size in sizes)  # so the test above sums shares that differ
