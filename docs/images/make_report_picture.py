"""Draw report.png and search.png: the first screen of a report, in Debian's chromium.

vggdeploy demo, then in its directory:

vggdeploy verify artifacts/demo/bundle --json > verify.json
vggdeploy bench artifacts/demo/bundle --batch 1,8,32 --seconds 3 --json > bench.json
vggdeploy evaluate artifacts/demo/bundle --variant onnx-fp32 --json > evaluate.json
vggdeploy report verify.json bench.json evaluate.json -o report.html
python docs/images/make_report_picture.py report.html report.png

Of the search that `benchmarks/search.py` judges (its bundle is FOUND):

vggdeploy report FOUND/search.json -o search.html
python docs/images/make_report_picture.py search.html search.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 840


def main() -> None:
    source, target = Path(sys.argv[1]).resolve(), Path(__file__).with_name(sys.argv[2])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(source.as_uri())
        page.wait_for_function("[...document.querySelectorAll('.chart')].every((c) => c.dataset.drawn)")
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    main()
