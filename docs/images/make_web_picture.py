"""Draw web.png: a packaged page on a phone's width in Debian's chromium, as it is and with one byte of its weights changed.

vggdeploy demo, then in its directory:

vggdeploy package artifacts/demo/bundle --target web --prepare --name Digits -o artifacts/site
python -m http.server --bind 127.0.0.1 --directory artifacts/site 8080
python docs/images/make_web_picture.py http://127.0.0.1:8080/ artifacts/demo/images/00-is-3.png
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright

WIDTH, HEIGHT, SCALE, GAP = 390, 760, 1.5, 48


def main() -> None:
    url, picture = sys.argv[1:]
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox"])
        for altered in (False, True):
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE)
            if altered:
                page.route("**/model.onnx", alter)
            shots.append(shot(page, url, "" if altered else picture))
        browser.close()
    both = Image.new("RGB", (2 * shots[0].width + GAP, shots[0].height), "white")
    for index, image in enumerate(shots):
        both.paste(image, (index * (image.width + GAP), 0))
    both.convert("P", palette=Image.Palette.ADAPTIVE).save(Path(__file__).with_name("web.png"), optimize=True)


def alter(route: Route) -> None:
    body = bytearray(route.fetch().body())
    body[len(body) // 2] ^= 1
    route.fulfill(body=bytes(body))


def shot(page: Page, url: str, picture: str) -> Image.Image:
    page.goto(url)
    page.locator("#verdict.right, #verdict.wrong").wait_for()
    if picture:
        page.set_input_files("#file", picture)
        page.locator("#result").wait_for()
    return Image.open(io.BytesIO(page.screenshot()))


if __name__ == "__main__":
    main()
