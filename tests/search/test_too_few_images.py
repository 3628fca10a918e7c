"""Before a search begins: images that could not show that any network keeps to the limit, and how many could."""

from __future__ import annotations

from pathlib import Path

import pytest

from vggdeploy.cli.app import run
from vggdeploy.optimize.held_out import images_to_show
from vggdeploy.parity.bounds import accuracy_drop
from vggdeploy.system.optional import installed

needs_search = pytest.mark.skipif(
    not (installed("optuna") and installed("torch_pruning")), reason="pip install 'vggdeploy[optimize]'"
)


@needs_search
def test_a_limit_that_no_network_can_be_shown_to_hold_is_refused_before_the_search(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["search", str(checkpoint), "--max-accuracy-drop", "0.5", "--budget", "1", "-o", str(tmp_path / "b")]
    assert run(line) == 4
    told = capsys.readouterr().err
    assert "too few, even for a network that gives the same answers" in told
    assert "give at least 464 validation images" in told
    assert "--max-accuracy-drop 1.7" in told
    assert not (tmp_path / "b").exists()
    assert accuracy_drop(0, 0, 464).upper <= 0.005 < accuracy_drop(0, 0, 463).upper
    assert accuracy_drop(0, 0, 143).upper <= 0.017


@pytest.mark.parametrize("limit", [0.001, 0.005, 0.02, 0.0])
def test_the_number_of_images_is_the_smallest_that_would_do(limit: float) -> None:
    needed = images_to_show(limit, 100)
    if limit == 0.0:
        assert needed is not None
        assert needed >= 10**9  # nothing can be shown to lose nothing
    elif accuracy_drop(0, 0, 100).upper <= limit:
        assert needed is None
    else:
        assert needed is not None
        assert accuracy_drop(0, 0, needed).upper <= limit < accuracy_drop(0, 0, needed - 1).upper
