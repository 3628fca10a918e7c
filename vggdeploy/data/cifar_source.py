"""CIFAR-10 through torchvision's class: found, or downloaded."""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from vggdeploy.data.specs import DatasetSpec, RawImages, Split, user_cache
from vggdeploy.data.torchvision_source import DOWNLOAD_ERRORS, connection_timeout, reason
from vggdeploy.errors import DataError
from vggdeploy.optional import first_line


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
        _download(root)
    try:
        with warnings.catch_warnings():  # NumPy's, of how the authors' old version wrote its dtypes
            warnings.simplefilter("ignore")
            found = CIFAR10(root, train=part == "train", download=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"the files of {dataset.name} in {base} are damaged: {first_line(error)}",
            "remove that directory and try again",
        ) from error
    return RawImages(part, found.data, np.array(found.targets, np.int64))


def _download(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    try:
        with connection_timeout(), redirect_stdout(StringIO()):  # stdout belongs to --json
            CIFAR10(root, train=True, download=True)
    except DOWNLOAD_ERRORS as error:
        raise DataError(
            f"cifar10 is not in {root} and cannot be downloaded: {reason(error)}",
            f"put its files into DIR/{CIFAR10.base_folder} and add --data-dir DIR, or connect to the internet",
        ) from error
