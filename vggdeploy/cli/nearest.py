"""``vggdeploy nearest``: the images of an embedded collection that look most like others. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, DeviceName, Json, Threads


def nearest(
    bundle: BundlePath,
    vectors: Annotated[Path, typer.Argument(metavar="VECTORS", help="The file that 'embed' wrote: .npy or .parquet.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or directories of them.")],
    top: Annotated[int, typer.Option(help="Neighbours an image.")] = 5,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a page with the pictures: NAME.html.")
    ] = None,
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Find the images of a collection that look most like the given ones, the nearest first; every vector is compared."""
    from vggdeploy.cli import render
    from vggdeploy.embed.nearest import nearest as find
    from vggdeploy.embed.nearest import open_collection
    from vggdeploy.engine.engine import load
    from vggdeploy.errors import UsageError
    from vggdeploy.preprocess import find_images

    if output is not None and output.suffix.lower() != ".html":
        raise UsageError(f"{output} does not end in .html", "name the page so: -o nearest.html")
    collection = open_collection(vectors)
    paths = find_images(images)
    with load(bundle, backend=backend, variant=variant, device=device, threads=threads) as engine:
        found = find(engine, collection, paths, top=top)
        used = engine.variant.name
    if output is not None:
        from vggdeploy.embed.nearest_page import write_page

        write_page(output, list(zip(map(str, paths), found, strict=True)), about=collection.about)
    if json:
        rows = [{"image": str(path), "nearest": near} for path, near in zip(paths, found, strict=True)]
        page = None if output is None else str(output)
        render.emit_json(
            {
                "schema_version": 1,
                "bundle": str(bundle),
                "variant": used,
                "vectors": str(vectors),
                "images": rows,
                "page": page,
            }
        )
        return
    for path, near in zip(paths, found, strict=True):
        render.out.print(f"[bold]{render.escape(str(path))}[/]", highlight=False)
        for one in near:
            render.out.print(f"  {one.similarity:6.3f}  {render.escape(one.image)}", highlight=False)
    if output is not None:
        render.note(render.escape(str(output)))
