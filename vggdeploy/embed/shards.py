"""A shard of a large job: the images that belong together, and the one Parquet file that comes of them. Torch-free."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from vggdeploy.bundle import Bundle, Manifest
from vggdeploy.embed.embed import about_rows, about_vectors, chosen_embedding
from vggdeploy.embed.vectors import as_text, vector_file
from vggdeploy.engine.embedding import Embedding
from vggdeploy.engine.engine import Engine, load
from vggdeploy.engine.predictions import need_scores, predictions, probabilities
from vggdeploy.errors import InputError, UsageError
from vggdeploy.preprocess import describe, prepare
from vggdeploy.records import Record, from_json
from vggdeploy.runtime.sessions import in_order
from vggdeploy.system.files import atomic_write, read_regular

JOB_NAME = "job.json"
SHARD_SIZE = 1024  # images
_LIMIT = 1024 * 2**20
Named = tuple[str, str | bytes]  # what a row is called, and the path or the bytes of its image


class Task(Record, frozen=True, kw_only=True):
    """What is done to every image. ``digest``: of the bundle, which is the same one on every node, or nothing is done."""

    kind: Literal["embed", "predict"]
    bundle: str
    digest: str
    backend: str = "auto"
    variant: str | None = None
    output: str | None = None
    pool: str | None = None
    normalise: bool = False
    top: int = 3

    def check(self, bundle: Bundle) -> None:
        """
        Raises:
            UsageError: an output, a pool or class scores that the bundle has not.
        """
        if self.kind == "predict":
            if self.top < 1:
                raise UsageError(f"top is {self.top}", "ask for at least 1")
            need_scores(bundle.manifest)
            return
        self.embedding(bundle.manifest)

    def embedding(self, manifest: Manifest) -> Embedding:
        """What makes the vectors; errors of `chosen_embedding`."""
        return chosen_embedding(manifest, self.output, pool=self.pool, normalise=self.normalise)

    def open(self, threads: int) -> Engine:
        """The engine of an actor.

        Raises:
            InputError: another bundle stands there. Else the errors of `vggdeploy.load`.
        """
        engine = load(self.bundle, backend=self.backend, variant=self.variant, threads=threads)
        if engine.bundle.manifest.digest != self.digest:
            engine.close()
            raise InputError(
                f"{self.bundle} is another bundle on this node", "copy the bundle of the job to every node"
            )
        return engine


class Shard(Record, frozen=True, kw_only=True):
    """``count`` images: files, or a row group of a Parquet file."""

    paths: tuple[str, ...] = ()
    parquet: str = ""
    group: int = 0
    count: int

    @classmethod
    def of_table(cls, table: Path) -> Iterator[Self]:
        """A shard for each row group of a Parquet file.

        Raises:
            InputError: it is none, or has neither an ``image`` nor a ``path`` column.
        """
        from pyarrow import ArrowException, parquet

        try:
            file = parquet.ParquetFile(table)
        except (OSError, ArrowException) as error:
            raise InputError(f"{describe(table)} is not a Parquet file that can be read", "give another one") from error
        with file:
            names = set(file.schema_arrow.names)
            if not names & {"image", "path"}:
                raise InputError(
                    f"{describe(table)} has no column of images, only {', '.join(sorted(names))}",
                    "name one 'image' (the bytes of image files), or 'path'",
                )
            for group in range(file.num_row_groups):
                yield cls(parquet=str(table), group=group, count=file.metadata.row_group(group).num_rows)

    @classmethod
    def read(cls, directory: Path, number: int) -> Self:
        file = inputs_file(directory, number)
        return from_json(read_regular(file, limit=_LIMIT), cls, what=str(file))

    @staticmethod
    def outcome(directory: Path, number: int) -> tuple[int, int]:
        """Rows of the shard's file, and images that have none."""
        from pyarrow import parquet

        rows = parquet.read_metadata(part_file(directory, number)).num_rows
        errors = errors_file(directory, number)
        return rows, len(json.loads(errors.read_bytes())) if errors.is_file() else 0

    def images(self) -> Iterator[Named]:
        """Its images, in their order."""
        if not self.parquet:
            yield from ((path, path) for path in self.paths)
            return
        from pyarrow import parquet

        with parquet.ParquetFile(self.parquet) as file:
            columns = [name for name in ("path", "image") if name in file.schema_arrow.names]
            rows: list[dict[str, Any]] = file.read_row_group(self.group, columns=columns).to_pylist()
        for index, row in enumerate(rows):
            image, path = row.get("image"), row.get("path")
            if isinstance(image, dict):  # as Hugging Face's data sets have it
                path = path or image.get("path")
                image = image.get("bytes")
            name = path if isinstance(path, str) and path else f"{self.parquet}#{self.group}.{index}"
            yield name, image if image is not None else path or b""


