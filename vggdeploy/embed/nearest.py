"""The images of a collection that are nearest to another one: an exact search in a file that ``embed`` wrote. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.embed.embed import about_rows
from vggdeploy.embed.vectors import paths_file
from vggdeploy.engine.embedding import unit_length
from vggdeploy.engine.engine import Engine
from vggdeploy.errors import InputError, UsageError, first_line, nearby
from vggdeploy.preprocess import ImageLike
from vggdeploy.records.base import Record
from vggdeploy.system.optional import require

_BLOCK = 2**11  # rows that are compared at a time: 32 MB of a VGG's fc7
_EMBED = "vggdeploy embed BUNDLE IMAGES -o VECTORS"
_AGAIN = f"embed the collection again: {_EMBED}"
_MAKE = f"embed the collection first: {_EMBED}"


class Neighbour(Record, frozen=True, kw_only=True):
    """An image of the collection; ``similarity`` is the cosine of its vector and the query's, −1 to 1."""

    image: str
    similarity: float


class About(msgspec.Struct, frozen=True):
    """What made the vectors; older files lack the last field. See `vggdeploy.embed.embed.about_vectors`."""

    output: str
    bundle: str = ""
    bundle_digest: str = ""
    pool: str | None = None
    golden: str = ""


@dataclass(frozen=True)
class Collection:
    """Vectors ``float32 [N, D]``, mapped from their file where it is ``.npy``, the path of each, and what made them."""

    vectors: NDArray[np.float32]
    paths: Sequence[str]
    about: About


class _Paths(msgspec.Struct):
    paths: list[str]


def open_collection(file: Path) -> Collection:
    """What ``vggdeploy embed`` wrote.

    Raises:
        InputError: no such file, one of another kind, a damaged one, or one whose paths are not beside it.
    """
    if not file.exists():
        raise InputError(f"{file} does not exist", f"{nearby(file)}{_MAKE}")
    try:
        opened = _parquet(file) if file.suffix.lower() == ".parquet" else _npy(file)
    except (OSError, ValueError, KeyError, msgspec.DecodeError) as error:
        raise InputError(f"{file} is no file of vectors that embed wrote: {first_line(error)}", _AGAIN) from error
    if opened.vectors.ndim < 2 or not len(opened.vectors) or len(opened.vectors) != len(opened.paths):
        raise InputError(
            f"{file} has {len(opened.vectors)} vectors and {len(opened.paths)} paths: they are not of one run", _AGAIN
        )
    return opened


def _npy(file: Path) -> Collection:
    beside = paths_file(file).read_bytes()
    paths, about = msgspec.json.decode(beside, type=_Paths).paths, msgspec.json.decode(beside, type=About)
    return Collection(np.load(file, mmap_mode="r", allow_pickle=False), paths, about)


def _parquet(file: Path) -> Collection:
    parquet = require("pyarrow.parquet", to="read Parquet files (.npy needs nothing)", extra="parquet")
    try:
        table = parquet.read_table(file, columns=["path", "vector"])
    except Exception as error:  # pyarrow's own errors are no common class, and are part of no stable interface
        if isinstance(error, (OSError, ValueError, KeyError)):
            raise
        raise ValueError(first_line(error)) from error
    about = msgspec.json.decode((table.schema.metadata or {})[b"vggdeploy"], type=About)
    vectors = table.column("vector").combine_chunks()
    flat = np.asarray(vectors.flatten().to_numpy(), np.float32)
    return Collection(flat.reshape(len(table), -1), table.column("path").to_pylist(), about)


def nearest(
    engine: Engine, collection: Collection, images: Sequence[ImageLike], *, top: int = 5
) -> list[list[Neighbour]]:
    """For each image the ``top`` of the collection whose vectors point most nearly its way, the nearest first.

    Every vector is compared; memory does not grow with an ``.npy`` collection.

    Raises:
        UsageError: ``top`` below 1, or a collection that another network embedded.
        InputError: an image that cannot be used.
    """
    if top < 1:
        raise UsageError(f"top is {top}", "ask for at least 1")
    about = collection.about
    _check_same_network(engine, about)
    queries = engine.embed(images, output=about.output, pool=about.pool or "avg")
    queries = unit_length(queries).reshape(len(queries), -1)
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(collection.paths), _BLOCK):
        block = np.asarray(collection.vectors[start : start + _BLOCK], np.float32)
        similar = np.hstack([best, queries @ unit_length(block).reshape(len(block), -1).T])
        known = np.hstack([rows, np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))])
        order = np.argsort(-similar, axis=1, kind="stable")[:, :top]  # of equals the first one of the collection
        best, rows = np.take_along_axis(similar, order, 1), np.take_along_axis(known, order, 1)
    return [
        [Neighbour(image=collection.paths[i], similarity=float(one)) for i, one in zip(ids, sims, strict=True)]
        for ids, sims in zip(rows.tolist(), best.tolist(), strict=True)
    ]


def _check_same_network(engine: Engine, about: About) -> None:
    """Vectors of two networks have nothing to do with each other, and their products look like similarities all the same."""
    mine = about_rows(engine, about.output)
    if any(mine[key] and getattr(about, key) == mine[key] for key in ("bundle_digest", "golden")):
        return
    raise UsageError(
        f"these vectors were made by another bundle ({about.bundle or 'unknown'}), so they do not compare", _AGAIN
    )
