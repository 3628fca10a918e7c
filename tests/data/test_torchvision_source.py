"""MNIST and Fashion-MNIST: found, unpacked from Debian's files, downloaded, or missed in words."""

from __future__ import annotations

import gzip
import hashlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest
from torchvision.datasets import MNIST, FashionMNIST

from vggdeploy.data import torchvision_source
from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess, read_source
from vggdeploy.data.specs import DATASETS, RawImages, Split
from vggdeploy.errors import DataError, MissingDependencyError

TRAIN, TEST = 60, 20
FILES = [name.removesuffix(".gz") for name, _ in FashionMNIST.resources]


def idx(array: np.ndarray) -> bytes:
    """The IDX format of the MNIST files: two zeros, the type (8: unsigned byte), the rank, the sizes, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def contents(train: int = TRAIN, test: int = TEST) -> dict[str, bytes]:
    random, found = np.random.default_rng(0), {}
    for prefix, count in (("train", train), ("t10k", test)):
        found[f"{prefix}-images-idx3-ubyte"] = idx(random.integers(0, 256, (count, 28, 28), np.uint8))
        found[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return found


def put(directory: Path, files: dict[str, bytes], *, zipped: bool = False) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / f"{name}{'.gz' * zipped}").write_bytes(gzip.compress(data, 1) if zipped else data)
    return directory


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny data sets, no network, no Debian package, and a cache of one's own."""
    for name in ("mnist", "fashion-mnist"):
        sizes: dict[Split, int] = {"train": 50, "validation": 10, "test": TEST}
        spec = msgspec.structs.replace(DATASETS[name], sizes=sizes, validation=1 / 6)
        monkeypatch.setitem(DATASETS, name, spec)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # the discard port: refused at once
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setitem(torchvision_source.DEBIAN, "fashion-mnist", ("dataset-fashion-mnist", tmp_path / "no-debian"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(name: str, split: Split, root: Path | None) -> RawImages:
    return read_source(DATASETS[name], split, root)


def refused(name: str, root: Path | None) -> DataError:
    with pytest.raises(DataError) as caught:
        read(name, "train", root)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("name", "directory"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_found_in_the_data_directory(tmp_path: Path, name: str, directory: str) -> None:
    files = contents()
    put(tmp_path / directory / "raw", files)
    raw = read(name, "test", tmp_path)
    assert raw.part == "test"
    assert raw.images.tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert raw.labels.tolist() == [i % 10 for i in range(TEST)]
    preprocess = default_preprocess(name, 32)
    sizes = {
        s: load_split(name, s, preprocess, data_dir=tmp_path).images.shape for s in ("train", "validation", "test")
    }
    assert sizes == {"train": (50, 32, 32, 1), "validation": (10, 32, 32, 1), "test": (TEST, 32, 32, 1)}


def test_debians_files_are_unpacked_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = put(tmp_path / "debian", contents(), zipped=True)
    monkeypatch.setitem(torchvision_source.DEBIAN, "fashion-mnist", ("dataset-fashion-mnist", debian))
    assert len(read("fashion-mnist", "train", None).images) == TRAIN
    raw = tmp_path / "cache/vggdeploy/data/FashionMNIST/raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted(FILES)
    assert sorted(p.suffix for p in debian.iterdir()) == [".gz"] * 4  # nothing was written there


def test_a_damaged_archive_of_debians_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = put(tmp_path / "debian", contents(), zipped=True)
    archive = debian / f"{FILES[0]}.gz"
    archive.write_bytes(archive.read_bytes()[:-10])
    monkeypatch.setitem(torchvision_source.DEBIAN, "fashion-mnist", ("dataset-fashion-mnist", debian))
    error = refused("fashion-mnist", None)
    assert str(archive) in error.cause
    assert error.hint == "apt-get install --reinstall dataset-fashion-mnist"


def test_without_a_network_both_remedies_are_named(tmp_path: Path) -> None:
    error = refused("fashion-mnist", tmp_path)
    assert "cannot be downloaded" in error.cause
    assert "Connection refused" in error.cause
    assert "apt-get install dataset-fashion-mnist" in error.hint
    assert "--data-dir" in error.hint
    assert "connect" in error.hint
    assert "apt-get" not in refused("mnist", tmp_path).hint  # Debian has no package of it


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(torchvision_source, "TIMEOUT", 0.2)
        assert "timed out" in refused("mnist", tmp_path).cause
    assert socket.getdefaulttimeout() is None


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real web server with the archives of MNIST; torchvision's MD5s are those of these files."""
    served = put(tmp_path / "served", contents(), zipped=True)
    handler = partial(Quiet, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_address[1]}/"])
        sums = [
            (n, hashlib.md5((served / n).read_bytes(), usedforsecurity=False).hexdigest()) for n, _ in MNIST.resources
        ]
        monkeypatch.setattr(MNIST, "resources", sums)
        yield served
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        pass


def test_downloaded_once_and_checked(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read("mnist", "train", tmp_path / "data").images) == TRAIN
    for file in mirror.iterdir():
        file.unlink()
    assert len(read("mnist", "test", tmp_path / "data").images) == TEST
    assert capsys.readouterr().out == ""  # stdout belongs to --json


def test_a_download_with_another_md5_is_refused(mirror: Path, tmp_path: Path) -> None:
    first = mirror / MNIST.resources[0][0]
    first.write_bytes(gzip.compress(b"something else"))
    assert "corrupted" in refused("mnist", tmp_path / "data").cause


@pytest.mark.parametrize("keep", [0, 3, 16, 5000])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    raw = put(tmp_path / "MNIST/raw", contents())
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:keep])
    error = refused("mnist", tmp_path)
    assert "damaged" in error.cause
    assert str(raw) in error.cause
    assert "remove that directory" in error.hint


def test_another_number_of_images_is_not_the_data_set(tmp_path: Path) -> None:
    put(tmp_path / "MNIST/raw", contents(train=TRAIN - 1))
    assert f"holds {TRAIN - 1} images" in refused("mnist", tmp_path).cause


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    files = contents()
    files["train-labels-idx1-ubyte"] = files["train-labels-idx1-ubyte"][:-1] + b"\x0b"
    put(tmp_path / "MNIST/raw", files)
    assert "labels 0 … 11 for 10 classes" in refused("mnist", tmp_path).cause


def test_a_missing_torchvision_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError, match=r"needed to read mnist.*vggdeploy\[train\]"):
        read("mnist", "train", tmp_path)
