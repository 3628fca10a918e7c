"""The search on the real digits: what it finds holds the goal, what it writes is that, and a seed repeats it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import vggdeploy
from vggdeploy.bundle import REFERENCE, Bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.errors import TargetError, TrainingError, UsageError
from vggdeploy.records import Candidate, Goal, SearchReport, Trial, from_json
from vggdeploy.search import search as module
from vggdeploy.search.goals import Budget
from vggdeploy.search.report import REPORT_NAME
from vggdeploy.search.search import Settings, search
from vggdeploy.search.state import STATE_NAME
from vggdeploy.system.optional import installed
from vggdeploy.types import Verdict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (installed("optuna") and installed("torch_pruning")), reason="pip install 'vggdeploy[optimize]'"
    ),
]
LOOSE = Goal(accuracy_drop=0.05)
QUICK = Settings(epochs=1, threads=1)


@pytest.fixture(scope="module")
def found(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchReport]:
    path = tmp_path_factory.mktemp("search") / "bundle"
    return path, search(checkpoint, path, LOOSE, Budget(trials=3), QUICK)


def test_the_winner_holds_the_goal_and_is_the_fastest_that_does(found: tuple[Path, SearchReport]) -> None:
    _, report = found
    assert [t.number for t in report.trials] == [0, 1, 2]
    won = next(c for c in report.front if (c.trial, c.variant) == (report.winner, report.chosen))
    assert not won.misses
    assert won.drop.upper <= LOOSE.accuracy_drop
    assert won.ratio == max(c.ratio for c in report.front if not c.misses and c.ratio)


def test_only_the_winner_saw_the_test_split(found: tuple[Path, SearchReport]) -> None:
    _, report = found
    for one in report.front:
        assert (one.test_drop is not None) == (one.trial == report.winner and not one.misses)


def test_the_bundle_holds_no_variant_that_misses_the_goal_and_loads_the_winner(
    found: tuple[Path, SearchReport],
) -> None:
    path, report = found
    bundle = Bundle.open(path)
    inside = from_json((path / REPORT_NAME).read_bytes(), SearchReport, what=REPORT_NAME)
    assert inside == report
    missing = {c.variant for c in report.front if c.trial == report.winner and c.misses}
    names = {v.name for v in bundle.manifest.variants} - {REFERENCE}
    assert report.chosen in names
    assert not names & missing
    with vggdeploy.load(path) as engine:
        assert engine.variant.name == report.chosen


def test_the_search_leaves_nothing_beside_its_bundle(found: tuple[Path, SearchReport]) -> None:
    path, _ = found
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_command_makes_the_same_choices_with_the_same_seed_and_its_report_says_how(
    checkpoint: Path, found: tuple[Path, SearchReport], tmp_path: Path
) -> None:
    output = tmp_path / "b"
    line = ["search", str(checkpoint), "--max-accuracy-drop", "5", "--budget", "3", "--epochs", "1", "--threads", "1"]
    assert run([*line, "-o", str(output)]) == 0
    again = from_json((output / REPORT_NAME).read_bytes(), SearchReport, what=REPORT_NAME)

    def choices(report: SearchReport) -> list[Trial]:
        return [msgspec.structs.replace(trial, seconds=0.0) for trial in report.trials]

    assert choices(again) == choices(found[1])
    assert again.command == shlex.join(["vggdeploy", *line, "-o", str(output)])


def test_a_goal_that_nothing_holds_names_the_closest_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none of 1 networks holds the goal; closest: .* MB, the limit is 1e-06"):
        search(checkpoint, tmp_path / "b", Goal(accuracy_drop=0.5, size_mb=1e-6), Budget(trials=1), QUICK)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UsageError, match="search that was interrupted"):
        search(checkpoint, tmp_path / "b", LOOSE, Budget(trials=1), QUICK)
    with pytest.raises(UsageError, match="another goal"):
        search(checkpoint, tmp_path / "b", LOOSE, Budget(trials=1), QUICK, resume=True)


def test_a_killed_search_goes_on_where_it_was(
    checkpoint: Path, found: tuple[Path, SearchReport], tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from vggdeploy.search.search import Settings, search\n"
        "from vggdeploy.search.goals import Budget; from vggdeploy.records import Goal\n"
        "import os, signal\n"
        "def at(trial, front):\n"
        "    if trial.number == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        f"    search(sys.argv[1], Path(sys.argv[2]), Goal(accuracy_drop={LOOSE.accuracy_drop}), Budget(trials=3),\n"
        "           Settings(epochs=1, threads=1, on_trial=at))\n"
    )
    (tmp_path / "run.py").write_text(code)
    output = tmp_path / "b"
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", checkpoint, output], env={**os.environ}, check=False, timeout=170
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "b.search" / STATE_NAME).is_file()
    tried: list[int] = []

    def note(trial: Trial, front: list[Candidate]) -> None:
        tried.append(trial.number)

    report = search(checkpoint, output, LOOSE, Budget(trials=3), replace(QUICK, on_trial=note), resume=True)
    assert tried == [2]  # the two that were over are not made again
    assert [(t.point, t.macs, t.drop) for t in report.trials] == [(t.point, t.macs, t.drop) for t in found[1].trials]
    assert Bundle.open(output).manifest.name == "b"


def test_a_training_that_diverges_is_a_trial_that_failed_and_no_end(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object) -> None:
        raise TrainingError("the loss became nan at step 3 of 9", "train with a lower learning rate")

    monkeypatch.setattr(module, "build_network", diverges)
    report = search(checkpoint, tmp_path / "b", LOOSE, Budget(trials=3), QUICK)
    assert [t.skipped for t in report.trials] == ["", *["the loss became nan at step 3 of 9"] * 2]
    assert report.winner == 0
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_where_int8_misses_the_goal_the_network_is_trained_once_more_with_its_rounding(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first INT8 of a trial is said to miss: what takes its place was fine-tuned for it, and is measured anew."""
    looked: list[bool] = []
    plain = module._int8_holds

    def misses_once(found: list[Candidate], goal: Goal) -> bool:
        looked.append(plain(found, goal))
        return looked[-1] and len(looked) > 1

    monkeypatch.setattr(module, "_int8_holds", misses_once)
    report = search(checkpoint, tmp_path / "b", LOOSE, Budget(trials=1), QUICK)
    assert len(looked) == 2
    (trial,) = report.trials
    assert trial.quantisation_aware
    steps = read_checkpoint(tmp_path / "b" / "checkpoint").steps
    assert [step.step for step in steps] == ["qat"]
    assert trial.drop == steps[0].drop["validation"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


class Clock:
    """The time of the search, which is over as soon as a network is fine-tuned."""

    def __init__(self) -> None:
        self.later, self.told = 0.0, list[str]()

    def monotonic(self) -> float:
        return time.monotonic() + self.later

    def hear(self, share: float | None, stage: str) -> None:
        self.told.append(stage)
        self.later = 1e6 if stage == "fine-tuning" else self.later


@pytest.mark.parametrize("int8_misses", [False, True])
def test_a_training_that_outlasts_the_budget_is_left_where_the_goal_is_held_without_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8_misses: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    if int8_misses:
        monkeypatch.setattr(module, "_int8_holds", lambda found, goal: False)
    report = search(checkpoint, tmp_path / "b", LOOSE, Budget(seconds=3600), replace(QUICK, on_progress=clock.hear))
    assert clock.told.count("fine-tuning") == 1
    left = "fine-tuning with INT8's rounding is left out: the budget is spent" if int8_misses else ""
    assert (left or "the budget is spent: trial 2 is left out") in clock.told
    assert [(t.number, t.quantisation_aware) for t in report.trials] == [(0, False)]
    assert report.winner == 0
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_first_that_may_hold_the_goal_is_trained_to_its_end(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, goal = Clock(), Goal(accuracy_drop=1, size_mb=0.1)  # the network as it is, is too large
    monkeypatch.setattr(module, "time", clock)
    report = search(checkpoint, tmp_path / "b", goal, Budget(seconds=3600), replace(QUICK, on_progress=clock.hear))
    assert clock.told.count("fine-tuning") == 1
    assert len(report.trials) == 2
    assert report.winner == 1


@pytest.mark.parametrize(
    ("target", "told"),
    [("tpu", "engine 'tpu' is unknown"), ("cpu:avx512", "cpu:avx512"), ("tensorrt-rtx:sm89x", "sm89x")],
)
def test_a_target_that_there_is_not_is_refused(checkpoint: Path, tmp_path: Path, target: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        search(checkpoint, tmp_path / "b", Goal(accuracy_drop=0.1, target=target), Budget(trials=1), QUICK)


def test_a_latency_that_cannot_be_measured_is_no_goal(checkpoint: Path, tmp_path: Path) -> None:
    goal = Goal(accuracy_drop=0.1, target="tensorrt-rtx", latency_ms=1.0)
    with pytest.raises(UsageError, match="tensorrt-rtx is not measured here"):
        search(checkpoint, tmp_path / "b", goal, Budget(trials=1), QUICK)


@pytest.mark.skipif(not installed("tensorrt_rtx"), reason="pip install 'vggdeploy[rtx]'")
def test_a_search_for_a_gpu_ranks_by_cost_builds_the_engine_and_says_that_nothing_was_measured(
    checkpoint: Path, tmp_path: Path
) -> None:
    goal = Goal(accuracy_drop=0.05, target="tensorrt-rtx:sm89")
    report = search(checkpoint, tmp_path / "b", goal, Budget(trials=2), QUICK)
    assert not report.measured
    assert {c.variant for c in report.front} <= {"onnx-fp16", "onnx-int8-symmetric"}
    assert all(c.latency_ms is None and c.ratio is None for c in report.front)
    won = next(c for c in report.front if (c.trial, c.variant) == (report.winner, report.chosen))
    assert won.cost == min(c.cost for c in report.front if not c.misses)
    assert "nothing was measured" in report.reason
    (engine,) = [v for v in Bundle.open(tmp_path / "b").manifest.variants if v.format == "tensorrt-rtx"]
    assert engine.verdict is Verdict.UNPROVEN
    assert engine.build is not None
    assert engine.build.targets == ("sm89",)
    assert engine.build.source == report.chosen
