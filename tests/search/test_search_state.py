"""Where a search stands on disk: what is gone on with, what begins anew, and what a slip leaves behind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from PIL import Image

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
