"""Any number of images over a Ray cluster: each actor has an engine, each shard of images becomes one Parquet file.

Ray Data (https://docs.ray.io/en/latest/data) starts the actors, hands out shards with back-pressure, and repeats what died
with its node. Which image is in which shard is written down before the first one runs, and a shard's file appears whole or
not at all: so a job that is started again does what is missing, and no row is there twice or lost. Torch-free.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vggdeploy.embed.shards import JOB_NAME, SHARD_SIZE, Shard, Task, inputs_file, part_file, run_shard
from vggdeploy.errors import UsageError, VggdeployError, counted, first_line
from vggdeploy.preprocess import count_images, walk_images
from vggdeploy.records import SCHEMA_VERSION, Record, from_json, to_json
from vggdeploy.system.files import atomic_write, read_regular
from vggdeploy.system.optional import require
from vggdeploy.system.ray import LOCAL, cluster, ray_module
from vggdeploy.types import OnProgress, Steps, silent

_LIMIT = 64 * 2**20


class EmbeddingJob(Record, frozen=True, kw_only=True):
    """``job.json``: what makes two runs the same job. ``shards`` of at most ``size`` images; ``images`` in all of them."""

    schema_version: int = SCHEMA_VERSION
    task: Task
    sources: tuple[str, ...]
    size: int
    shards: int
    images: int


class ClusterReport(Record, frozen=True, kw_only=True):
    """What ``--ray`` prints with ``--json``. ``found_done`` are shards that an earlier run had finished."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    directory: str
    shards: int
    found_done: int
    images: int
    skipped: int
    nodes: int
    seconds: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Which cluster a job runs on, and how much of it.

    ``address``: ``local`` for a cluster of this machine, ``auto`` for the one that it is part of, or ``HOST:PORT``.
    ``workers``: actors at most, each with ``threads`` cores; None for as many as the cluster has cores for. ``size``: images
    of a shard, which is what is done again when an actor dies.
    """

    address: str = LOCAL
    workers: int | None = None
    threads: int = 1
    size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        for what, value in (("images in a shard", self.size), ("workers", self.workers), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UsageError(f"the number of {what} cannot be {value}", "give at least 1")


def run_on_ray(
    task: Task,
    sources: Sequence[Path],
    directory: Path,
    options: RayOptions | None = None,
    *,
    on_progress: OnProgress = silent,
) -> ClusterReport:
    """Embed or classify images on a Ray cluster, into ``directory``: ``part-000000.parquet`` and so on.

    An unfinished run of the same job in the directory is resumed. Every node has to find the bundle, the images
    and the directory at the same paths.

    Args:
        sources: image files, and directories that are searched for them; or Parquet files, whose column ``image`` (bytes,
            or a struct with ``bytes``) or ``path`` is read.
        options: which cluster, and how much of it.
        on_progress: called with the share of the missing images that are done.

    Raises:
        UsageError: the directory holds something else, or the run of another job.
        InputError: no image, or a source that does not exist.
        MissingDependencyError: Ray or pyarrow is not installed.
        VggdeployError: the cluster cannot be reached, or a shard failed again and again.
    """
    ray_module("data")
    require("pyarrow", to="run on a Ray cluster", extra="ray")
    options = options or RayOptions()
    started = time.monotonic()
    job = _begin(task, sources, directory, options.size)
    missing = [n for n in range(job.shards) if not part_file(directory, n).is_file()]
    done = job.shards - len(missing)
    asked = sum(Shard.read(directory, n).count for n in missing)
    images = skipped = nodes = 0
    if missing:
        steps = Steps(on_progress, asked, f"{task.kind} of {counted(asked, 'image')} on Ray")
        with cluster(options.address) as ray:
            nodes = sum(node["Alive"] for node in ray.nodes())
            for row in _results(ray, task, directory, missing, options):
                steps.advance(int(row["images"]) + int(row["skipped"]))
    for number in range(job.shards):
        rows, bad = Shard.outcome(directory, number)
        images, skipped = images + rows, skipped + bad
    seconds = time.monotonic() - started
    return ClusterReport(
        bundle=task.bundle,
        directory=str(directory),
        shards=job.shards,
        found_done=done,
        images=images,
        skipped=skipped,
        nodes=nodes,
        seconds=round(seconds, 3),
        images_per_second=round(asked / seconds, 1),
    )


def _begin(task: Task, sources: Sequence[Path], directory: Path, size: int) -> EmbeddingJob:
    """The job of ``directory``: the one that was begun there, or a new one, with its shards written down."""
    names = tuple(str(source.absolute()) for source in sources)
    file = directory / JOB_NAME
    if file.is_file():
        job = from_json(read_regular(file, limit=_LIMIT), EmbeddingJob, what=str(file))
        if (job.task, job.sources, job.size) != (task, names, size):
            raise UsageError(
                f"{directory} holds another job's results", "give it the same arguments, or another directory"
            )
        return job
    if directory.exists() and (not directory.is_dir() or any(p.name != "inputs" for p in directory.iterdir())):
        raise UsageError(f"{directory} exists and holds no results of such a job", "choose another directory")
    (directory / "inputs").mkdir(parents=True, exist_ok=True)
    shards = images = 0
    for shard in _shards([Path(name) for name in names], size):
        atomic_write(inputs_file(directory, shards), to_json(shard))
        shards, images = shards + 1, images + shard.count
    job = EmbeddingJob(task=task, sources=names, size=size, shards=shards, images=images)
    atomic_write(file, to_json(job))
    return job


def _shards(sources: Sequence[Path], size: int) -> Iterator[Shard]:
    """Image files ``size`` at a time; a row group of a Parquet file each."""
    tables = [source for source in sources if source.suffix.lower() == ".parquet"]
    pictures = [source for source in sources if source not in tables]
    for table in tables:
        yield from Shard.of_table(table)
    if pictures:
        count_images(pictures)  # raises for what is not there
    walk = walk_images(pictures)
    while paths := [str(path) for path in islice(walk, size)]:
        yield Shard(paths=tuple(paths), count=len(paths))


def _results(
    ray: Any, task: Task, directory: Path, numbers: Sequence[int], options: RayOptions
) -> Iterator[dict[str, Any]]:
    """A row for each shard that is done, as they come."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Numbers alone travel: a shard is read where it is run.
    shards = ray.data.from_items(list(numbers), override_num_blocks=min(len(numbers), 10_000))
    pool = (
        ray.data.ActorPoolStrategy(min_size=1, max_size=options.workers)
        if options.workers
        else ray.data.ActorPoolStrategy(min_size=1)
    )
    rows = shards.map_batches(
        _Worker,
        fn_constructor_args=(task, str(directory), options.threads),
        batch_size=1,
        compute=pool,
        num_cpus=options.threads,
        max_restarts=-1,
        max_task_retries=-1,
    )
    try:
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, VggdeployError):
            raise cause from error
        raise VggdeployError(
            f"the cluster gave up: {first_line(cause)}", "run the same command again: it goes on"
        ) from error


class _Worker:
    """An actor: an engine, opened once, and the shards that it is given."""

    def __init__(self, task: Task, directory: str, threads: int) -> None:
        self._task, self._directory = task, Path(directory)
        self._engine = task.open(threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        numbers = [int(number) for number in batch["item"]]
        counts = [run_shard(self._engine, self._task, self._directory, number) for number in numbers]
        return {"shard": numbers, "images": [rows for rows, _ in counts], "skipped": [bad for _, bad in counts]}
