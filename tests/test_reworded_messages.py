"""No decision hangs on the words of a message: each is reworded in turn, and no verdict, choice or exit code moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vggdeploy

TESTS = Path(__file__).parent
pytestmark = pytest.mark.late  # every message in turn takes minutes


def run_cases(bundle: Path, directory: Path, way: str) -> dict[str, Any]:
    """The cases in a process of its own, which imports the package rewritten."""
    path = [str(Path(vggdeploy.__file__).parents[1]), str(TESTS), str(TESTS / "report")]
    done = subprocess.run(
        [sys.executable, "-m", "rewording.scenarios", str(bundle), str(directory), way],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def each(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cases(bundle_dir, tmp_path_factory.mktemp("each"), "each")


def test_no_decision_moves_when_a_message_reads_differently(each: dict[str, Any]) -> None:
    assert [moved for moved in each["moved"] if moved["case"] != "canary"] == []


def test_a_module_that_decides_by_words_is_noticed(each: dict[str, Any]) -> None:
    assert {(m["before"], m["after"]) for m in each["moved"] if m["case"] == "canary"} == {('"fail"', '"pass"')}


def test_every_kind_of_decision_is_among_the_cases(each: dict[str, Any]) -> None:
    decided = {name: json.loads(text) for name, text in each["decided"].items()}
    assert {decided[name] for name in decided if isinstance(decided[name], int)} >= {0, 1, 2, 3, 4, 5}
    assert {decided[name][0] for name in decided if name.startswith("bench: ")} == {"pass", "fail"}
    proofs = {verdict for name in decided if name.startswith("prove: ") for verdict in decided[name][0]}
    assert proofs == {"pass", "fail", "inconclusive", "unproven"}
    assert decided["select: all failed"][0] == ["ParityError", 3]


def test_what_is_said_at_import_may_read_differently_too(
    each: dict[str, Any], bundle_dir: Path, tmp_path: Path
) -> None:
    assert run_cases(bundle_dir, tmp_path, "import")["decided"] == each["decided"]
