"""The frontier in a terminal and in a log."""

from __future__ import annotations

import time

import pytest
from test_fit_family import trial

from vggdeploy.cli import frontier
from vggdeploy.fit.family import frontier as best
from vggdeploy.records.fit import FitGoal
from vggdeploy.search.goals import Budget


def test_the_picture_shows_the_frontier_the_rest_and_the_goal() -> None:
    trials = [trial(0, 1.0, 80), trial(1, 3.0, 95), trial(2, 3.0, 70)]
    lines = frontier.drawn(trials, best(trials), FitGoal(accuracy=0.9, latency_ms=2.0))
    text = "\n".join(lines)
    assert (text.count("●"), text.count("·")) == (2, 1)
    assert "│" in text
    assert "─" * 20 in text
    assert text.index("●") < text.index("·")  # more accurate is above
    assert len({len(line) for line in lines[:-2]}) == 1


@pytest.mark.parametrize("goal", [FitGoal(accuracy=1.0), FitGoal(latency_ms=1e-3), FitGoal(bytes=1)])
def test_one_network_is_a_picture_too(goal: FitGoal) -> None:
    one = trial(0, 1.0, 100)
    assert any("●" in line for line in frontier.drawn([one], [one], goal))
    assert frontier.drawn([], [], goal) == ["no network is trained yet"]


def test_a_log_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(frontier, "SILENCE", 0.2)
    with frontier.watched(FitGoal(accuracy=0.9), Budget(seconds=60)) as (tell, note):
        tell(None, "exporting")
        time.sleep(1.0)
        note(trial(0, 1.0, 90), [])
        tell(0.5, "training")
        time.sleep(1.0)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "exporting"
    assert any(line.startswith("exporting (") for line in said[1:])
    assert any(line.startswith("trial 1:") for line in said)
    assert "training (50%)" in said
