"""The nearest images: an exact search, only among vectors of the same network, and a page that shows them."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.embed.nearest import About, Collection, nearest, open_collection
from vggdeploy.engine.engine import load
from vggdeploy.errors import InputError, UsageError
from vggdeploy.export.bundle import ExportOptions, export_bundle


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, digits_test: ImageSet) -> Path:
    """A bundle with fc7, thirty digits as files, and their vectors in both formats."""
    home = tmp_path_factory.mktemp("nearest")
    export_bundle(
        checkpoint, home / "bundle", ExportOptions(formats=["onnx-fp32"], outputs=["fc7", "logits"], samples=20)
    )
    (home / "images").mkdir()
    for number in range(30):
        pixels = digits_test.images[number][..., 0]
        Image.fromarray(pixels).save(home / "images" / f"{number:02}-is-{digits_test.labels[number]}.png")
    for name in ("v.npy", "v.parquet"):
        assert run(["embed", str(home / "bundle"), str(home / "images"), "-o", str(home / name)]) == 0
    return home


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_it_finds_what_a_search_of_all_pairs_finds(home: Path, name: str) -> None:
    collection = open_collection(home / name)
    vectors = np.asarray(collection.vectors, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = vectors @ vectors.T
    with load(home / "bundle") as engine:
        found = nearest(engine, collection, list(collection.paths), top=4)
    for row, neighbours in enumerate(found):
        assert neighbours[0].image == collection.paths[row]
        order = np.sort(expected[row])[::-1][:4]
        np.testing.assert_allclose([one.similarity for one in neighbours], order, atol=1e-5)


def test_blocks_of_any_size_give_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = open_collection(home / "v.npy")
    with load(home / "bundle") as engine:
        whole = nearest(engine, collection, list(collection.paths)[:3], top=30)
        monkeypatch.setattr("vggdeploy.embed.nearest._BLOCK", 7)
        parts = nearest(engine, collection, list(collection.paths)[:3], top=30)
        for one, other in zip(parts, whole, strict=True):
            assert [n.image for n in one] == [n.image for n in other]
            np.testing.assert_allclose([n.similarity for n in one], [n.similarity for n in other], atol=1e-6)
        assert len(nearest(engine, collection, list(collection.paths)[:1], top=99)[0]) == 30
        with pytest.raises(UsageError, match="top is 0"):
            nearest(engine, collection, list(collection.paths)[:1], top=0)


def test_vectors_of_another_network_are_refused_though_their_shape_fits(home: Path, tmp_path: Path) -> None:
    collection = open_collection(home / "v.npy")
    other = msgspec.structs.replace(collection.about, bundle_digest="0" * 64, golden="1" * 64)
    with load(home / "bundle") as engine:
        for about in (other, About(output="fc7"), msgspec.structs.replace(other, golden="")):
            with pytest.raises(UsageError, match="another bundle"):
                nearest(engine, Collection(collection.vectors, collection.paths, about), list(collection.paths)[:1])


def test_a_bundle_that_gained_a_variant_is_still_the_same_network(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "bundle", tmp_path / "bundle")
    assert run(["optimize", str(tmp_path / "bundle"), "--step", "openvino-fp32", "--samples", "20"]) == 0
    collection = open_collection(home / "v.npy")
    with load(tmp_path / "bundle", variant="onnx-fp32") as engine:
        assert engine.bundle.manifest.digest != collection.about.bundle_digest
        assert nearest(engine, collection, list(collection.paths)[:1])[0][0].image == collection.paths[0]


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda home: (home / "v.paths.json").unlink(), "no file of vectors"),
        (lambda home: (home / "v.paths.json").write_text("[]"), "no file of vectors"),
        (lambda home: (home / "v.paths.json").write_text('"text"'), "no file of vectors"),
        (lambda home: (home / "v.paths.json").write_text('{"paths": []}'), "no file of vectors"),
        (lambda home: (home / "v.paths.json").write_text('{"paths": [1], "output": "fc7"}'), "no file of vectors"),
        (lambda home: (home / "v.npy").write_bytes(b"\x93NUMPY"), "no file of vectors"),
        (lambda home: np.save(home / "v.npy", np.zeros((3, 4), np.float32)), "not of one run"),
        (lambda home: np.save(home / "v.npy", np.array([{}], object), allow_pickle=True), "no file of vectors"),
    ],
)
def test_what_embed_did_not_write_is_refused(home: Path, tmp_path: Path, damage: object, cause: str) -> None:
    for name in ("v.npy", "v.paths.json"):
        shutil.copy(home / name, tmp_path / name)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=cause):
        open_collection(tmp_path / "v.npy")


def test_the_page_shows_every_picture_and_no_name_becomes_anything_but_text(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    shutil.copy(next((home / "images").iterdir()), hostile)
    page = tmp_path / "nearest.html"
    command = [
        "nearest",
        str(home / "bundle"),
        str(home / "v.npy"),
        str(hostile),
        "--top",
        "3",
        "-o",
        str(page),
        "--json",
    ]
    assert run(command) == 0
    (answer,) = json.loads(capsys.readouterr().out)["images"]
    assert answer["image"] == str(hostile) and len(answer["nearest"]) == 3
    text = page.read_text()
    assert text.count('<img src="data:image/png') == 4 and "<img src=x" not in text
    assert "default-src 'none'" in text
    moved = home / "images" / Path(answer["nearest"][1]["image"]).name
    bytes_before = moved.read_bytes()
    try:
        moved.write_bytes(b"no image any more")
        assert run(command) == 0
    finally:
        moved.write_bytes(bytes_before)
    assert page.read_text().count("cannot be read any more") == 1


def test_a_page_of_another_kind_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    assert run(["nearest", str(tmp_path), str(tmp_path / "v.npy"), str(tmp_path / "i.png"), "-o", "page.pdf"]) == 2


def test_a_picture_of_the_page_is_decoded_as_the_networks_images_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program is started for a PostScript file of a picture's name, a pipe is no picture, and 16 bits are not clipped."""
    from vggdeploy.embed.nearest_page import _thumbnail

    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    os.mkfifo(tmp_path / "b.png")
    assert _thumbnail(str(tmp_path / "a.png")) == _thumbnail(str(tmp_path / "b.png")) == ""
    Image.fromarray(np.full((20, 20), 30_000, np.uint16)).save(tmp_path / "c.png")
    with Image.open(io.BytesIO(base64.b64decode(_thumbnail(str(tmp_path / "c.png"))))) as shown:
        assert set(np.asarray(shown).ravel()) == {117}
