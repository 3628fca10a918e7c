"""The report in a real browser: drawn, sortable, reachable by keyboard, readable on a phone, and silent."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from axe import fetch_axe, needs_npm, violations
from chromium import PHONE, WIDE, needs_chromium, opened
from report_samples import bench, layers, parity, proof, row, scenario, whole, write

from vggdeploy.bench.compare import compare_files
from vggdeploy.records import to_json
from vggdeploy.report.documents import Document
from vggdeploy.report.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.late, pytest.mark.browser, needs_chromium]
# latency and accuracy lost, two tails, throughput, load and its tails, memory, cold start, parity, layers
PICTURES = 11


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fetch_axe(tmp_path_factory.mktemp("axe"))


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
        take = found.page.locator(".take").first
        assert take.locator(".name").inner_text() == "onnx-fp32"
        told = take.inner_text()
        assert "4.00 × as fast as torch-fp32 at batch 1 (95% interval 3.90–4.10)" in told
        facts = dict(zip(take.locator("dt").all_inner_texts(), take.locator("dd").all_inner_texts(), strict=True))
        assert facts == {
            "p50": "0.500 ms\nbatch 1",
            "p99": "1.00 ms",
            "throughput": "2,000 images/s\n4,000 at batch 8",
            "accuracy drop": "≤ 0.83 points",
            "size": "3.70 MB",
            "memory": "100 MB",
        }
        assert "Runner-up: onnx-int8, 0.200 ms at batch 1: its proof says fail: wrong output: flips." in told
        assert take.locator("pre").inner_text() == "vggdeploy predict artifacts/demo/bundle IMAGE --variant onnx-fp32"
        box = take.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 844  # all of it before anyone scrolls
        items = found.page.locator(".lights li").all()
        lights = [(item.locator("b").inner_text(), item.locator(".word").inner_text()) for item in items]
        assert lights == [
            ("torch-fp32", "pass"),
            ("onnx-fp32", "pass"),
            ("onnx-fp16", "inconclusive"),
            ("onnx-int8", "fail"),
            ("tensorrt-rtx-fp16", "unproven"),
        ]
        apart = found.page.locator(".lights li", has_text="onnx-fp16").inner_text()
        assert "numerical pass; bounds inconclusive" in apart
        shapes = {found.page.locator(f".lights svg.{v}").first.inner_html() for _, v in lights}
        assert len(shapes) == 4  # told apart without colour


def test_the_main_picture_names_every_variant_where_it_is_drawn(browser: Browser, report: Path) -> None:
    with opened(browser, report, width=PHONE) as found:
        for picture in found.page.locator(".picture svg.marks").all():
            words = picture.locator("text").all_text_contents()
            for name in ("torch-fp32", "onnx-fp32", "onnx-fp16", "onnx-int8"):
                assert words.count(name) == 1
            assert picture.locator(".role-legend").count() == 0
            boxes = [
                t.bounding_box()
                for t in picture.locator(".role-axis-label text").all()
                if "fp" in (t.text_content() or "")
            ]
            tops = sorted(box["y"] for box in boxes if box is not None)
            assert all(below - above > 15 for above, below in pairwise(tops))  # ties do not overlap


def test_no_table_is_cut_at_1400_and_a_hint_says_so_where_one_is(browser: Browser, report: Path) -> None:
    cut = "[...document.querySelectorAll('.scroll')].filter((s) => s.scrollWidth > s.clientWidth + 1).length"
    hints = "[...document.querySelectorAll('.hint')].filter((h) => h.offsetParent).length"
    with opened(browser, report, width=1400) as found:
        assert (found.page.evaluate(cut), found.page.evaluate(hints)) == (0, 0)
    with opened(browser, report, width=420) as found:
        assert found.page.evaluate(cut) == found.page.evaluate(hints) > 3
        p50 = found.page.locator("table").first.locator("th", has_text="p50 ms").bounding_box()
        assert p50 is not None
        assert p50["x"] + p50["width"] < 420  # latency is seen before anyone scrolls


def test_the_points_of_a_columns_numbers_stand_in_one_line(browser: Browser, report: Path) -> None:
    with opened(browser, report, width=1400) as found:
        ends = found.page.evaluate(
            """[...document.querySelectorAll("table")[1].tBodies[0].rows].map((row) => {
              const text = row.cells[2].firstChild, range = document.createRange();
              range.setStart(text, 0);
              range.setEnd(text, text.data.indexOf("."));
              return Math.round(range.getBoundingClientRect().right);
            })"""
        )
        assert len(set(ends)) == 1


def test_on_paper_all_is_light_and_everything_is_open(browser: Browser, report: Path) -> None:
    with opened(browser, report, dark=True) as found:
        assert found.page.locator('.chart[data-drawn="dark"]').count() == PICTURES
        found.page.emulate_media(media="print", color_scheme="dark")
        found.page.locator('.chart[data-drawn="light"]').nth(PICTURES - 1).wait_for()
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not found.page.locator("nav").is_visible()
        for heading in found.page.locator("h2, h3").all():
            assert heading.evaluate("(h) => getComputedStyle(h).breakAfter") == "avoid"


@needs_npm
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_no_rule_of_accessibility_is_broken(browser: Browser, report: Path, axe: str, width: int, dark: bool) -> None:
    with opened(browser, report, width=width, dark=dark) as found:
        assert violations(found.page, axe) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_a_page_against_a_baseline_is_drawn_whole_and_breaks_no_rule(
    browser: Browser, tmp_path: Path, axe: str, width: int, dark: bool
) -> None:
    files = write(tmp_path, *whole())
    earlier = tmp_path / "earlier.json"
    earlier.write_bytes(to_json(msgspec.structs.replace(whole()[0], created="2026-11-20T08:00:00Z")))
    change = Document(earlier, compare_files([earlier], files[:1]))
    write_report(files, tmp_path / "report.html", made=[change])
    with opened(browser, tmp_path / "report.html", width=width, dark=dark) as found:
        assert found.page.locator("#baseline").count() == 1
        theme = "dark" if dark else "light"
        assert found.page.locator(f'.chart[data-drawn="{theme}"] svg.marks').count() == PICTURES + 1
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        assert violations(found.page, axe) == []
        assert (found.console, found.requests) == ([], [])
        found.keep(f"baseline-{width}-{theme}")


@needs_npm
def test_the_rules_would_see_a_button_without_a_name(browser: Browser, report: Path, axe: str) -> None:
    with opened(browser, report) as found:
        found.page.evaluate("document.querySelector('th button').textContent = ''")
        assert any(rule.startswith("button-name") for rule in violations(found.page, axe))


def test_a_page_is_no_larger_than_a_mail_takes(report: Path) -> None:
    assert report.stat().st_size < 1_500_000


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
        assert cells(found, 3) == ["0.200", "0.500", "0.510", "2.00", "–"]  # what was not measured comes last
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert cells(found, 3) == ["2.00", "0.510", "0.500", "0.200", "–"]
        table.locator("th", has_text="variant").locator("button").click()
        assert head.get_attribute("aria-sort") is None
        assert cells(found, 1) == sorted(cells(found, 1))


def test_the_keyboard_reaches_and_sorts_a_table(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        found.page.keyboard.press("Tab")
        assert found.page.evaluate("document.activeElement.textContent") == "Skip to the tables"
        button = found.page.locator("table").first.locator("th button").nth(2)
        for _ in range(60):
            found.page.keyboard.press("Tab")
            if button.evaluate("(b) => b === document.activeElement"):
                break
        found.page.keyboard.press("Enter")
        assert cells(found, 3)[0] == "0.200"


def test_pointing_at_a_mark_tells_its_numbers(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        found.page.locator('.chart >> nth=0 >> [aria-roledescription="point"]').last.hover()
        tip = found.page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        for word in ("variant", "verdict", "p50 ms", "images/s"):
            assert word in tip.inner_text()


def test_a_screen_reader_gets_a_description_and_a_table_of_every_picture(browser: Browser, report: Path) -> None:
    with opened(browser, report) as found:
        for picture in found.page.locator(".chart").all():
            assert len(picture.get_attribute("aria-label") or "") > 30
        text = found.page.locator("main").inner_text()
        for number in ("0.500", "4.00", "1.0e-06", "3.0e-01", "800", "31.2", "400"):  # one of each picture
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
        assert found.page.locator(".take .name").first.inner_text() == name
        drawn = found.page.locator("svg.marks").first.locator("text").all_text_contents()
        assert any(word.startswith("<script>document.title") for word in drawn)
        assert (found.console, found.requests) == ([], [])
