"""Files of vectors, written as they come: ``.parquet``, or ``.npy`` with ``.paths.json`` beside it. Whole, or not there."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vggdeploy.errors import UsageError
from vggdeploy.system.files import FileDraft
from vggdeploy.system.optional import require

Vectors = NDArray[np.float32]
Add = Callable[[Sequence[str], Vectors], None]

SUFFIXES = (".parquet", ".npy")
ROW_GROUP_BYTES = 4 * 2**20  # what a Parquet writer holds (a few times), and what a reader of few rows has to read
_MAX_ROWS = 65_536


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse early what `vector_file` cannot write.

    Raises:
        UsageError: another suffix, something that is no regular file, or a file that stands there without ``overwrite``.
        MissingDependencyError: ``.parquet`` without pyarrow.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{target} is neither .parquet nor .npy", "give a name that ends in one of them")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a regular file", "choose another output file")
    if not overwrite and target.exists():
        raise UsageError(f"{target} already exists", "add --force to replace it, or choose another file")
    if target.suffix.lower() == ".parquet":
        _pyarrow()


@contextmanager
def vector_file(target: Path, *, shape: tuple[int, ...], about: Mapping[str, Any], overwrite: bool) -> Iterator[Add]:
    """A file that is filled by calls of the function given, and takes its place when the block ends without an error.

    ``.parquet``: a row an image, ``path`` (string) and ``vector`` (fixed-size list of float), ``about`` as JSON under
    ``vggdeploy`` in the schema's metadata. ``.npy``: one array ``[N, …]``; ``NAME.paths.json`` holds ``about`` and the
    ``paths``. Memory does not grow with the rows.

    Args:
        shape: of one vector. Parquet stores ``(C, H, W)`` flat, in C order.
        about: what made the vectors, JSON values.

    Raises:
        UsageError, MissingDependencyError: as `check_target`.
    """
    check_target(target, overwrite=overwrite)
    kind = _parquet if target.suffix.lower() == ".parquet" else _npy
    with kind(target, shape, {**about, "shape": list(shape)}) as add:
        yield add


def paths_file(target: Path) -> Path:
    """Where the paths of an ``.npy`` file's rows are: ``vectors.npy`` → ``vectors.paths.json``."""
    return target.with_suffix(".paths.json")


def as_text(path: str) -> str:
    """A path as UTF-8 can hold it: bytes that are none become ``\\udc…``."""
    return path.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _drafts(*targets: Path) -> Iterator[list[FileDraft]]:
    """Drafts that are placed together, one right after the other, when the block ends without an error."""
    with ExitStack() as stack:
        drafts = []
        for target in targets:
            drafts.append(FileDraft(target))
            stack.callback(drafts[-1].discard)
        yield drafts
        for draft in drafts:
            draft.finish()
        # Never new vectors with the paths of another run: a process that is killed between the two leaves no paths.
        for draft in drafts[1:]:
            draft.target.unlink(missing_ok=True)
        for draft in drafts:
            draft.place()


@contextmanager
def _npy(target: Path, shape: tuple[int, ...], about: dict[str, Any]) -> Iterator[Add]:
    rows = 0
    with _drafts(target, paths_file(target)) as (vectors, paths):
        head = _npy_header(0, shape)
        vectors.file.write(head)
        paths.file.write(json.dumps(about)[:-1].encode() + b', "paths": [')

        def add(names: Sequence[str], values: Vectors) -> None:
            nonlocal rows
            vectors.file.write(np.ascontiguousarray(values, "<f4").data)
            for name in names:
                paths.file.write((b",\n" if rows else b"\n") + json.dumps(as_text(name), ensure_ascii=False).encode())
                rows += 1

        yield add
        paths.file.write(b"\n]}\n")
        vectors.file.seek(0)
        vectors.file.write(_npy_header(rows, shape))


def _npy_header(rows: int, shape: tuple[int, ...]) -> bytes:
    """NumPy pads a header for a first axis of 21 digits, so that it can be written anew when the rows are counted."""
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, *shape)})
    return buffer.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    to, extra = "write Parquet files (.npy needs nothing)", "parquet"
    return require("pyarrow", to=to, extra=extra), require("pyarrow.parquet", to=to, extra=extra)


@contextmanager
def _parquet(target: Path, shape: tuple[int, ...], about: dict[str, Any]) -> Iterator[Add]:
    arrow, parquet = _pyarrow()
    size = math.prod(shape)
    columns = [
        arrow.field("path", arrow.string(), nullable=False),
        arrow.field(
            "vector", arrow.list_(arrow.field("element", arrow.float32(), nullable=False), size), nullable=False
        ),
    ]
    schema = arrow.schema(columns, metadata={"vggdeploy": json.dumps(about)})
    group = max(1, min(_MAX_ROWS, ROW_GROUP_BYTES // (4 * size)))
    names: list[str] = []
    parts: list[Vectors] = []

    with _drafts(target) as (draft,):
        # Values of a feature neither repeat nor compress; paths do.
        writer = parquet.ParquetWriter(
            draft.file, schema, use_dictionary=False, compression={"path": "zstd"}, write_statistics=["path"]
        )

        def flush() -> None:
            flat = arrow.array(np.concatenate(parts).reshape(-1))
            vectors = arrow.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
            writer.write_table(arrow.table([arrow.array(names, arrow.string()), vectors], schema=schema))
            names.clear()
            parts.clear()

        def add(paths: Sequence[str], values: Vectors) -> None:
            names.extend(map(as_text, paths))
            parts.append(values)
            if len(names) >= group:
                flush()

        try:
            yield add
            if names:
                flush()
            writer.close()
        except BaseException:
            with suppress(Exception):  # or it would close itself later, into a file that is gone
                writer.close()
            raise
