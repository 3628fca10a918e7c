"""``vggdeploy distance``: how different images look to the network, with LPIPS's heads or without. Torch-free without them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, DeviceName, Json, Threads


def distance(
    bundle: BundlePath,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image that the others are compared with.")],
    others: Annotated[list[Path], typer.Argument(metavar="OTHER", help="Image files, or directories of them.")],
    heads: Annotated[
        str | None,
        typer.Option(help="lpips: the weights of LPIPS, from the package 'lpips'. Default: each channel weighs alike."),
    ] = None,
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Tell how different images look from one: the distance between their feature maps, the most similar first."""
    from vggdeploy.cli import render
    from vggdeploy.engine.engine import load
    from vggdeploy.engine.perceptual import perceptual_distance
    from vggdeploy.errors import UsageError
    from vggdeploy.preprocess import find_images

    if heads not in (None, "lpips"):
        raise UsageError(f"there are no heads '{heads}'", "give --heads lpips, or leave it out")
    paths = find_images(others)
    with load(bundle, backend=backend, variant=variant, device=device, threads=threads) as engine:
        weights = None
        if heads:
            from vggdeploy.model.foreign.lpips_heads import check_fits_lpips, lpips_heads

            check_fits_lpips(engine.bundle.manifest)
            weights = lpips_heads()
        found = perceptual_distance(engine, image, paths, heads=weights).tolist()
        answers = sorted(zip(found, map(str, paths), strict=True))
        if json:
            rows = [{"image": path, "distance": value} for value, path in answers]
            render.emit_json(
                {"schema_version": 1, "bundle": str(bundle), "variant": engine.variant.name, "heads": heads,
                 "image": str(image), "others": rows}
            )  # fmt: skip
            return
        for value, path in answers:
            render.out.print(f"{value:8.4f}  {render.escape(path)}", highlight=False)
        what = "LPIPS 0.1" if heads else "every channel weighted alike"
        size = engine.bundle.manifest.preprocess.crop
        render.note(f"[dim]{what}, at {size} × {size} pixels, {engine.variant.name} on {engine.device}[/]")
