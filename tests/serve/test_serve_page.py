"""The page in headless Chromium: an image in, labels, bars and times out; by keyboard, on a phone, in the dark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from report.chromium import CHROMIUM, FLAGS, PHONE, WIDE, needs_chromium
from serve.conftest import Live, live_server

from vggdeploy.serve.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.late, pytest.mark.browser, needs_chromium]
TOKEN = "correct-horse-battery-staple"  # noqa: S105


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@contextmanager
def opened(browser: Browser, live: Live, *, width: int = WIDE, dark: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """The page, and all that went wrong: errors of its console, and requests that went elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if _is_ours(request.url, live) else wrong.append(request.url))
    page.goto(live.url, wait_until="load")
    yield page, wrong
    context.close()


def _is_ours(url: str, live: Live) -> bool:
    return url.startswith((f"{live.url}/", f"blob:{live.url}/", "data:,"))


def keep(page: Page, name: str) -> None:
    """A screenshot, where $VGGDEPLOY_SCREENSHOTS names a directory for them."""
    if directory := os.environ.get("VGGDEPLOY_SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_a_chosen_image_is_answered_with_labels_bars_and_times(
    browser: Browser, live: Live, digit_png: Path, width: int, dark: bool
) -> None:
    with opened(browser, live, width=width, dark=dark) as (page, wrong):
        page.get_by_text("The model is bundle.").wait_for()
        keep(page, f"serve-empty-{width}-{'dark' if dark else 'light'}")
        page.set_input_files("#file", digit_png)
        page.locator("#result").wait_for()
        names = page.locator("#labels .name").all_inner_texts()
        shares = [float(text.removesuffix(" %")) for text in page.locator("#labels .share").all_inner_texts()]
        assert names[0] == digit_png.stem
        assert len(names) == 5
        assert shares == sorted(shares, reverse=True)
        track = page.locator("#labels .track").first.bounding_box()
        bar = page.locator("#labels .bar").first.bounding_box()
        assert track is not None
        assert bar is not None
        assert 100 * bar["width"] / track["width"] == pytest.approx(shares[0], abs=1)
        rows = page.locator("#times th").all_inner_texts()
        assert rows == [
            "upload, as the server saw it", "decode and resize", "wait for a batch", "compute", "in the server",
            "from here and back",
        ]  # fmt: skip
        assert page.locator("#status").inner_text().startswith(f"{digit_png.stem}: ")
        assert page.locator("#preview").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert wrong == []
        keep(page, f"serve-answer-{width}-{'dark' if dark else 'light'}")


def test_of_several_models_one_is_chosen(
    browser: Browser, bundle_dir: Path, features_dir: Path, digit_png: Path
) -> None:
    settings = Settings(bundle=f"digits={bundle_dir}", also=(f"features={features_dir}",), variant="onnx-fp32")
    with live_server(settings) as live, opened(browser, live, width=PHONE) as (page, wrong):
        page.get_by_text("One of 2 models answers.").wait_for()
        page.set_input_files("#file", digit_png)
        page.get_by_text("digits, onnx-fp32").wait_for()
        page.select_option("#models", "features")
        page.get_by_text("features, onnx-fp32").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
        assert wrong == []
        keep(page, "serve-several")


def test_it_works_by_keyboard_alone(browser: Browser, live: Live, digit_png: Path) -> None:
    with opened(browser, live) as (page, wrong):
        page.get_by_text("The model is bundle.").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        outline = page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle")
        assert outline == "solid"  # who sees it sees where the keyboard is
        # What the key does to the input is Chromium's to answer with its dialog, which it does not always open in a run
        # without a screen: here it must be the input that the key reaches, as a user's own click that nothing took away.
        page.evaluate(
            """() => { window.reached = [];
            document.addEventListener("click", (event) => window.reached.push(
                [event.target.id, event.isTrusted, event.defaultPrevented])); }"""
        )
        page.keyboard.press("Enter")
        page.wait_for_function("window.reached.length > 0")
        assert page.evaluate("window.reached") == [["file", True, False]]
        page.set_input_files("#file", digit_png)
        page.locator("#result").wait_for()
        assert page.locator("#labels .name").first.inner_text() == digit_png.stem
        assert wrong == []


def test_an_image_may_be_dropped(browser: Browser, live: Live, digit_png: Path) -> None:
    with opened(browser, live) as (page, wrong):
        data = page.evaluate_handle(
            """(bytes) => { const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" })); return data; }""",
            list(digit_png.read_bytes()),
        )
        page.dispatch_event("#drop", "dragenter", {"dataTransfer": data})
        assert "over" in (page.locator("#drop").get_attribute("class") or "")
        page.dispatch_event("#drop", "drop", {"dataTransfer": data})
        page.locator("#result").wait_for()
        assert page.locator("#labels .name").first.inner_text() == digit_png.stem
        assert wrong == []


def test_what_is_no_image_is_told_and_the_next_one_works(
    browser: Browser, live: Live, digit_png: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<script>alert(1)</script>")
    with opened(browser, live) as (page, _):
        page.set_input_files("#file", bad)
        page.locator("#status.wrong").wait_for()
        assert "not an image" in page.locator("#status").inner_text()
        assert not page.locator("#result").is_visible()
        keep(page, "serve-wrong")
        page.set_input_files("#file", digit_png)
        page.locator("#result").wait_for()


def test_a_label_is_text_and_never_markup(browser: Browser, own_bundle: Path, tmp_path: Path) -> None:
    import msgspec

    from vggdeploy.bundle import Bundle, update_bundle

    opened_bundle = Bundle.open(own_bundle)
    labels = tuple(f"<img src=x onerror=alert({n})> a label so long that it does not fit on a phone" for n in range(10))
    with update_bundle(opened_bundle) as draft:
        draft.manifest = msgspec.structs.replace(opened_bundle.manifest, labels=labels)
    Image.new("L", (900, 30)).save(tmp_path / "wide.png")
    with (
        live_server(Settings(bundle=str(own_bundle), variant="onnx-fp32")) as live,
        opened(browser, live, width=PHONE) as (page, wrong),
    ):
        page.set_input_files("#file", tmp_path / "wide.png")
        page.locator("#result").wait_for()
        assert page.locator("#labels .name").first.inner_text().startswith("<img src=x onerror=alert(")
        assert page.locator("#labels img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
        assert wrong == []
        keep(page, "serve-long-labels")


def test_it_asks_for_the_token_when_the_server_does(
    browser: Browser, bundle_dir: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGGDEPLOY_TOKEN", TOKEN)
    with (
        live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32")) as live,
        opened(browser, live, width=PHONE) as (page, _),
    ):
        page.locator("#token-form").wait_for()
        keep(page, "serve-token")
        page.set_input_files("#file", digit_png)
        page.locator("#status.wrong").wait_for()
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.locator("#result").wait_for()
        assert not page.locator("#token-form").is_visible()
        assert page.locator("#labels .name").first.inner_text() == digit_png.stem


def test_a_server_that_has_gone_is_told(browser: Browser, bundle_dir: Path, digit_png: Path) -> None:
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32")) as live, opened(browser, live) as (page, _):
        page.route("**/classify*", lambda route: route.abort())
        page.set_input_files("#file", digit_png)
        page.locator("#status.wrong").wait_for()
        assert "does not answer" in page.locator("#status").inner_text()
