"""``verify --layers -o DIR``: the planted layer is in the picture, and the text says where the picture is."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest
from chromium import needs_chromium, opened
from onnx import numpy_helper
from PIL import Image
from report_samples import layers

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.manifest import parse_manifest, seal
from vggdeploy.cli.app import run
from vggdeploy.report.pictures import write_layers
from vggdeploy.system.files import sha256_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RED = (198, 40, 40)


def test_both_files_are_drawn_and_the_culprit_is_red(tmp_path: Path) -> None:
    files = write_layers([layers("../evil name")], tmp_path / "pictures")
    assert [f.name for f in files] == ["layers-.._evil_name.png", "layers-.._evil_name.html"]
    pixels = np.asarray(Image.open(BytesIO(files[0].read_bytes())).convert("RGB"))
    assert (pixels == RED).all(axis=2).sum() > 200
    (calm, _) = write_layers([layers(culprit=None)], tmp_path)
    assert not (np.asarray(Image.open(calm).convert("RGB")) == RED).all(axis=2).any()


def test_an_overflow_is_named_as_one(tmp_path: Path) -> None:
    _, page = write_layers([layers(finite=False)], tmp_path)
    text = page.read_text()
    assert "overflow" in text
    assert ">not finite</td>" in text


@pytest.mark.browser
@needs_chromium
def test_the_page_opens_without_a_word(browser: Browser, tmp_path: Path) -> None:
    _, page = write_layers([layers()], tmp_path)
    with opened(browser, page) as found:
        assert found.page.locator("svg.marks").get_by_text("conv2_1: at fault").count() == 1
        assert (found.console, found.requests) == ([], [])


@pytest.mark.parametrize(
    ("extra", "told"),
    [(["-o", "pictures"], "-o belongs to --layers"), (["--layers", "-o", "bundle/x"], "part of a bundle")],
)
def test_a_directory_without_layers_or_in_the_bundle_is_refused(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: list[str], told: str
) -> None:
    monkeypatch.chdir(own_bundle.parent)
    assert run(["verify", "bundle", *extra]) == 2
    assert told in capsys.readouterr().err


def test_a_planted_fault_is_drawn_and_its_picture_is_named(
    own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(own_bundle)
    target = tmp_path / "pictures"
    assert run(["verify", str(own_bundle), "--variant", "onnx-fp32", "--layers", "-o", str(target)]) == 3
    assert str(target / "layers-onnx-fp32.png") in capsys.readouterr().err
    assert "conv3_1: at fault" in (target / "layers-onnx-fp32.html").read_text()


def plant(root: Path) -> None:
    """One convolution of the FP32 graph doubled, in a bundle whose hashes are right again."""
    manifest = parse_manifest((root / MANIFEST_NAME).read_bytes(), where="x")
    path = manifest.variant("onnx-fp32").path
    model = onnx.load(root / path)
    node = [n for n in model.graph.node if n.op_type == "Conv"][2]
    (weights,) = [i for i in model.graph.initializer if i.name == node.input[1]]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    onnx.save(model, root / path)
    files = tuple(
        msgspec.structs.replace(f, sha256=sha256_of(root / path), size=(root / path).stat().st_size)
        if f.path == path
        else f
        for f in manifest.files
    )
    (root / MANIFEST_NAME).write_bytes(seal(msgspec.structs.replace(manifest, files=files)))