def inputs_file(directory: Path, number: int) -> Path:
    return directory / "inputs" / f"{number:06}.json"


def part_file(directory: Path, number: int) -> Path:
    return directory / f"part-{number:06}.parquet"


def errors_file(directory: Path, number: int) -> Path:
    """The images of a shard that could not be used, with their cause; not there where all could."""
    return directory / f"part-{number:06}.errors.json"


def run_shard(engine: Engine, task: Task, directory: Path, number: int) -> tuple[int, int]:
    """Make a shard's file, unless it is there; rows, and images that could not be used.

    Its errors are written first: whoever sees the file sees them, too.
    """
    target = part_file(directory, number)
    if target.is_file():
        return Shard.outcome(directory, number)
    bad: list[dict[str, str]] = []
    batches = _batches(engine, Shard.read(directory, number), bad)
    rows = (_embed if task.kind == "embed" else _predict)(engine, task, batches, bad, target)
    return rows, len(bad)


Batches = Iterable[tuple[list[str], dict[str, Any]]]


def _batches(engine: Engine, shard: Shard, bad: list[dict[str, str]]) -> Batches:
    """Names and outputs, a batch at a time; threads prepare the next images meanwhile."""
    size = engine.variant.batch.opt
    names: list[str] = []
    images: list[Any] = []

    def load_one(named: Named) -> Any:
        return prepare(named[1], engine.bundle.manifest.preprocess)

    with closing(in_order(load_one, shard.images(), ahead=2 * size)) as prepared:
        for (name, _), image in prepared:
            try:
                images.append(image.result())
            except InputError as error:
                bad.append({"image": as_text(name), "cause": error.cause})
                continue
            names.append(name)
            if len(names) == size:
                yield names, engine.run_prepared(np.stack(images))
                names, images = [], []
    if names:
        yield names, engine.run_prepared(np.stack(images))


def _embed(engine: Engine, task: Task, batches: Batches, bad: list[dict[str, str]], target: Path) -> int:
    vectors = task.embedding(engine.bundle.manifest)
    rows = 0
    with vector_file(target, shape=vectors.shape, about=about_vectors(engine, vectors), overwrite=True) as add:
        for names, outputs in batches:
            add(names, vectors(outputs))
            rows += len(names)
        _write_errors(target, bad)
    return rows


def _predict(engine: Engine, task: Task, batches: Batches, bad: list[dict[str, str]], target: Path) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    paths: list[str] = []
    answers = []
    for names, outputs in batches:
        paths += map(as_text, names)
        answers += [predictions(engine.bundle.manifest, row, task.top) for row in probabilities(outputs)]
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
            pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        ],
        metadata={"vggdeploy": json.dumps(about_rows(engine, "probabilities"))},
    )
    columns = [paths, [[p.label for p in a] for a in answers], [[p.probability for p in a] for a in answers]]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    _write_errors(target, bad)
    atomic_write(target, buffer.getvalue())
    return len(paths)


def _write_errors(target: Path, bad: list[dict[str, str]]) -> None:
    file = target.with_suffix(".errors.json")
    if bad:
        atomic_write(file, json.dumps(bad, ensure_ascii=False).encode())
    else:
        file.unlink(missing_ok=True)
