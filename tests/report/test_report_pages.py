"""The pages in a real browser: they draw, they ask for nothing, and no name in them becomes anything but text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import needs_chromium, opened

from vggdeploy.report.history import Point
from vggdeploy.report.page import chart_page
from vggdeploy.report.plots import confused_pairs, confusion_matrix, curves_grid, save_chart, training_curves
from vggdeploy.report.tables import Cell, Column, Grid

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = (
    "<script>document.title = 'run'</script>",
    "</script><script>document.title = 'run'</script>",
    "<img src=http://names.invalid/x onerror=\"document.title = 'run'\">",
    "<!--",
    "&lt;b&gt;",
    "\" onmouseover=\"document.title = 'run'",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
)
RUN = [
    Point(epoch=0.5, step=5, split="train", loss=1.5, accuracy=0.4),
    Point(epoch=1.0, step=10, split="train", loss=1.0, accuracy=0.6),
    Point(epoch=1.0, step=10, split="validation", loss=1.1, accuracy=0.55),
    Point(epoch=1.0, step=10, split="test", loss=1.2, accuracy=0.5),
]


def hostile_page(path: Path) -> Path:
    counts = [[3 if i == j else (i + j) % 2 for j in range(len(HOSTILE))] for i in range(len(HOSTILE))]
    grid = Grid(HOSTILE[1], tuple(Column("", name) for name in HOSTILE[:2]), [[Cell(name) for name in HOSTILE[:2]]])
    save_chart(confusion_matrix(HOSTILE, counts, title=HOSTILE[1]), path, title=HOSTILE[1], text=HOSTILE[2], grid=grid)
    return path


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_curves_are_drawn_and_nothing_is_asked_for(browser: Browser, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "curves.html"
    save_chart(training_curves(RUN), file, title="Training of x", text="Loss", grid=curves_grid(RUN))
    with opened(browser, file, dark=dark) as found:
        drawn = found.page.locator("svg.marks")
        for word in ("loss (cross-entropy, nats)", "accuracy", "epoch", "train", "validation", "test"):
            assert drawn.get_by_text(word, exact=True).count()
        # a point for each value, in both panels
        assert drawn.locator('[aria-roledescription="point"]').count() == 2 * len(RUN)
        assert ("rgb(22, 24, 29)" if dark else "rgb(255, 255, 255)") in drawn.evaluate("(svg) => svg.outerHTML")
        assert (found.console, found.requests) == ([], [])


@pytest.mark.browser
@needs_chromium
def test_a_name_is_never_more_than_text(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, hostile_page(tmp_path / "confusion.html")) as found:
        assert found.page.title() == HOSTILE[1]
        assert (found.console, found.requests) == ([], [])  # not even the policy had anything to refuse
        drawn = str(found.page.locator("svg.marks").evaluate("(svg) => svg.outerHTML"))
        assert "&lt;script&gt;document.title = 'run'&lt;/script&gt;</text>" in drawn
        assert "\\u202egnp.exe</text>" in drawn  # shown as what it is, in place of turning the line around
        assert found.page.locator("img").count() == 0


@pytest.mark.browser
@needs_chromium
def test_the_bars_are_drawn(browser: Browser, tmp_path: Path) -> None:
    save_chart(confused_pairs([("cat", "dog", 7), ("cat", "cow", 2)]), tmp_path / "pairs.html", title="x")
    with opened(browser, tmp_path / "pairs.html") as found:
        assert found.page.get_by_text("cat → dog").count() == 1
        assert found.page.locator('[aria-roledescription="bar"]').count() == 2
        assert (found.console, found.requests) == ([], [])


@pytest.mark.browser
@needs_chromium
def test_these_tests_would_see_a_request_and_a_script(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<title>x</title><img src=http://names.invalid/x><script>document.title='run';console.log(1)</script>"
    )
    with opened(browser, file) as found:
        assert found.requests == ["http://names.invalid/x"]
        assert found.page.title() == "run"
        assert "1" in found.console


def test_a_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    text = hostile_page(tmp_path / "page.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert [len(script) > 100_000 for script in scripts] == [True, False]  # the library, and the lines that call it
    ours = text.replace(scripts[0], "")
    # Of what is left, only the text of a hostile name looks like an address.
    assert set(re.findall(r"https?://[^\s\"&]+", ours)) == {"http://names.invalid/x"}
    assert not re.search(r"<(link|img|iframe|object|embed|base|form)\b|<script[^>]+src", ours)
    assert "default-src 'none'" in ours


def test_nothing_in_the_chart_can_end_its_script(tmp_path: Path) -> None:
    text = hostile_page(tmp_path / "page.html").read_text()
    (held,) = re.findall(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL)
    assert not set("<>&") & set(held)
    assert HOSTILE[1] in str(json.loads(held))


def test_the_policy_lets_exactly_the_pages_own_scripts_run() -> None:
    page = chart_page({}, title="t", text="x", grid=Grid("n", (), ()), library="var s = '</script>';")
    assert "var s = '<\\/script>';" in page
    assert page.count("'sha256-") == 2
    assert "unsafe-eval" not in page
    assert "script-src 'unsafe-inline'" not in page
