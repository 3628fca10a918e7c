"""What a search made, on a page: at most 3 MB for the visitor, INT8 too, and the answers that Python gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from package.web_live import served, visit
from report.axe import needs_npm
from report.chromium import needs_chromium

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.late, pytest.mark.browser, needs_chromium, needs_npm]
MOST = 3_000_000  # bytes of a model


@pytest.fixture(scope="module")
def searched(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a short search, with a variant in INT8 of the network that it found."""
    root = tmp_path_factory.mktemp("searched") / "b"
    line = ["search", str(checkpoint), "--max-accuracy-drop", "5", "--budget", "3", "--epochs", "1", "--threads", "1"]
    assert run([*line, "-o", str(root)]) == 0
    if "onnx-int8" not in {variant.name for variant in Bundle.open(root).manifest.variants}:
        assert run(["optimize", str(root), "--step", "int8"]) == 0
    return root


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8"])
def test_a_searched_network_is_small_proven_in_the_browser_and_answers_what_python_answers(
    searched: Path, digit_png: Path, browser: Browser, tmp_path: Path, variant: str
) -> None:
    site = tmp_path / "site"
    assert run(["package", str(searched), "--target", "web", "--variant", variant, "-o", str(site), "--prepare"]) == 0
    assert (site / "bundle" / "variants" / variant / "model.onnx").stat().st_size <= MOST
    with vggdeploy.load(searched, variant=variant) as engine:
        [best] = engine.classify(digit_png, top=1)
    with served(site) as url, visit(browser, url) as seen:
        assert seen.kind == "right", seen.told
        seen.page.set_input_files("#file", digit_png)
        seen.page.locator("#result").wait_for()
        [share, *_] = [float(t.removesuffix(" %")) for t in seen.page.locator("#labels .share").all_inner_texts()]
        assert seen.answers()[0] == best.label
        # INT8 may round another way in another library; the page's verdict is what bounds it.
        assert share == pytest.approx(100 * best.probability, abs=0.06 if variant == "onnx-fp32" else 5)
        assert seen.elsewhere == []
        # ONNX Runtime warns of scales whose layer it has fused; nothing else is said.
        assert [line for line in seen.console if "CleanUnusedInitializers" not in line] == []
