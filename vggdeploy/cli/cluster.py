"""``embed --ray`` and ``predict --ray``: the same work over a Ray cluster, as Parquet files in a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vggdeploy.embed.cluster import RayOptions

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run on a Ray cluster: local, auto or HOST:PORT. -o is then a directory of Parquet files, and the same line "
        "continues an interrupted run.",
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option("--ray-workers", help="With --ray: engines at most. Default: what the cluster has cores for."),
]
ShardSize = Annotated[
    int,
    typer.Option(
        "--shard", help="With --ray: images per output file; after a failure only one file's are computed again."
    ),
]


# Of every command that takes --ray.
MODES = {"--ray-workers": ("--ray",), "--shard": ("--ray",)}


def run(
    kind: str,
    bundle: Path,
    sources: Sequence[Path],
    directory: Path | None,
    options: RayOptions,
    *,
    json: bool,
    **task: Any,
) -> int:
    """Run the job, or what is missing of it, with a progress bar; the exit code is 0, also where images were skipped."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.embed.cluster import run_on_ray
    from vggdeploy.embed.shards import Task
    from vggdeploy.errors import UsageError, counted

    if directory is None:
        raise UsageError("no directory to write is given", "add -o DIR")
    opened = Bundle.open(bundle)
    wanted = Task(kind=kind, bundle=str(bundle.resolve()), digest=opened.manifest.digest, **task)  # type: ignore[arg-type]
    wanted.check(opened)
    with render.progress(f"{kind} on Ray") as tell:
        report = run_on_ray(wanted, sources, directory, options, on_progress=tell)
    if json:
        render.emit_json(report)
        return 0
    skipped = f", [yellow]{report.skipped:,} skipped (see *.errors.json)[/]" if report.skipped else ""
    before = f", {report.found_done:,} of them found done" if report.found_done else ""
    render.out.print(
        f"[bold]{escape(str(directory))}[/]  {report.images:,} rows in {counted(report.shards, 'file')}{before}{skipped}"
    )
    if report.found_done < report.shards:
        render.note(f"[dim]{report.images_per_second:,.0f} images/s on {report.nodes} nodes, their start included[/]")
    return 0
