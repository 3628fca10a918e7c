"""Draw report.png: the first screen of a report of the demo's bundle, in Debian's chromium.

vggdeploy demo, then in its directory:

vggdeploy verify artifacts/demo/bundle --json > verify.json
vggdeploy bench artifacts/demo/bundle --batch 1,8,32 --seconds 3 --json > bench.json
vggdeploy evaluate artifacts/demo/bundle --variant onnx-fp32 --json > evaluate.json
vggdeploy report verify.json bench.json evaluate.json -o report.html
python docs/images/make_report_picture.py report.html
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 840


def main() -> None:
    target = Path(__file__).with_name("report.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(Path(sys.argv[1]).resolve().as_uri())
        page.wait_for_function("[...document.querySelectorAll('.chart')].every((c) => c.dataset.drawn)")
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    main()
