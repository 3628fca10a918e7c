"""The operator's page in headless Chromium, at two widths, in light and dark; and its data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from report.chromium import PHONE, WIDE, needs_chromium
from serve.conftest import Live, live_server
from serve.test_serve_page import TOKEN, browser, keep, opened

from vggdeploy.serve.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]  # a fixture


def settings_of(home: Path, **more: object) -> Settings:
    return Settings(
        bundle=str(home), variant="onnx-fp32", shadow=str(home), sample=1.0, own=("shadow.variant=onnx-fp16",), drift=True,
        **more,
    )  # fmt: skip


def test_its_data_say_what_runs(bundle_dir: Path, digit_png: Path) -> None:
    with live_server(settings_of(bundle_dir)) as live:
        live.client.post("/classify", content=digit_png.read_bytes())
        found = live.client.get("/status/data").json()
        (model,) = found["models"]
        assert (model["name"], model["state"], model["variant"]) == ("bundle", "READY", "onnx-fp32")
        assert model["digest"] == live.engine.bundle.manifest.digest
        assert model["times"]["answers"] == 1
        assert model["proof"]["verdict"] in ("pass", "inconclusive")
        assert (model["proof"]["numerical"], model["proof"]["bounds"]) == ("pass", model["proof"]["verdict"])
        assert "top-1 classes changed" in model["proof"]["told"]
        assert found["shadow"]["shadow"]["variant"] == "onnx-fp16"
        assert len(found["drift"]["statistics"]) == 7
        assert str(bundle_dir.parent) not in live.client.get("/status/data").text


def test_the_page_is_open_and_its_data_are_not(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGGDEPLOY_TOKEN", TOKEN)
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32")) as live:
        pages = [live.client.get(path) for path in ("/status", "/status.css", "/status.js", "/")]
        assert [reply.status_code for reply in pages] == [200] * 4
        policies = {reply.headers["content-security-policy"] for reply in pages}
        assert len(policies) == 1
        assert "default-src 'none'" in policies.pop()
        for path in ("/status/data", "/shadow", "/drift"):
            assert live.client.get(path).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{live.url}/status/data", headers=headers).json()["shadow"] is None


browsed = [pytest.mark.late, pytest.mark.browser, needs_chromium]


def marked(function):  # type: ignore[no-untyped-def]
    for mark in browsed:
        function = mark(function)
    return function


@marked
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_it_shows_what_runs_the_shadow_and_the_drift(
    browser: Browser, bundle_dir: Path, digit_png: Path, width: int, dark: bool
) -> None:
    with live_server(settings_of(bundle_dir)) as live:
        for _ in range(3):
            live.client.post("/classify", content=digit_png.read_bytes())
        at_status = Live(f"{live.url}/status", live.client, live.app, live.engine)
        with opened(browser, live, width=width, dark=dark) as (page, wrong):
            page.goto(at_status.url, wait_until="load")
            page.locator("#models .card").wait_for()
            text = page.locator("main").inner_text()
            for word in (
                "bundle",
                "READY",
                "onnx-fp32 on cpu",
                "Shadow",
                "onnx-fp16",
                "It may not take over.",
                "brightness",
            ):
                assert word in text
            assert re.search(r"proof\n(pass|inconclusive): ", text)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert wrong == []
            keep(page, f"status-{width}-{'dark' if dark else 'light'}")


@marked
def test_a_name_from_a_bundle_is_text_and_never_markup(browser: Browser, own_bundle: Path) -> None:
    import msgspec

    from vggdeploy.bundle import Bundle, update_bundle

    bundle = Bundle.open(own_bundle)
    with update_bundle(bundle) as draft:
        draft.manifest = msgspec.structs.replace(bundle.manifest, name="<img src=x onerror=alert(1)>" * 4)
    with (
        live_server(Settings(bundle=str(own_bundle), variant="onnx-fp32")) as live,
        opened(browser, live, width=PHONE) as (page, wrong),
    ):
        page.goto(f"{live.url}/status", wait_until="load")
        page.locator("#models .card").wait_for()
        assert "<img src=x" in page.locator("#models").inner_text()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
        assert wrong == []


@marked
def test_it_asks_for_the_token_and_tells_of_a_server_that_has_gone(
    browser: Browser, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGGDEPLOY_TOKEN", TOKEN)
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32")) as live, opened(browser, live) as (page, _):
        page.goto(f"{live.url}/status", wait_until="load")
        page.locator("#token-form").wait_for()
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.locator("#models .card").wait_for()
        assert not page.locator("#token-form").is_visible()
        page.route("**/status/data", lambda route: route.abort())
        page.get_by_text("The server does not answer").wait_for(timeout=10_000)
