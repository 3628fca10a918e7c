"""MNIST and Fashion-MNIST through torchvision's classes: found, unpacked from Debian's package, or downloaded."""

from __future__ import annotations

import gzip
import os
import socket
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from vggdeploy.data.specs import DatasetSpec, RawImages, Split, user_cache
from vggdeploy.errors import DataError, first_line
from vggdeploy.system.files import atomic_write

_CLASSES: dict[str, Any] = {"mnist": MNIST, "fashion-mnist": FashionMNIST}

# Debian packages that bring the data set, and where they put its four IDX files.
DEBIAN: dict[str, tuple[str, Path]] = {
    "fashion-mnist": ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
}
TIMEOUT = 30.0  # seconds without a byte; torchvision's own download would wait for ever
DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError, EOFError, zlib.error)


def read_mnist(dataset: DatasetSpec, split: Split, data_dir: Path | None) -> RawImages:
    """The official training or test images, 28×28, from wherever they are found first.

    In order: torchvision's layout below ``data_dir`` (or the user's cache), Debian's package, a download (which
    torchvision checks by MD5).

    Raises:
        DataError: they are nowhere and cannot be downloaded, or a file is damaged.
    """
    kind = _CLASSES[dataset.name]
    root = data_dir or user_cache()
    part = "test" if split == "test" else "train"
    if not _present(kind, root):
        root = _unpack_debian(dataset, kind, root) or _download(dataset, kind, root)
    try:
        source = kind(root, train=part == "train", download=False)
        images, labels = source.data.numpy(), source.targets.numpy()
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"the files of {dataset.name} in {_raw(kind, root)} are damaged: {first_line(error)}",
            "remove that directory and try again",
        ) from error
    return RawImages(part, images, labels.astype(np.int64))


def _raw(kind: Any, root: Path) -> Path:
    """The directory of torchvision's layout that holds the unpacked IDX files."""
    return root / kind.__name__ / "raw"


def _idx_names(kind: Any) -> list[str]:
    return [name.removesuffix(".gz") for name, _ in kind.resources]


def _present(kind: Any, root: Path) -> bool:
    return all((_raw(kind, root) / name).is_file() for name in _idx_names(kind))


def _unpack_debian(dataset: DatasetSpec, kind: Any, root: Path) -> Path | None:
    """Unpack Debian's files into torchvision's layout; the root, or None without the package.

    Debian compressed the same bytes anew, so torchvision's MD5s of the archives do not fit; gzip's own checksum and
    the IDX headers do.
    """
    _, directory = DEBIAN.get(dataset.name, ("", Path()))
    names = _idx_names(kind)
    if dataset.name not in DEBIAN or not all((directory / f"{name}.gz").is_file() for name in names):
        return None
    if root.exists() and not os.access(root, os.W_OK):
        root = user_cache()
    for name in names:
        archive = directory / f"{name}.gz"
        try:
            data = gzip.decompress(archive.read_bytes())
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{archive} is damaged: {first_line(error)}", f"apt-get install --reinstall {DEBIAN[dataset.name][0]}"
            ) from error
        atomic_write(_raw(kind, root) / name, data)
    return root


def _download(dataset: DatasetSpec, kind: Any, root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    try:
        with connection_timeout(), redirect_stdout(StringIO()):  # stdout belongs to --json
            kind(root, train=True, download=True)
    except DOWNLOAD_ERRORS as error:
        package = DEBIAN[dataset.name][0] if dataset.name in DEBIAN else ""
        remedies = [f"apt-get install {package}"] * bool(package)
        remedies += [f"put its files into DIR/{kind.__name__}/raw and add --data-dir DIR", "connect to the internet"]
        raise DataError(
            f"{dataset.name} is not in {root} and cannot be downloaded: {reason(error)}", ", or ".join(remedies)
        ) from error
    return root


def reason(error: BaseException) -> str:
    """torchvision lists every mirror it tried; the last line that is not empty says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip("<>").removeprefix("urlopen error ") if lines else type(error).__name__


@contextmanager
def connection_timeout() -> Iterator[None]:
    """Within the block, give a connection up after `TIMEOUT` without a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_cifar10(dataset: DatasetSpec, split: Split, data_dir: Path | None) -> RawImages:
    """The official training or test images, 32×32 RGB.

    Its files are Python pickles. torchvision compares their MD5 sums with the authors' before it opens them, so nothing
    else is ever unpickled.

    Raises:
        DataError: they are nowhere and cannot be downloaded, or a file is damaged.
    """
    root = data_dir or user_cache()
    base = root / CIFAR10.base_folder
    part = "test" if split == "test" else "train"
    if not all((base / name).is_file() for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)):
        _download_cifar10(root)
    try:
        with warnings.catch_warnings():  # NumPy's, of how the authors' old version wrote its dtypes
            warnings.simplefilter("ignore")
            source = CIFAR10(root, train=part == "train", download=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"the files of {dataset.name} in {base} are damaged: {first_line(error)}",
            "remove that directory and try again",
        ) from error
    return RawImages(part, source.data, np.array(source.targets, np.int64))


def _download_cifar10(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    try:
        with connection_timeout(), redirect_stdout(StringIO()):  # stdout belongs to --json
            CIFAR10(root, train=True, download=True)
    except DOWNLOAD_ERRORS as error:
        raise DataError(
            f"cifar10 is not in {root} and cannot be downloaded: {reason(error)}",
            f"put its files into DIR/{CIFAR10.base_folder} and add --data-dir DIR, or connect to the internet",
        ) from error
