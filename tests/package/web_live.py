"""A packaged site, served and opened in Debian's Chromium: its verdict, its requests, and faults to plant in it."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report.chromium import WIDE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NO_GPU = "No available adapters."  # what Chromium writes wherever a page asks for a GPU and there is none
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class _Handler(http.server.SimpleHTTPRequestHandler):
    headers_sent: dict[str, str] = {}

    def end_headers(self) -> None:
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Requests are no news."""


@contextmanager
def served(site: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of a directory, as ``python -m http.server`` serves it, with more headers."""
    handler = type("Handler", (_Handler,), {"headers_sent": headers or {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@dataclass
class Visit:
    """A page that has come to its verdict. ``elsewhere`` are requests that went to anybody but the site."""

    page: Page
    console: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.page.locator("#verdict").get_attribute("class") or ""

    @property
    def told(self) -> str:
        return self.page.locator("#verdict").inner_text()

    @property
    def table(self) -> str:
        """What the table of backends says, open or not."""
        return self.page.locator("#backends").text_content() or ""

    def answers(self) -> list[str]:
        """What the visitor sees as an answer."""
        rows = self.page.locator("#labels .name")
        return [row.inner_text() for row in rows.all() if row.is_visible()]

    def refuses(self) -> bool:
        """Red, with what to do; neither an answer nor a way to one, and no script that broke off."""
        hidden = not any(self.page.locator(each).is_visible() for each in ("#work", "#progress", "#amount"))
        advised = self.page.locator("#fix").is_visible() and not any("TypeError" in line for line in self.console)
        return self.kind == "wrong" and hidden and advised and self.page.locator("#labels li").count() == 0


@contextmanager
def visit(
    browser: Browser,
    url: str,
    *,
    width: int = WIDE,
    dark: bool = False,
    script: str = "",
    path: str = "",
    wait: bool = True,
) -> Iterator[Visit]:
    """Open the page in an empty profile. ``script`` runs in it before its own."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light", permissions=["camera"]
    )
    page = context.new_page()
    found = Visit(page)
    page.on("console", lambda message: message.text == _NO_GPU or found.console.append(message.text))
    page.on("pageerror", lambda error: found.console.append(str(error)))
    own = (url, f"blob:{url}", "data:,")
    page.on("request", lambda request: None if request.url.startswith(own) else found.elsewhere.append(request.url))
    if script:
        page.add_init_script(script)
    page.goto(url + path)
    if wait:
        page.locator("#verdict.right, #verdict.wrong").wait_for(timeout=90_000)
    yield found
    context.close()


def faulty(damage: str, *, only: str = "", after: int = 0) -> str:
    """A script that wraps the runtime, which is imported from checked bytes: ``damage`` changes the ``values`` of each answer.

    Args:
        only: a provider whose answers alone are changed.
        after: so many answers are right first.
    """
    return f"""(() => {{
      const make = URL.createObjectURL.bind(URL);
      URL.createObjectURL = (blob) => {{
        if (blob.type !== "text/javascript") return make(blob);
        const text = `import * as real from "${{make(blob)}}";
          export const env = real.env, Tensor = real.Tensor;
          let calls = 0;
          export const InferenceSession = {{ async create(bytes, options) {{
            const session = await real.InferenceSession.create(bytes, options);
            if ({json.dumps(only)} && options.executionProviders[0] !== {json.dumps(only)}) return session;
            return {{ release: () => session.release(), async run(feeds, names) {{
              const answers = await session.run(feeds, names);
              if (calls++ < {after}) return answers;
              return Object.fromEntries(Object.entries(answers).map(([name, tensor]) => {{
                const values = Float32Array.from(tensor.data);
                {damage}
                return [name, {{ data: values }}];
              }}));
            }} }};
          }} }};`;
        return make(new Blob([text], {{ type: "text/javascript" }}));
      }};
    }})();"""


def reseal(site: Path, change: Callable[[dict[str, Any]], None] = lambda site: None) -> None:
    """Make every hash fit again after a change: what somebody could do who packages wrong files."""
    found = json.loads((site / "site.json").read_text())
    for record in found["files"]:
        data = (site / record["path"]).read_bytes()
        record.update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    change(found)
    data = json.dumps(found).encode()
    (site / "site.json").write_bytes(data)
    index = site / "index.html"
    digest = hashlib.sha256(data).hexdigest()
    index.write_text(re.sub(r'(?<="vggdeploy-digest" content=")[0-9a-f]{64}', digest, index.read_text()))
