"""``vggdeploy optimize --step prune,low-rank`` as it is typed: what it writes, prints and refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.types import Verdict

pytest.importorskip("torch_pruning")


def test_both_steps_and_the_table_of_what_they_cost(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    line = f"optimize {checkpoint} --step prune,low-rank --keep 0.6 --rank-keep 0.6 --epochs 0 -o {out}"
    assert run(shlex.split(line)) == 0
    shown = capsys.readouterr()
    found = read_checkpoint(out)
    assert [step.step for step in found.steps] == ["prune", "low-rank"]
    assert found.origin is not None
    assert found.origin.sha256 == read_checkpoint(checkpoint).weights_sha256
    for step in found.steps:
        assert f"{step.accuracy['test']:.2%}" in shown.out
        assert f"{step.after.macs:,}" in shown.out
    assert "paired one-sided 95% bounds" in shown.out
    assert f"vggdeploy export {out}" in shown.err
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert run(["evaluate", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"]["rate"] == found.steps[-1].accuracy["test"]
    assert run(["summary", str(out)]) == 0
    assert "conv, rank " in capsys.readouterr().out


def test_the_checkpoint_of_a_bundle_and_json(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"optimize {bundle_dir} --step low-rank --rank fc7=16 --epochs 0 --json -o {tmp_path / 'small'}"
    assert run(shlex.split(line)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["spec"]["ranks"] == [0, 16]
    assert document["steps"][0]["ranks"] == {"fc7": 16}
    assert document["steps"][0]["drop"]["validation"]["samples"] == 143


@pytest.mark.slow
def test_a_structure_and_then_variants_make_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    line = f"optimize {checkpoint} --step low-rank,openvino-fp32 --rank 24 --epochs 0 --samples 64 -o {tmp_path / 'b'}"
    assert run(shlex.split(line)) == 0
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest.spec.ranks == (24, 24)
    assert bundle.manifest.variant("openvino-fp32").verdict is not Verdict.FAIL


def test_a_missed_target_is_exit_4_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"optimize {checkpoint} --step low-rank --rank 1 --epochs 0 --max-accuracy-drop 0.5 -o {tmp_path / 'out'}"
    assert run(shlex.split(line)) == 4
    assert "the limit is 0.5" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--step prune", "how much stays"),
        ("--step prune,low-rank --keep 0.5", "low-rank takes ranks, or"),
        ("--step low-rank --rank 8 --rank-keep 0.5", "give one of both"),
        ("--step low-rank --rank-keep 2", "is 2"),
        ("--step low-rank --rank 8 --keep 0.5", "--keep belongs to --step prune"),
        (
            "--step openvino-fp32 --epochs 3",
            "--epochs belongs to --step prune, --step low-rank, --step sparse or --step qat",
        ),
        ("--step prune --keep half", "'half' is neither a number"),
        ("--step prune --keep fc6=0.5,fc6=0.2", "fc6 is given twice"),
        ("--step prune --keep 1.5", "is 1.5"),
        ("--step prune --keep 0.5 --epochs -1", "number of epochs cannot be -1"),
        ("--step prune --keep 0.5 --lr 0", "learning rate 0.0"),
        ("--step prune --keep 0.5 --max-accuracy-drop -1", "--max-accuracy-drop is -1 points"),
        ("--step low-rank --rank 2.5", "'2.5' is neither a whole number"),
        ("--step low-rank --rank 8 --device tpu", "tpu"),
        ("--step prunes --keep 0.5", "did you mean 'prune'"),
    ],
)
def test_a_slip_is_answered_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, said: str
) -> None:
    assert run(["optimize", str(checkpoint), *shlex.split(options), "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_other_things_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"optimize {checkpoint} --step low-rank --rank 8 --distill {tmp_path / 'none'} -o {tmp_path / 'out'}"
    assert run(shlex.split(line)) == 1
    assert "does not exist" in capsys.readouterr().err
