"""The packaged page in Chromium: proven where it runs, and no answer wherever anything was changed."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from package.web_live import Visit, faulty, reseal, served, visit
from report.axe import fetch_axe, needs_npm, violations
from report.chromium import PHONE, needs_chromium

import vggdeploy

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.late, pytest.mark.browser, needs_chromium, needs_npm]
_MODEL = "bundle/variants/onnx-fp32/model.onnx"
_REFUSED = "Not proven: no answers here"


def keep(seen: Visit, name: str) -> None:
    if directory := os.environ.get("VGGDEPLOY_SCREENSHOTS"):
        seen.page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fetch_axe(tmp_path_factory.mktemp("axe"))


def test_it_proves_itself_and_answers_what_python_answers_in_any_width_light_and_dark(
    browser: Browser, site: Path, bundle_dir: Path, digit_png: Path, axe: str
) -> None:
    """One visit, for a proof takes its time; looks follow the window and the scheme at once."""
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        expected = [(p.label, p.probability) for p in engine.classify(digit_png, top=5)]
    with served(site) as url, visit(browser, url) as seen:
        assert seen.kind == "right", seen.told
        assert seen.told.startswith("Proven on this device")
        assert "WebAssembly is used" in seen.told
        seen.page.set_input_files("#file", digit_png)
        seen.page.locator("#result").wait_for()
        shares = [float(t.removesuffix(" %")) for t in seen.page.locator("#labels .share").all_inner_texts()]
        assert seen.answers()[0] == expected[0][0]
        assert shares == pytest.approx([100 * p for _, p in expected], abs=0.06)
        seen.page.locator("summary").click()
        assert "prepared 19 to the very bits" in seen.page.locator("#preparing").inner_text()
        grounds = set()
        for width, scheme in itertools.product((1400, PHONE), ("light", "dark")):
            seen.page.set_viewport_size({"width": width, "height": 844})
            seen.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            assert seen.page.evaluate("() => document.documentElement.scrollWidth") == width
            assert violations(seen.page, axe) == []
            grounds.add(seen.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
            keep(seen, f"web-right-{width}-{scheme}")
        assert len(grounds) == 2  # the scheme did change
        assert (seen.console, seen.elsewhere) == ([], [])


FAULTS = {
    "weights": (_MODEL, lambda data: _flipped(data, len(data) // 2), "model.onnx was altered"),
    "cut weights": (_MODEL, lambda data: data[:-1], "is cut short"),
    "longer weights": (_MODEL, lambda data: data + b"\0", "is longer than it was packaged"),
    "golden answers": ("bundle/golden/outputs/logits.npy", lambda data: _flipped(data, -1), "logits.npy was altered"),
    "golden pictures": ("bundle/golden/inputs/image.npy", lambda data: _flipped(data, -1), "image.npy was altered"),
    "sample files": ("bundle/golden/files/rgb.png", lambda data: _flipped(data, -9), "rgb.png was altered"),
    "labels": ("site.json", lambda data: data.replace(b'"3"', b'"8"', 1), "site.json was altered"),
    "limits": ("site.json", lambda data: data.replace(b"1e-05", b"1e+05", 1), "site.json was altered"),
    "runtime": ("runtime/ort.wasm.bundle.min.mjs", lambda data: data + b"\n", "is longer than it was packaged"),
}


def _flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_file_ends_in_red_and_no_answer(browser: Browser, own_site: Path, fault: str) -> None:
    name, change, told = FAULTS[fault]
    before = (own_site / name).read_bytes()
    (own_site / name).unlink()
    (own_site / name).write_bytes(change(before))
    assert (own_site / name).read_bytes() != before
    with served(own_site) as url, visit(browser, url) as seen:
        assert seen.refuses(), seen.told
        assert seen.told.startswith(_REFUSED)
        assert told in seen.told
        assert seen.elsewhere == []


def test_a_missing_file_is_named(browser: Browser, own_site: Path) -> None:
    (own_site / _MODEL).unlink()
    with served(own_site) as url, visit(browser, url) as seen:
        assert seen.refuses()
        assert "is not there (HTTP 404)" in seen.told


@pytest.mark.parametrize("name", ["page.js", "vggdeploy.js", "lib/judge.js"])
def test_a_changed_script_never_runs(browser: Browser, own_site: Path, name: str) -> None:
    (own_site / name).write_text((own_site / name).read_text() + "\n// changed\n")
    with served(own_site) as url, visit(browser, url, wait=False) as seen:
        seen.page.wait_for_load_state("networkidle")
        assert seen.told.startswith("Nothing is proven yet")
        assert "its scripts did not start" in seen.told
        assert not seen.page.locator("#work").is_visible()
        assert any("integrity" in line for line in seen.console)


def test_wrong_weights_with_right_hashes_fail_the_golden_pair(browser: Browser, own_site: Path) -> None:
    """Who packages wrong weights has every hash right: only the answers tell."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(own_site / _MODEL)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(1.001), largest.name))
    onnx.save(model, own_site / _MODEL)
    reseal(own_site)
    with served(own_site) as url, visit(browser, url, width=PHONE) as seen:
        assert seen.refuses(), seen.told
        assert "This device does not compute what the trained model computes." in seen.told
        assert "WebAssembly: its answers to known pictures are off by " in seen.told
        assert "not proven: logits: relative L2" in seen.table
        keep(seen, f"web-wrong-{PHONE}-light")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("values[0] += 0.01;", "relative L2"),
        ("values.reverse();", "relative L2"),
        ("values[3] = NaN;", "a NaN or infinity in 'logits'"),
        ("values.fill(0);", "relative L2"),
        ("if (calls % 40 === 0) values[1] += 1;", "relative L2"),
    ],
)
def test_a_backend_that_answers_wrongly_ends_in_red(
    browser: Browser, site: Path, axe: str, damage: str, told: str
) -> None:
    with served(site) as url, visit(browser, url, script=faulty(damage)) as seen:
        assert seen.refuses(), seen.told
        assert told in seen.table
        assert violations(seen.page, axe) == []


