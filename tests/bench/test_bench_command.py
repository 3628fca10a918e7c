"""`vggdeploy bench`: what the command line takes, what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vggdeploy.cli.app import run
from vggdeploy.cli.options import cpu_list
from vggdeploy.errors import UsageError
from vggdeploy.records import BenchReport, from_json

QUICK = ("--variant", "onnx-fp32", "--batch", "1", "--duration", "0.1", "--rounds", "3")


@pytest.mark.alone
def test_the_record_holds_what_was_measured_and_under_which_conditions(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = min(os.sched_getaffinity(0))
    monkeypatch.chdir(tmp_path)  # no repository
    assert run(["bench", str(bundle_dir), *QUICK, "--pin", str(cpu), "--percentile", "50", "--json"]) == 0
    report = from_json(capsys.readouterr().out.encode(), BenchReport, what="it")
    [row], [fresh] = report.rows, report.fresh
    assert (report.conditions.affinity, report.conditions.pinned, report.threads) == ((cpu,), True, 1)
    assert report.conditions.commit is None
    assert report.conditions.swapped_before <= report.conditions.swapped_after
    assert report.percentile == 50
    assert 0 <= report.harness_cpu_share < 0.5
    assert row.host.run_ms > 0
    assert row.cpu_seconds_per_image > 0
    assert fresh.sha256 == row.sha256
    assert report.tools["vggdeploy"]
    assert set(row.not_checked) <= {
        text for text in row.not_checked if text.split(":")[0] in ("throttling", "frequency")
    }


def test_a_busy_machine_is_invalid_and_still_recorded(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        code = run(["bench", str(bundle_dir), *QUICK, "--require-valid", "--json"])
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert code == 4
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert not row["valid"]
    assert any(reason.startswith("busy machine") for reason in row["reasons"])
    assert row["p50_ms"] > 0


def test_three_lines_answer_above_the_sentence_and_the_table(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(bundle_dir), *QUICK]) == 0
    shown = capsys.readouterr().out
    answer, costs, more = shown.splitlines()[:3]
    assert answer.startswith(("Take: ", "Provisional leader: "))
    assert costs.startswith("p50 ")
    assert "accuracy drop not measured" not in costs  # the bundle has its record
    assert more.startswith(("runner-up: ", "to settle it: ", "use it: "))  # of one variant there is no other
    assert "cold start ms" in shown
    assert shown.index("batch 1: ") < shown.index("p50 ms")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pin", "0-"], "0-3,8"),
        (["--pin", "3-1"], "0-3,8"),
        (["--pin", "99999"], "may not run on CPU 99999"),
        (["--percentile", "95"], "50, 90, 99"),
        (["--percentile", "50", "--scenario", "offline"], "--percentile does not go with --scenario"),
        (["--rounds", "3", "--scenario", "offline"], "--rounds does not go with --scenario"),
        (["--rounds", "3", "--gpu-detail"], "--rounds does not go with --gpu-detail"),
        (["--roof", "--scenario", "offline"], "--roof does not go with --scenario"),
        (["--pin", "0", "--gpu-detail"], "--pin does not go with --gpu-detail"),
        (["--duration", "0"], "above 0"),
        (["--duration", "nan"], "above 0"),
        (["--duration", "inf", "--gpu-detail"], "above 0"),
        (["--rounds", "2"], "at least 3 rounds"),
        (["--threads", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["bench", str(bundle_dir), "--variant", "onnx-fp32", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 2


def test_cpus_are_numbers_and_ranges() -> None:
    assert cpu_list("") == []
    assert cpu_list("8, 0-2,1") == [0, 1, 2, 8]
    for wrong in ("a", "-1", "1-", "1-2-3", "²", "9" * 6):
        with pytest.raises(UsageError):
            cpu_list(wrong)
