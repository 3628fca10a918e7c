"""The whole fit on the real digits: what it ships is proven, chosen without test images, and whole whenever it is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import open_split
from vggdeploy.errors import ParityError, TargetError, UsageError
from vggdeploy.fit import finish, ladder, latency
from vggdeploy.fit.fit import fit
from vggdeploy.fit.state import STATE_NAME
from vggdeploy.fit.trials import Settings
from vggdeploy.records import from_json
from vggdeploy.records.fit import FitGoal, FitReport, FitTrial
from vggdeploy.search.goals import Budget
from vggdeploy.system.optional import installed
from vggdeploy.types import Verdict

pytestmark = [
    pytest.mark.skipif(not installed("optuna"), reason="pip install 'vggdeploy[optimize]'"),
]
EASY = FitGoal(accuracy=0.3)
QUICK = Settings(threads=1, samples=50)
# In a process of its own: trainings that are over at once, on one variant, measured for a moment.
SHORT = """
import os, signal, sys
from pathlib import Path
from vggdeploy.fit import finish, ladder, latency
from vggdeploy.fit.fit import fit
from vggdeploy.fit.trials import Settings
from vggdeploy.records.fit import FitGoal
from vggdeploy.search.goals import Budget

ladder._IMAGES, ladder.FACTOR, latency.STEPS, latency._SECONDS, finish._SECONDS, finish._ROUNDS = 1300, 1, (), 0.05, 0.05, 3
phase = sys.argv[2]
def at(share, text):
    if phase in text: os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    fit("digits", Path(sys.argv[1]), FitGoal(accuracy=0.3), Budget(trials=1), Settings(threads=1, samples=50, on_progress=at))
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that are over at once, one variant, and measurements of a moment."""
    monkeypatch.setattr(ladder, "_IMAGES", 1300)
    monkeypatch.setattr(ladder, "FACTOR", 1)
    monkeypatch.setattr(latency, "STEPS", ())
    monkeypatch.setattr(latency, "_SECONDS", 0.05)
    monkeypatch.setattr(finish, "_SECONDS", 0.05)
    monkeypatch.setattr(finish, "_ROUNDS", 3)


@pytest.mark.late
def test_a_fit_ships_what_it_says(
    tmp_path: Path, short: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def opened(name: str, split: str, *rest: object, **more: object) -> object:
        asked.append(split)
        return open_split(name, split, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("vggdeploy.fit.material.open_split", opened)
    line = ["fit", "digits", "-o", str(tmp_path / "b"), "--min-accuracy", "30", "--budget", "2", "--threads", "1"]
    assert run([*line, "--json"]) == 0
    report = from_json(capsys.readouterr().out.encode(), FitReport, what="stdout")
    assert set(asked) == {"train", "validation"}  # what trains and validates is never opened from the test split
    bundle = Bundle.open(tmp_path / "b")
    shipped = bundle.manifest.variant(report.winner.variant)
    assert shipped.verdict is Verdict.PASS
    assert report.winner.bytes == bundle.size(shipped)
    assert from_json((tmp_path / "b" / "fit.json").read_bytes(), FitReport, what="fit.json") == report
    assert report.reached
    assert report.test.lower <= report.test.rate <= report.test.upper
    assert report.test.samples == report.images["test"] == 359
    assert len(report.trials) == 2
    with vggdeploy.load(tmp_path / "b") as engine:
        images = open_split("digits", "test", bundle.manifest.preprocess)
        halves = np.array_split(np.arange(len(images)), 2)
        found = np.concatenate([engine.run({"image": images.batch(half)})["logits"].argmax(axis=1) for half in halves])
        assert engine.variant.name == report.winner.variant
    assert (found == images.labels).sum() == report.test.hits
    page = tmp_path / "b.html"
    text = page.read_text()
    assert "The network to take" in text
    assert "none of these results ran it against the reference" not in text  # the proof is on the page
    assert "b.fit" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.html"]


@pytest.mark.slow
def test_a_target_that_nothing_reaches_keeps_the_best_and_ends_with_4(
    tmp_path: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["fit", "digits", "-o", str(tmp_path / "b"), "--min-accuracy", "100", "--budget", "1", "--threads", "1"]
    assert run([*line, "--samples", "50"]) == 4
    said = capsys.readouterr()
    assert "nothing reaches the goal (at least 100% accuracy); the closest is kept" in said.err
    assert "--resume --force" in said.err
    assert "Collect " in said.out
    assert " images of " in said.out
    assert Bundle.open(tmp_path / "b").manifest.name == "b"
    before = from_json((tmp_path / "b" / "fit.json").read_bytes(), FitReport, what="fit.json")
    assert not any("asked before" in note for note in before.notes)
    with pytest.raises(UsageError, match="already exists"):
        fit("digits", tmp_path / "b", FitGoal(accuracy=1.0), Budget(trials=1), QUICK, overwrite=False)
    # More of it goes on where it was.
    seen: list[int] = []
    started = time.monotonic()
    report = fit(
        "digits", tmp_path / "b", FitGoal(accuracy=1.0), Budget(trials=2),
        Settings(threads=1, samples=50, on_trial=lambda trial, front: seen.append(trial.number)),
        resume=True, overwrite=True,
    )  # fmt: skip
    assert set(seen) == {1}
    spent = time.monotonic() - started
    assert not report.reached
    assert len(report.trials) == 2
    assert any("asked before, about 1 winner of this fit" in note for note in report.notes)
    assert before.seconds < report.seconds < before.seconds + spent
    assert report.seconds > before.seconds + 0.5 * spent  # the first end took its time, too


@pytest.mark.late
def test_a_budget_that_is_too_short_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TargetError, match="it would not end in the budget"):
        fit("digits", tmp_path / "b", EASY, Budget(seconds=0.5), QUICK)
    assert time.monotonic() - started < 60  # not a time that is promised: it did not train for minutes
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_network_whose_proof_fails_does_not_ship(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = finish.export_bundle
    refused: list[str] = []

    def export(checkpoint: Path, *rest: object, **more: object) -> Bundle:
        if not refused and "fit" in str(checkpoint):
            refused.append(Path(checkpoint).name)
            raise ParityError("onnx-fp32 does not compute what was trained", "")
        return honest(checkpoint, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(finish, "export_bundle", export)
    report = fit("digits", tmp_path / "b", EASY, Budget(trials=2), QUICK)
    assert not refused[0].startswith(f"trial-{report.winner.trial}-")
    assert any("its proof fails" in note for note in report.notes)


@pytest.mark.slow
def test_where_no_proof_holds_nothing_ships(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> Bundle:
        raise ParityError("onnx-fp32 does not compute what was trained", "")

    monkeypatch.setattr(finish, "export_bundle", export)
    with pytest.raises(ParityError, match="no network could be proven"):
        fit("digits", tmp_path / "b", EASY, Budget(trials=1), QUICK)
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "b.fit" / STATE_NAME).is_file()


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path, short: None) -> None:
    def stop(trial: FitTrial, front: list[FitTrial]) -> None:
        if trial.complete:
            raise KeyboardInterrupt

    settings = Settings(threads=1, samples=50, on_trial=stop)
    report = fit("digits", tmp_path / "b", EASY, Budget(seconds=3600), settings)
    assert report.interrupted
    assert len(report.trials) == 1
    assert Bundle.open(tmp_path / "b").manifest.variant(report.winner.variant).verdict is report.winner.verdict
    assert (tmp_path / "b.fit" / STATE_NAME).is_file()  # to go on with


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase", ["training 1 of 3", "training 2 of 3", "exporting onnx", "measuring the variants", "winner"]
)
def test_a_kill_in_any_phase_leaves_no_half_bundle_and_the_fit_goes_on(tmp_path: Path, short: None, phase: str) -> None:
    (tmp_path / "run.py").write_text(SHORT)
    output = tmp_path / "b"
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", output, phase], env={**os.environ}, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    state = tmp_path / "b.fit" / STATE_NAME
    known = len(json.loads(state.read_bytes()).get("trials", ()))
    report = fit("digits", output, EASY, Budget(trials=1), QUICK, resume=bool(known), overwrite=not known)
    assert [len(trial.rungs) for trial in report.trials] == [3]
    assert Bundle.open(output).manifest.name == "b"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "run.py"]


@pytest.mark.slow
def test_a_teacher_teaches_and_a_drop_counts_from_it(tmp_path: Path, short: None, checkpoint: Path) -> None:
    report = fit(str(checkpoint), tmp_path / "b", FitGoal(accuracy_drop=0.9), Budget(trials=2), QUICK)
    assert all(trial.spec.image_size == 32 for trial in report.trials)
    assert any(trial.shape.teacher for trial in report.trials)
    assert report.test_drop is not None
    assert report.test_drop.samples == 359
    assert not math.isnan(report.test_drop.upper)
