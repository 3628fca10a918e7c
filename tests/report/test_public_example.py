"""docs/report/index.html says what the committed results say: made again, it is the same."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/report/index.html"


def said(page: str) -> str:
    """All but Vega's own script, whose bytes follow its version, and the policy that has their hash."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page)
    return "".join(part for part in re.split(r"(<script.*?</script>)", text, flags=re.DOTALL) if len(part) < 300_000)


@pytest.mark.late
def test_the_example_is_what_the_results_make_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PAGE.parents[2])
    spec = importlib.util.spec_from_file_location("make_report", PAGE.with_name("make_report.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.make(tmp_path / "index.html")
    held, made = PAGE.read_text(encoding="utf-8"), (tmp_path / "index.html").read_text(encoding="utf-8")
    assert said(held) == said(made)
    assert said(held.replace("0.344", "0.343")) != said(made)  # it would see a figure that was changed
    assert len(said(made)) > 20_000
    assert PAGE.stat().st_size < 1_500_000
