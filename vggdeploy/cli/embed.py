"""``vggdeploy embed``: one vector for each image file, in one file. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.cluster import MODES as RAY_MODES
from vggdeploy.cli.cluster import RayAddress, RayWorkers, ShardSize
from vggdeploy.cli.options import BundlePath, DeviceName, Json, Modes, Rebuild, Threads, check_modes

MODES: Modes = {
    **RAY_MODES,
    **dict.fromkeys(("--batch", "--strict", "--device", "--force", "--rebuild"), ("without --ray",)),
}


def embed(
    context: typer.Context,
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or directories of them.")],
    target: Annotated[Path | None, typer.Option("-o", help="The file to write: NAME.parquet or NAME.npy.")] = None,
    output: Annotated[
        str | None, typer.Option(help="The graph output. Default: fc7, or the only one that is no class score.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(help="How a feature map becomes a vector: avg, max or none (all its values). Default: avg."),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", "--normalize", help="Divide each vector by its length (L2).")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="Images per batch. Default: the variant's optimum.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 1 at the first image that cannot be used.")
    ] = False,
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that stands there.")] = False,
    rebuild: Rebuild = False,
    ray: RayAddress = None,
    ray_workers: RayWorkers = None,
    shard: ShardSize = 1024,
    json: Json = False,
) -> int:
    """Embed any number of images in constant memory. An image that cannot be used is reported and skipped."""
    from vggdeploy.cli import cluster, render
    from vggdeploy.cli.render import escape
    from vggdeploy.embed.embed import EmbedOptions, embed_files
    from vggdeploy.embed.vectors import check_target
    from vggdeploy.engine.engine import load
    from vggdeploy.system.machine import usable_cores

    check_modes(context, MODES)
    if ray is not None:
        from vggdeploy.embed.cluster import RayOptions

        options = RayOptions(address=ray, workers=ray_workers, threads=threads or 1, size=shard)
        return cluster.run(
            "embed", bundle, images, target, options, json=json, backend=backend, variant=variant, output=output,
            pool=pool, normalise=normalise,
        )  # fmt: skip
    file = _file(target, output)
    check_target(file, overwrite=force)  # before the bundle's hundreds of megabytes are hashed
    with render.progress(f"opening {bundle}") as tell:
        opened = load(
            bundle,
            backend=backend,
            variant=variant,
            device=device,
            threads=threads or usable_cores(),
            rebuild=rebuild and tell,
        )
    with opened as engine, render.progress("embedding") as tell:
        report = embed_files(
            engine,
            images,
            file,
            EmbedOptions(output=output, pool=pool, normalise=normalise, batch=batch, strict=strict, overwrite=force),
            on_progress=tell,
            on_skip=lambda error: render.error_line(f"skipped: {error.cause}", error.hint),
        )
    if json:
        render.emit_json(report)
        return 0
    what = f"{report.output}{' of unit length' if normalise else ''}, {report.variant} on {report.device}"
    render.out.print(
        f"[bold]{escape(str(file))}[/]  {report.images:,} × {' × '.join(map(str, report.shape))}, {escape(what)}"
    )
    skipped = f", [yellow]{report.skipped:,} skipped[/]" if report.skipped else ""
    render.note(f"[dim]{report.images_per_second:,.0f} images/s[/]{skipped}")
    return 0


def _file(target: Path | None, output: str | None) -> Path:
    """The file to write. Other commands have --output for it; here that names a graph output."""
    from vggdeploy.embed.vectors import SUFFIXES
    from vggdeploy.errors import UsageError

    if output and output.lower().endswith(SUFFIXES):
        raise UsageError("--output names a graph output here", f"the file is given with -o: -o {output}")
    if target is None:
        raise UsageError("no file to write is given", "add -o vectors.parquet or -o vectors.npy")
    return target
