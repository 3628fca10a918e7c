"""A fit whose trainings run on a real Ray cluster: it ships what a fit on one machine ships, whatever dies meanwhile."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.errors import DataError, UsageError
from vggdeploy.fit import finish, latency
from vggdeploy.fit.cluster import ClusterTrials, Trainer, Work
from vggdeploy.fit.fit import fit
from vggdeploy.fit.ladder import Ladder
from vggdeploy.fit.latency import LatencyTable
from vggdeploy.fit.state import STATE_NAME
from vggdeploy.fit.trials import Settings
from vggdeploy.records.fit import FitGoal
from vggdeploy.search.goals import Budget
from vggdeploy.system.optional import installed
from vggdeploy.types import Verdict

pytestmark = pytest.mark.skipif(
    not (installed("optuna") and installed("ray")), reason="needs the extras optimize and ray"
)
EASY = FitGoal(accuracy=0.3)
SETTINGS = Settings(threads=1, samples=50, ray="local", ray_workers=2)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of one, three and nine epochs of the digits; one variant, and measurements of a moment."""
    monkeypatch.setattr("vggdeploy.fit.fit.Ladder", functools.partial(Ladder, first=1300))
    monkeypatch.setattr(latency, "STEPS", ())
    monkeypatch.setattr(latency, "_SECONDS", 0.05)
    monkeypatch.setattr(finish, "_SECONDS", 0.05)
    monkeypatch.setattr(finish, "_ROUNDS", 3)


def trainers() -> list[int]:
    """The processes that train now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::Trainer"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def work(tmp_path: Path, **changes: Any) -> Work:
    given = {"directory": tmp_path, "dataset": "digits", "data_dir": None, "images": "0" * 64, "home": tmp_path}
    return Work(**{**given, "seed": 0, "threads": 1, "teacher": None, **changes})


def test_a_node_with_other_images_or_without_the_directory_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="other images of digits"):
        Trainer(work(tmp_path)).check()
    with pytest.raises(UsageError, match=r"does not find .*there"):
        Trainer(work(tmp_path, home=tmp_path / "there")).check()


@pytest.mark.alone  # Ray gives a node 30 s to start
@pytest.mark.late
def test_networks_are_trained_side_by_side_and_measured_with_nothing_beside(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, beside = 0, 0, []
    count, measure = ClusterTrials._count, LatencyTable.measure

    def counted(self: ClusterTrials, change: int) -> None:
        nonlocal running, most
        count(self, change)
        running = self._training
        most = max(most, running)

    def measured(self: LatencyTable, *given: Any) -> Any:
        beside.append(running)
        return measure(self, *given)

    monkeypatch.setattr(ClusterTrials, "_count", counted)
    monkeypatch.setattr(LatencyTable, "measure", measured)
    report = fit("digits", tmp_path / "b", EASY, Budget(trials=3), SETTINGS)
    assert most == 2
    assert beside
    assert set(beside) == {0}
    assert [trial.number for trial in report.trials] == [0, 1, 2]
    assert len({(t.spec, t.shape.augment, t.shape.start) for t in report.trials}) == 3
    assert "trained by 2 workers on 1 node of a Ray cluster" in report.notes
    assert report.reached
    assert not any(v.verdict is Verdict.FAIL for v in Bundle.open(tmp_path / "b").manifest.variants)
    assert not (tmp_path / "b.fit").exists()
    assert not trainers()


@pytest.mark.alone  # Ray gives a node 30 s to start
@pytest.mark.late
def test_a_worker_that_is_killed_is_replaced_and_its_training_repeated(tmp_path: Path, short: None) -> None:
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            if (tmp_path / "b.fit").is_dir() and any((tmp_path / "b.fit").glob("trial-*-1-0*")) and trainers():
                killed.append(trainers()[0])
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    report = fit("digits", tmp_path / "b", EASY, Budget(trials=2), SETTINGS)
    killer.join()
    assert killed
    assert len(report.trials) == 2
    assert not [trial.ended for trial in report.trials if "died" in trial.ended]
    Bundle.open(tmp_path / "b")


@pytest.mark.alone  # Ray gives a node 30 s to start
@pytest.mark.late
def test_ctrl_c_keeps_the_best_and_leaves_no_worker(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "vggdeploy", "fit", "digits", "-o", tmp_path / "b", "--min-accuracy", "30", "--budget", "20m",
            "--samples", "50", "--threads", "1", "--ray", "local", "--ray-workers", "2"]  # fmt: skip
    state = tmp_path / "b.fit" / STATE_NAME
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as command:
        until = time.monotonic() + 240
        while not (state.is_file() and any(t["rungs"] for t in json.loads(state.read_bytes())["trials"])):
            assert command.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=300)
    assert command.returncode == 130, said
    assert "Traceback" not in said
    Bundle.open(tmp_path / "b")
    kept = json.loads(state.read_bytes())["trials"]
    assert not [t for t in kept if "died" in t.get("ended", "")]
    assert not trainers()
