"""Whether what stands in a directory is whole: each kind of file that a command writes, read to its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import parse_checkpoint
from vggdeploy.model.weights import load_model


def half_written(root: Path) -> list[str]:
    """What is not whole below a directory, without drafts, whose names begin with a dot."""
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        check = _check_of(path)
        if check is None or any(part.startswith(".") for part in parts):
            continue
        try:
            check(path)
        except Exception as error:  # whatever a reader says of it
            found.append(f"{'/'.join(parts)}: {type(error).__name__}: {error}"[:300])
    return found


def _check_of(path: Path) -> Callable[[Path], object] | None:
    if path.name == "manifest.json":
        return lambda file: Bundle.open(file.parent, trust=())
    if path.name == "checkpoint.json":
        return _checkpoint
    if path.name == "model.sig":
        return lambda file: json.loads(file.read_bytes())
    return _BY_SUFFIX.get(path.suffix)


def _checkpoint(path: Path) -> None:
    parse_checkpoint(path.read_bytes(), str(path))
    load_model(path.parent)


def _parquet(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.read_table(path)


def _html(path: Path) -> None:
    if not path.read_bytes().rstrip().endswith(b"</html>"):
        raise ValueError("it has no end")


def _key(path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    data = path.read_bytes()
    if path.suffix == ".pub":
        load_pem_public_key(data)
    else:
        load_pem_private_key(data, None)


def _image(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.load()


_BY_SUFFIX: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_bytes()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".npy": lambda path: np.load(path, mmap_mode="r", allow_pickle=False),
    ".parquet": _parquet,
    ".html": _html,
    ".png": _image,
    ".pem": _key,
    ".pub": _key,
}
