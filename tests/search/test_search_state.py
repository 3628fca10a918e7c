"""Where a search stands on disk: what is gone on with, what begins anew, and what a slip leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.records import Goal, Point, Trial
from vggdeploy.search.state import STATE_NAME, SearchRequest, SearchState
from vggdeploy.system.optional import installed

QUESTION = SearchRequest(source_sha256="0" * 64, goal=Goal(accuracy_drop=0.01), seed=0, epochs=1, dataset="digits")
OTHER = msgspec.structs.replace(QUESTION, seed=1, dataset="mnist")
POINT = Point(keep=0.5, hidden=0.5, lr=0.01, teacher=0.5)
TRIAL = Trial(number=0, point=POINT, widths={}, macs=1, parameters=1, cost=1.0, skipped="it computes no less")


def begun(output: Path, *, trials: int) -> SearchState:
    state = SearchState.begin(output, QUESTION, resume=False, overwrite=False)
    for _ in range(trials):
        state.add(TRIAL, [])
    state.claim.close()  # as its process does when it ends
    return state


def test_trials_are_gone_on_with_and_never_forgotten_by_accident(tmp_path: Path) -> None:
    begun(tmp_path / "b", trials=2)
    with pytest.raises(UsageError, match="a search that was interrupted"):
        SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="another seed, dataset"):
        SearchState.begin(tmp_path / "b", OTHER, resume=True, overwrite=False)
    assert len(SearchState.begin(tmp_path / "b", QUESTION, resume=True, overwrite=False).standing.trials) == 2
    assert SearchState.begin(tmp_path / "b", OTHER, resume=False, overwrite=True).standing.trials == ()


@pytest.mark.parametrize("resume", [False, True])
def test_a_search_without_a_trial_begins_anew(tmp_path: Path, resume: bool) -> None:
    begun(tmp_path / "b", trials=0)
    assert SearchState.begin(tmp_path / "b", OTHER, resume=resume, overwrite=False).standing.question == OTHER


def test_nothing_to_go_on_with_and_what_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no search to go on with"):
        SearchState.begin(tmp_path / "b", QUESTION, resume=True, overwrite=False)
    file = begun(tmp_path / "b", trials=1).home / STATE_NAME
    file.write_bytes(b"{")
    for resume in (False, True):
        with pytest.raises(UsageError) as told:
            SearchState.begin(tmp_path / "b", QUESTION, resume=resume, overwrite=False)
        assert told.value.hint == "start again: --force"
    assert SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=True).standing.trials == ()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_no_search_made_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    mine = tmp_path / "b.search" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=overwrite)
    # A bundle that came of a search has a search.json, too.
    (mine.parent / STATE_NAME).write_text("{}")
    (mine.parent / MANIFEST_NAME).write_text("{}")
    with pytest.raises(UsageError, match="is a bundle"):
        SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=overwrite)
    assert mine.read_text() == "mine"


def test_a_search_at_work_is_left_alone_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    line = f"""
from pathlib import Path
import test_search_state as tests
state = tests.SearchState.begin(Path({str(tmp_path / "b")!r}), tests.QUESTION, resume=False, overwrite=False)
print("begun", flush=True)
input()
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        for resume in (False, True):
            with pytest.raises(UsageError, match="another search is at work in"):
                SearchState.begin(tmp_path / "b", QUESTION, resume=resume, overwrite=not resume)
        assert (tmp_path / "b.search" / STATE_NAME).is_file()
        other.kill()
    state = SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="at work"):
        SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=True)
    state.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_of_the_first_write_or_of_a_removal_can_be_begun_anew(tmp_path: Path) -> None:
    home = tmp_path / "b.search"
    home.mkdir()
    (home / f".{STATE_NAME}.tmp-0123456789abcdef").write_bytes(b"")
    begun(tmp_path / "b", trials=0)
    (home / "trial-0").mkdir()
    assert SearchState.begin(tmp_path / "b", QUESTION, resume=False, overwrite=False).standing.trials == ()
    assert [path.name for path in home.iterdir()] == [STATE_NAME]


@pytest.fixture
def search_tools() -> None:
    if not (installed("optuna") and installed("torch_pruning")):
        pytest.skip("pip install 'vggdeploy[optimize]'")


@pytest.mark.usefixtures("search_tools")
@pytest.mark.parametrize("kind", ["checkpoint", "bundle_dir"])
def test_a_slip_leaves_no_search_behind(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), number).save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "out").mkdir()
    line = ["search", str(request.getfixturevalue(kind)), "--max-accuracy-drop", "5", "-o", f"{tmp_path}/out/b"]
    assert run([*line, "--data", f"folder:{tmp_path / 'pets'}"]) == 1
    assert "are not the model's" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("search_tools")
@pytest.mark.parametrize("asked", ["search --max-accuracy-drop 5", "optimize --step prune --keep 0.5"])
def test_a_slim_bundle_has_nothing_to_start_from(
    asked: str, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim = tmp_path / "slim"
    assert run(["package", str(bundle_dir), "--target", "slim", "--variant", "onnx-fp32", "-o", str(slim)]) == 0
    capsys.readouterr()
    assert run([*asked.split(), str(slim), "-o", str(tmp_path / "b")]) == 1
    assert "its FP32 reference stayed in" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slim"]
