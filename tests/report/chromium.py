"""Debian's chromium, asked what becomes of a page: its document, its console, and what it asked the network for."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = Path("/usr/bin/chromium")
# What a fresh profile asks for by itself, whatever the flags say. Nothing is answered: see --host-resolver-rules.
_ITS_OWN = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium")


@dataclass(frozen=True)
class Opened:
    """What a page was when it had come to rest: ``requests`` are the URLs asked for, but for its own file."""

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


def open_page(page: Path, scratch: Path, *, dark: bool = False) -> Opened:
    """Open a file in an empty profile."""
    log = scratch / "net.json"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [
            CHROMIUM, *_FLAGS, *theme, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return Opened(done.stdout, console, _requests(log.read_text()))


def _requests(text: str) -> tuple[str, ...]:
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # the browser ended before the list did
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    urls = {e["params"]["url"] for e in events if isinstance(e.get("params"), dict) and "url" in e["params"]}
    return tuple(sorted(url for url in urls if not (urlsplit(url).hostname or "").endswith(_ITS_OWN)))
