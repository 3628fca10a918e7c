"""The packaged page in use: threads, camera, keyboard, dropped pictures, every decoder, and the module in another page."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from package.web_live import ISOLATED, served, visit
from PIL import Image, ImageCms
from report.axe import needs_npm
from report.chromium import needs_chromium

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.data.loaders import ImageSet
from vggdeploy.package.base import Order
from vggdeploy.package.web import package_web
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import prepare as prepare_by_pillow
from vggdeploy.spec import PreprocessSpec

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.late, pytest.mark.browser, needs_chromium, needs_npm]


def test_threads_are_used_where_the_host_allows_them(browser: Browser, site: Path) -> None:
    cores = "Object.defineProperty(navigator, 'hardwareConcurrency', { value: 4 });"
    with served(site, ISOLATED) as url, visit(browser, url, script=cores) as seen:
        assert seen.kind == "right", seen.told
        seen.page.locator("summary").click()
        rows = seen.page.locator("#backends th").all_inner_texts()
        assert rows == ["WebAssembly", "WebAssembly on 2 threads"]
        assert seen.page.locator("#backends td").nth(3).inner_text() in ("proven", "slower, so not used")
        assert (seen.console, seen.elsewhere) == ([], [])


def test_the_camera_and_the_keyboard_work(browser: Browser, site: Path) -> None:
    with served(site) as url, visit(browser, url) as seen:
        order = []
        for _ in range(3):
            seen.page.keyboard.press("Tab")
            order.append(seen.page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
        assert order == ["file", "camera", "SUMMARY"]
        seen.page.keyboard.press("Shift+Tab")
        seen.page.keyboard.press("Enter")
        seen.page.locator("#shoot:focus").wait_for()
        seen.page.keyboard.press("Enter")
        seen.page.locator("#result").wait_for()
        assert len(seen.answers()) == 5
        assert (seen.console, seen.elsewhere) == ([], [])


def test_a_picture_may_be_dropped_and_what_is_none_is_told(browser: Browser, site: Path, digit_png: Path) -> None:
    drop = """([bytes, name]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })); }"""
    with served(site) as url, visit(browser, url) as seen:
        seen.page.evaluate(drop, [list(digit_png.read_bytes()), "a.png"])
        seen.page.locator("#result").wait_for()
        assert seen.answers()[0] == digit_png.stem
        for data, told in ((b"text", "not a picture"), (b"", "empty"), (digit_png.read_bytes()[:-30], "damaged")):
            seen.page.evaluate(drop, [list(data), "b.png"])
            seen.page.locator("#status.wrong").wait_for()
            assert told in seen.page.locator("#status").inner_text()
            assert seen.answers() == []
        assert seen.kind == "right"


_MODULE = """async ([address, options, bytes, call]) => {
  const { load, classify, embed, VggdeployError } = await import(new URL("vggdeploy.js", document.baseURI));
  try {
    const model = await load(address, options);
    const picture = new Blob([new Uint8Array(bytes)]);
    const answer = call ? await (call.embed ? embed : classify)(model, picture, call.options) : null;
    return { title: model.title, whole: model.proof.reports.at(-1).whole, outputs: model.outputs,
             answer: call?.embed ? Array.from(answer) : answer };
  } catch (error) {
    return { error: error.message, known: error instanceof VggdeployError, proof: error.proof };
  }
}"""


def test_the_module_embeds_as_python_does(
    browser: Browser, features_dir: Path, tmp_path: Path, digit_png: Path
) -> None:
    package_web(Order(bundle=Bundle.open(features_dir), output=tmp_path / "site"))
    picture = list(digit_png.read_bytes())
    with served(tmp_path / "site") as url, visit(browser, url, wait=False) as seen:
        for options in ({}, {"normalise": True}, {"output": "relu2_1"}):
            found = seen.page.evaluate(_MODULE, ["./", {}, picture, {"embed": True, "options": options}])
            with vggdeploy.load(features_dir) as engine:
                expected = engine.embed(digit_png, **options)[0]  # type: ignore[arg-type]
            assert np.allclose(found["answer"], expected, rtol=1e-4, atol=1e-5), options
        found = seen.page.evaluate(_MODULE, ["./", {}, picture, {"embed": True, "options": {"output": "fc9"}}])
        assert found["error"] == "this model has no output fc9"


def test_the_module_refuses_another_sites_digest(browser: Browser, site: Path) -> None:
    with served(site) as url, visit(browser, url, wait=False) as seen:
        found = seen.page.evaluate(_MODULE, ["./", {"digest": "0" * 64}, [], None])
        assert found["error"].startswith("site.json was altered")


def wide_profile() -> bytes:
    """An ICC profile with the primaries of Display P3: an sRGB one with other colorants."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.1571, 0.06657, 0.78407),
    }  # fmt: skip
    (count,) = struct.unpack_from(">I", profile, 128)
    for index in range(count):
        name, start, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if name in primaries:
            struct.pack_into(">iii", profile, start + 8, *(round(value * 65536) for value in primaries[name]))
    return bytes(profile)


def test_what_chromium_decodes_is_what_pillow_decodes(
    browser: Browser, site: Path, tmp_path: Path, digits_test: ImageSet
) -> None:
    """Digits and smooth colours as JPEG of any sampling, and the golden set of other formats: to the same bits, so no class can
    change. Other browsers bring their own decoders, which the sample files of each visit compare."""
    noise = np.random.default_rng(0)
    prepare = """async ([bytes, recipe]) => {
      const [{ decode }, { prepare }] = await Promise.all(
        ["lib/decode.js", "lib/prepare.js"].map((name) => import(new URL(name, document.baseURI))));
      return Array.from(prepare(await decode(new Uint8Array(bytes), recipe), recipe));
    }"""
    recipe = json.loads((site / "site.json").read_text())["preprocess"] | {"channels": 3, "resize": 96, "crop": 64}
    spec = PreprocessSpec(resize=96, crop=64)
    with served(site) as url, visit(browser, url, wait=False) as seen:
        files = [*IMAGES.glob("*.webp"), *IMAGES.glob("*.gif"), *IMAGES.glob("*.bmp"), IMAGES / "two-pictures.mpo"]
        for index in range(24):
            colours = noise.integers(0, 256, (9, 12, 3), np.uint8)
            small = Image.fromarray(colours if index % 2 else digits_test.images[index, ..., 0])
            picture = small.resize(
                (int(noise.integers(80, 300)), int(noise.integers(80, 300))), Image.Resampling.BICUBIC
            )
            file = tmp_path / f"{index}.jpg"
            picture.save(file, quality=60 + 3 * index, subsampling=index % 3, progressive=index % 2 == 0)
            files.append(file)
        # As from a phone: a colour profile, which training does not apply, and more pixels than are read at a time.
        files += [tmp_path / "profile.jpg", tmp_path / "large.jpg"]
        picture.save(files[-2], icc_profile=wide_profile())
        picture.resize((2600, 2300)).save(files[-1], quality=70)
        differing = []
        for file in files:
            found = seen.page.evaluate(prepare, [list(file.read_bytes()), recipe])
            expected = prepare_by_pillow(file, spec)
            worst = np.abs(np.array(found, int).reshape(expected.shape) - expected).max()
            differing += [(file.name, int(worst))] if worst else []
        assert len(files) > 30
        assert differing == []
