"""CIFAR-10: found, downloaded from a real server, or missed in words; never unpickled before its MD5 is right."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess, get_dataset
from vggdeploy.data.specs import DATASETS, Split
from vggdeploy.errors import DataError

PER_FILE = 20
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def file_of(number: int) -> bytes:
    random = np.random.default_rng(number)
    data = random.integers(0, 256, (PER_FILE, 3072), np.uint8)
    return pickle.dumps({"data": data, "labels": [i % 10 for i in range(PER_FILE)]})


def put(root: Path) -> Path:
    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (base / name).write_bytes(file_of(number))
    meta = pickle.dumps({"label_names": list(DATASETS["cifar10"].classes)})
    (base / CIFAR10.meta["filename"]).write_bytes(meta)
    return base


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tiny data set whose sums torchvision knows, no network, and a cache of one's own."""
    sizes: dict[Split, int] = {"train": 90, "validation": 10, "test": PER_FILE}
    monkeypatch.setitem(DATASETS, "cifar10", msgspec.structs.replace(DATASETS["cifar10"], sizes=sizes))
    base = put(tmp_path / "made")
    sums = [(name, md5((base / name).read_bytes())) for name in NAMES]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    meta = md5((base / CIFAR10.meta["filename"]).read_bytes())
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")  # the discard port: refused at once
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(root: Path | None, split: str = "test") -> np.ndarray:
    return load_split("CIFAR-10", split, default_preprocess("cifar10", 32), data_dir=root).images


def test_found_in_the_data_directory(tmp_path: Path) -> None:
    put(tmp_path / "data")
    images = load_split("cifar10", "test", default_preprocess("cifar10", 32), data_dir=tmp_path / "data")
    raw = pickle.loads(file_of(5))["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # noqa: S301  # made above
    assert (images.images == raw[images.indices]).all()
    assert images.labels.tolist() == [i % 10 for i in images.indices]
    sizes = [len(read(tmp_path / "data", split)) for split in ("train", "validation", "test")]
    assert sizes == [90, 10, PER_FILE]


def test_without_a_network_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded: .*refused.*cifar-10-batches-py and add --data-dir DIR"):
        read(tmp_path / "none")


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_file_with_another_md5_is_never_opened(tmp_path: Path) -> None:
    base = put(tmp_path / "data")
    (base / "test_batch").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(DataError, match="cifar-10-batches-py are damaged"):
        read(tmp_path / "data")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real web server with the archive of these files."""
    served = tmp_path / "served"
    served.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    (served / "cifar.tar.gz").write_bytes(buffer.getvalue())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{http.server_address[1]}/cifar.tar.gz")
        monkeypatch.setattr(CIFAR10, "filename", "cifar.tar.gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
        yield served
        http.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        pass


def test_downloaded_into_the_cache_once(server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read(None)) == PER_FILE
    (server / "cifar.tar.gz").unlink()
    assert len(read(None, "train")) == 90
    assert (tmp_path / "cache/vggdeploy/data" / CIFAR10.base_folder).is_dir()
    assert capsys.readouterr().out == ""  # stdout belongs to --json


@pytest.mark.parametrize("name", ["cifar10", "CIFAR10", "cifar-10", "cifar"])
def test_the_usual_spellings(name: str) -> None:
    assert get_dataset(name).name == "cifar10"