def test_the_headline_counts_the_stress_pictures_and_who_goes_wrong_after_the_proof_answers_nothing_any_more(
    browser: Browser, site: Path, digit_png: Path
) -> None:
    golden, stress = (json.loads((site / "site.json").read_text())[kind]["count"] for kind in ("golden", "stress"))
    first = 1 + 3 + golden  # calls: the one that compiles, those that are timed, the golden pair
    # On the stress pictures alone a difference below the limit, and above what rounding makes.
    off = f"if (calls > {first} && calls <= {first + stress}) values.forEach((v, at) => {{ values[at] = v * 1.000001; }});"
    with served(site) as url:
        # So many calls does the proof take; the first picture and its known one are right, too.
        with visit(browser, url, script=faulty(off + "document.title = String(calls);")) as seen:
            assert seen.kind == "right", seen.told
            said = re.search(rf"{golden + stress} known pictures .* up to a difference of (\S+)\. ", seen.told)
            assert said is not None, seen.told
            assert float(said[1]) == pytest.approx(1e-6, rel=0.3)
            calls = int(seen.page.title())
        with visit(browser, url, script=faulty("values.reverse();", after=calls + 2)) as seen:
            assert seen.kind == "right", seen.told
            seen.page.set_input_files("#file", digit_png)
            seen.page.locator("#result").wait_for()
            assert seen.answers()[0] == digit_png.stem
            seen.page.set_input_files("#file", digit_png)
            seen.page.locator("#verdict.wrong").wait_for()
            assert seen.refuses(), seen.told
            assert "stopped computing what the trained model computes" in seen.told


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("WebAssembly.validate = () => false;", "WebAssembly has no SIMD instructions"),
        ("delete globalThis.WebAssembly;", "has no WebAssembly"),
        ("Object.defineProperty(crypto, 'subtle', { value: undefined });", "came over plain http"),
        (
            "WebAssembly.instantiate = async () => { throw new RangeError('Out of memory'); };",
            "the memory was not enough",
        ),
    ],
)
def test_a_browser_that_cannot_is_told_so_in_a_sentence(browser: Browser, site: Path, script: str, told: str) -> None:
    with served(site) as url, visit(browser, url, script=script) as seen:
        assert seen.refuses(), seen.told
        assert told in seen.told


@pytest.mark.parametrize(("levels", "kind"), [(1, "right"), (40, "wrong")])
def test_a_browser_that_shifts_pixels_is_told_apart_from_one_that_rounds_otherwise(
    browser: Browser, site: Path, levels: int, kind: str
) -> None:
    """Some browsers add noise to what a page reads of a canvas, so that no page knows them by it."""
    noise = f"""const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
        OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...where) {{
          const pixels = read.apply(this, where);
          for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at] += pixels.data[at] > 128 ? -{levels} : {levels};
          return pixels;
        }};"""
    with served(site) as url, visit(browser, url, script=noise) as seen:
        assert seen.kind == kind, seen.told
        if kind == "wrong":
            assert seen.refuses()
            assert "This browser prepares pictures otherwise than the model was trained on." in seen.told
        else:
            told = seen.page.locator("#preparing").text_content() or ""
            assert re.search(
                r"prepared \d+ to the .*\d+ JPEG files came within two .*; none of them got another class", told
            ), told


def test_webgpu_is_proven_and_answers_where_wasm_is_wrong_and_a_wrong_shader_ends_in_red(
    with_gpu: Browser, site: Path, digit_png: Path
) -> None:
    """Of every shader the largest of two numbers becomes the smallest: what a driver's compiler could do."""
    broken = faulty("values.reverse();", only="wasm")
    wrong = """const make = GPUDevice.prototype.createShaderModule;
        GPUDevice.prototype.createShaderModule = function (what) {
          return make.call(this, { ...what, code: what.code.replaceAll("max(", "min(") });
        };"""
    with served(site) as url:
        with visit(with_gpu, url, script=broken) as seen:
            assert seen.kind == "right", seen.told
            assert "WebGPU is used" in seen.told
            assert "WebAssembly was not proven, and is not used" in seen.told
            seen.page.set_input_files("#file", digit_png)
            seen.page.locator("#result").wait_for()
            assert seen.answers()[0] == digit_png.stem
            seen.page.locator("summary").click()
            rows = seen.page.locator("#backends tr").all_inner_texts()
            assert [row.split("\t")[0] for row in rows] == ["WebAssembly", "WebGPU"]
            keep(seen, "web-gpu-1280-light")
        with visit(with_gpu, url, script=wrong + broken) as seen:
            assert seen.refuses(), seen.told
            assert "WebGPU: " in seen.told
