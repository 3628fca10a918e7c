"""Image files → vectors in a file, of any number, in constant memory. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.bundle import Manifest
from vggdeploy.embed.vectors import check_target, vector_file
from vggdeploy.engine.embedding import Embedding, embedding
from vggdeploy.engine.engine import Engine
from vggdeploy.errors import InputError, UsageError, counted
from vggdeploy.preprocess import count_images, describe, prepare, walk_images
from vggdeploy.records import SCHEMA_VERSION, Record
from vggdeploy.runtime.sessions import in_order
from vggdeploy.types import OnProgress, Steps, silent

LISTED = 1000  # skipped images that a report names; it counts the others


class Skipped(Record, frozen=True, kw_only=True):
    """An image that could not be used, and why."""

    image: str
    cause: str


class EmbedReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy embed --json`` prints. ``skipped_images`` names the first `LISTED` of the ``skipped``."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    variant: str
    device: str
    output: str
    pool: str | None
    normalised: bool
    file: str
    shape: tuple[int, ...]
    images: int
    skipped: int
    skipped_images: tuple[Skipped, ...]
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class EmbedOptions:
    """What the vectors are, and how the files are worked through.

    Attributes:
        output, pool, normalise: as in `Engine.embed`; a pool for an output that is no feature map is refused.
        batch: images a run of the session. Default: what the variant is optimised for.
        strict: the first image that cannot be used ends everything, and nothing is written.
        overwrite: replace the file that stands there.
    """

    output: str | None = None
    pool: str | None = None
    normalise: bool = False
    batch: int | None = None
    strict: bool = False
    overwrite: bool = False


def embed_files(
    engine: Engine,
    sources: Sequence[Path],
    target: Path,
    options: EmbedOptions = EmbedOptions(),
    *,
    on_progress: OnProgress = silent,
    on_skip: Callable[[InputError], None] = lambda error: None,
) -> EmbedReport:
    """Embed image files and write one row each, in the order of `walk_images`.

    Threads decode and resize the next images while the session runs a batch. An image that cannot be used is reported
    and has no row.

    Args:
        sources: image files, and directories that are searched for them.
        target: ``.parquet`` or ``.npy``, see `vggdeploy.embed.vectors`. It appears when it is complete.
        on_progress: called with the share of the images that are done, before the first one with 0.
        on_skip: called with the error of each image that is skipped.

    Raises:
        InputError: a source that does not exist, no image at all, none that can be used; with ``strict`` any error.
        UsageError: an output, pool or batch that there is not; a target that may not be written.
        MissingDependencyError: a ``.parquet`` target without pyarrow.
    """
    started = time.monotonic()
    manifest = engine.bundle.manifest
    vectors = chosen_embedding(manifest, options.output, pool=options.pool, normalise=options.normalise)
    size = _batch_size(engine, options.batch)
    check_target(target, overwrite=options.overwrite)
    total = count_images(sources)
    steps = Steps(on_progress, total, f"embedding {counted(total, 'image')}")
    written = skipped = 0
    listed: list[Skipped] = []
    names: list[str] = []
    images: list[Any] = []
    about = about_vectors(engine, vectors)
    with vector_file(target, shape=vectors.shape, about=about, overwrite=options.overwrite) as add:

        def run() -> None:
            nonlocal written
            add(names, vectors(engine.run_prepared(np.stack(images))))
            written += len(names)
            steps.advance(len(names))
            names.clear()
            images.clear()

        load = partial(prepare, spec=manifest.preprocess)
        with closing(in_order(load, walk_images(sources), ahead=2 * size)) as prepared:
            for path, image in prepared:
                try:
                    images.append(image.result())
                except InputError as error:
                    if options.strict:
                        raise
                    skipped += 1
                    if len(listed) < LISTED:
                        listed.append(Skipped(image=describe(path), cause=error.cause))
                    on_skip(error)
                    steps.advance()
                    continue
                names.append(str(path))
                if len(names) == size:
                    run()
        if names:
            run()
        if not written:
            raise InputError(
                f"none of {counted(skipped, 'image')} can be used", "nothing was written; see the error of each"
            )
    seconds = time.monotonic() - started
    return EmbedReport(
        bundle=str(engine.bundle.root),
        variant=engine.variant.name,
        device=str(engine.device),
        output=vectors.output.name,
        pool=vectors.pool if vectors.is_map else None,
        normalised=options.normalise,
        file=str(target),
        shape=vectors.shape,
        images=written,
        skipped=skipped,
        skipped_images=tuple(listed),
        seconds=round(seconds, 3),
        images_per_second=round(written / seconds, 1),
    )


def about_vectors(engine: Engine, vectors: Embedding) -> dict[str, Any]:
    """What made the vectors, as it stands beside them in a file."""
    return {
        **about_rows(engine, vectors.output.name),
        "pool": vectors.pool if vectors.is_map else None,
        "normalised": vectors.normalise,
    }


def about_rows(engine: Engine, output: str) -> dict[str, Any]:
    """Which bundle and variant a file's rows are from. ``golden`` is the hash of the reference's answers to the golden pair: a
    bundle that gains a variant has another digest, and computes the same."""
    manifest = engine.bundle.manifest
    golden = manifest.golden.outputs.get(output)
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": manifest.name,
        "bundle_digest": manifest.digest,
        "variant": engine.variant.name,
        "output": output,
        "golden": engine.bundle.sha256(golden) if golden else "",
    }


def chosen_embedding(manifest: Manifest, output: str | None, *, pool: str | None, normalise: bool) -> Embedding:
    """What makes vectors of a bundle's outputs, as a command asks for it: a pool is refused where there is nothing to pool.

    Raises:
        UsageError: an output or a pool that there is not.
    """
    vectors = embedding(manifest.outputs, output, pool=pool or "avg", normalise=normalise)
    if pool and not vectors.is_map:
        raise UsageError(f"'{vectors.output.name}' is a vector already: there is nothing to pool", "leave the pool out")
    return vectors


def _batch_size(engine: Engine, batch: int | None) -> int:
    accepted = engine.variant.batch
    if batch is not None and not 1 <= batch <= accepted.max:
        raise UsageError(f"batch {batch} is outside 1…{accepted.max} of {engine.variant.name}", "choose one inside")
    return batch or accepted.opt
