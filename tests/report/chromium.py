"""Debian's chromium, driven by Playwright: what becomes of a page, its console, and what it asks the network for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
WIDE, PHONE = 1280, 390

needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists() or find_spec("playwright") is None,
    reason="needs Debian's chromium (apt-get install chromium) and Playwright (pip install 'vggdeploy[test]')",
)


@dataclass
class Opened:
    """A page that has come to rest. ``requests`` are the addresses that it asked for, but for its own file."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def keep(self, name: str) -> None:
        """A screenshot of the whole page, where $VGGDEPLOY_SCREENSHOTS names a directory for them."""
        if directory := os.environ.get("VGGDEPLOY_SCREENSHOTS"):
            self.page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


@contextmanager
def opened(browser: Browser, file: Path, *, width: int = WIDE, dark: bool = False) -> Iterator[Opened]:
    """Open a file in an empty profile, and wait for its charts. Nothing that it asks for is answered."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.console.append(message.text))
    page.on("pageerror", lambda error: found.console.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.route(lambda url: url != file.as_uri(), lambda route: route.abort())
    page.goto(file.as_uri(), wait_until="load")
    page.wait_for_function("[...document.querySelectorAll('.chart')].every((c) => c.dataset.drawn || c.textContent)")
    found.requests.remove(file.as_uri())
    yield found
    context.close()
