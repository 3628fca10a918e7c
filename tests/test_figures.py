"""The check that every figure of the docs stands in the file that it cites finds figures that do not (`.ci/figures.py`)."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CITING = "By [`x.json`](benchmarks/results/x.json): "


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / ".ci" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    measured = {
        "p50_ms": 1.2345,
        "share": 0.8753,
        "seconds": 0.0421,
        "bytes": 53_477_376,
        "found": "3.35 × (≤ 3.5)",
        "rows": 60_000,
    }
    (tmp_path / "x.json").write_text(json.dumps({"measured": measured}))
    return tmp_path


@pytest.mark.parametrize(
    "true",
    [
        "1.23 ms",
        "1.2345 ms",
        "87.5%",
        "88%",
        "42 ms",
        "0.042 s",
        "51 MiB",
        "3.35 ×",
        "60,000 rows",
        "12.5% less",
        "224 px",
        "8 cores",
    ],
)
def test_a_figure_may_be_rounded_and_given_in_another_unit(true: str, figures: ModuleType, results: Path) -> None:
    assert list(figures.missing(CITING + true, results)) == []
    assert list(figures.missing(f"By results/x.json:\n\n| a |\n|---|\n| {true} |\n", results)) == []


@pytest.mark.parametrize("false", ["1.24 ms", "86.5%", "43 ms", "1.24 s", "52 MiB", "3.25 ×", "61,000", "17"])
def test_a_figure_that_is_not_in_the_file_is_named(false: str, figures: ModuleType, results: Path) -> None:
    (fault,) = figures.missing(f"{CITING}{false}.", results)
    assert fault.startswith(f"{false} is not in x.json")
    declared = f"<!-- derived: {false.partition(' ')[0].strip('%')}: a ratio -->"
    assert list(figures.missing(f"{CITING}{false}.\n\n{declared}", results)) == []


def test_most_of_the_figures_that_stand_in_the_docs_cannot_be_changed_unseen(figures: ModuleType) -> None:
    """Each alone, by an eighth: some happen to be another number of the file then."""
    results = ROOT / figures.RESULTS
    tried = seen = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
            before = len(list(figures.missing(section, results)))
            for found in figures._FIGURE.finditer(section):
                if not found[2] or not figures._CITED.search(section):
                    continue
                value = float(found[1].replace(",", "") + found[2]) * 1.125
                wrong = f"{section[: found.start(1)]}{value:.{len(found[2]) - 1}f}{section[found.end(2) :]}"
                tried += 1
                seen += len(list(figures.missing(wrong, results))) > before
    assert tried > 50
    assert seen / tried > 0.6


def test_the_index_says_when_each_file_was_taken(figures: ModuleType) -> None:
    index = (ROOT / figures.INDEX).read_text(encoding="utf-8")
    assert figures.with_dates(index) == index
    assert figures.with_dates(index.replace("2026-", "2025-")) == index


def test_a_result_of_a_commit_that_was_rebased_away_is_named(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is still in this clone, and in no other: CI's clone was where it was missed first."""

    def git(*words: str) -> str:
        named = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words]
        return subprocess.run(named, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("commit", "-q", "--allow-empty", "-m", "measured")
    measured = git("rev-parse", "HEAD")
    (results := tmp_path / figures.RESULTS).mkdir(parents=True)
    (results / "x.json").write_text(json.dumps({"commit": measured}))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert list(figures.unknown_commits()) == []
    git("commit", "-q", "--amend", "--allow-empty", "-m", "rebased")
    git("cat-file", "-e", measured)
    assert [line.split()[0] for line in figures.unknown_commits()] == ["x.json"]
