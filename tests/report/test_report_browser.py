"""The report in a real browser: drawn, sortable, reachable by keyboard, readable on a phone, and silent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from chromium import PHONE, WIDE, needs_chromium, opened
from report_samples import bench, layers, parity, proof, row, scenario, whole, write

from vggdeploy.report.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.late, pytest.mark.browser, needs_chromium]
PICTURES = 9  # accuracy against latency, two distributions, throughput, load, memory, cold start, parity, layers


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("report")
    write_report(write(home, *whole()), home / "report.html")
    return home / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_picture_is_drawn_at_every_width_and_nothing_is_asked_for(
    browser: Browser, report: Path, width: int, dark: bool
) -> None:
    with opened(browser, report, width=width, dark=dark) as found:
        theme = "dark" if dark else "light"
        assert found.page.locator(f'.chart[data-drawn="{theme}"] svg.marks').count() == PICTURES
        for picture in found.page.locator(".chart svg.marks").all():
            assert picture.locator(".mark-symbol path, .mark-line path, .mark-rect path").count() > 1
            box = picture.bounding_box()
            assert box is not None
            assert 250 <= box["width"] <= width
        assert found.page.evaluate("document.documentElement.scrollWidth") == width  # only tables scroll sideways
        assert (found.console, found.requests) == ([], [])
        found.keep(f"report-{width}-{theme}")


def test_the_first_screen_says_what_to_take_and_shows_every_light(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        take = found.page.locator(".take")
        assert take.locator(".name").inner_text() == "onnx-fp32"
        assert "4.00 × as fast as torch-fp32 at batch 1" in take.inner_text()
        items = found.page.locator(".lights li").all()
        lights = [(item.locator("b").inner_text(), item.locator(".word").inner_text()) for item in items]
        assert lights == [
            ("torch-fp32", "pass"),
            ("onnx-fp32", "pass"),
            ("onnx-fp16", "inconclusive"),
            ("onnx-int8", "fail"),
            ("tensorrt-rtx-fp16", "unproven"),
        ]
        shapes = {found.page.locator(f".lights svg.{v}").first.inner_html() for _, v in lights}
        assert len(shapes) == 4  # told apart without colour
        below = found.page.locator(".lights").bounding_box()
        assert below is not None
        assert below["y"] < 844


def cells(found: object, column: int) -> list[str]:
    page = found.page  # type: ignore[attr-defined]
    return [str(text) for text in page.locator(f"table >> nth=0 >> tbody tr td:nth-child({column})").all_inner_texts()]


def test_a_column_sorts_by_its_numbers_and_turns_around(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        table = found.page.locator("table").first
        head = table.locator("th", has_text="p50 ms")
        assert head.get_attribute("aria-sort") is None
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert cells(found, 6) == ["0.200", "0.500", "0.510", "2.000", "–"]  # what was not measured comes last
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert cells(found, 6) == ["2.000", "0.510", "0.500", "0.200", "–"]
        table.locator("th", has_text="variant").locator("button").click()
        assert head.get_attribute("aria-sort") is None
        assert cells(found, 1) == sorted(cells(found, 1))


def test_the_keyboard_reaches_and_sorts_a_table(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        found.page.keyboard.press("Tab")
        assert found.page.evaluate("document.activeElement.textContent") == "Skip to the tables"
        button = found.page.locator("table").first.locator("th button").nth(5)
        for _ in range(60):
            found.page.keyboard.press("Tab")
            if button.evaluate("(b) => b === document.activeElement"):
                break
        found.page.keyboard.press("Enter")
        assert cells(found, 6)[0] == "0.200"


def test_pointing_at_a_mark_tells_its_numbers(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        found.page.locator('.chart >> nth=0 >> [aria-roledescription="point"]').last.hover()
        tip = found.page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        for word in ("variant", "accuracy", "p50 ms", "97.00%"):
            assert word in tip.inner_text()


def test_a_screen_reader_gets_a_description_and_a_table_of_every_picture(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        for picture in found.page.locator(".chart").all():
            assert len(picture.get_attribute("aria-label") or "") > 30
        text = found.page.locator("main").inner_text()
        for number in ("0.500", "4.000", "1.0e-06", "3.0e-01", "400.0", "31.250", "100.0"):  # one of each picture
            assert number in text
        assert found.page.locator("h1").count() == 1
        assert found.page.locator("html[lang=en]").count() == 1
        for image in found.page.locator("svg.light").all():
            assert image.get_attribute("aria-hidden") == "true"  # the word beside it says it


def test_the_culprit_is_marked_in_words(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        assert found.page.locator("svg.marks").get_by_text("conv2_1: at fault").count() == 1
        assert found.page.locator("td").get_by_text("at fault", exact=True).count() == 1


def test_hostile_names_stay_text(browser: Browser, tmp_path: Path) -> None:
    name = "<script>document.title='run'</script>"
    base = row("torch-fp32", 2.0, (1, 1, 1))
    evil = row(name, 0.5, (4, 3.9, 4.1), device='"><img src=http://names.invalid/x onerror="document.title=\'run\'">')
    path = f"artifacts/{name}/<!-- "
    results = write(
        tmp_path,
        bench(base, evil, scenarios=(scenario(name, 10, 2),), bundle=path, command=f"vggdeploy bench '{path}'"),
        msgspec.structs.replace(parity(proof(base), proof(evil, data=name), layers=(layers(name),)), bundle=path),
    )
    write_report(results, tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as found:
        assert found.page.title() == "Report: script>/<!--"  # the last two parts of the path, as text
        assert found.page.locator("img").count() == 0
        assert found.page.locator(".take .name").inner_text() == name
        assert found.page.locator("svg.marks").first.get_by_text(name).count()
        assert (found.console, found.requests) == ([], [])
