"""``vggdeploy predict``: labels and probabilities for image files. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.cluster import MODES as RAY_MODES
from vggdeploy.cli.cluster import RayAddress, RayWorkers, ShardSize
from vggdeploy.cli.options import BundlePath, DeviceName, Json, Modes, Rebuild, Threads, check_modes

MODES: Modes = {**RAY_MODES, "-o": ("--ray",), **dict.fromkeys(("--device", "--rebuild"), ("without --ray",))}


def predict(
    context: typer.Context,
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files, or directories of them.")],
    top: Annotated[int, typer.Option(help="Answers an image.")] = 3,
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    rebuild: Rebuild = False,
    directory: Annotated[Path | None, typer.Option("-o", help="With --ray: the directory to write.")] = None,
    ray: RayAddress = None,
    ray_workers: RayWorkers = None,
    shard: ShardSize = 1024,
    json: Json = False,
) -> int:
    """Classify images. An image that cannot be used is reported; the others are answered, and the exit code is 1."""
    from vggdeploy.cli import cluster, render, tables
    from vggdeploy.engine.engine import load
    from vggdeploy.errors import InputError
    from vggdeploy.preprocess import find_images

    check_modes(context, MODES)
    if ray is not None:
        from vggdeploy.embed.cluster import RayOptions

        options = RayOptions(address=ray, workers=ray_workers, threads=threads or 1, size=shard)
        return cluster.run(
            "predict", bundle, images, directory, options, json=json, backend=backend, variant=variant, top=top,
        )  # fmt: skip
    paths = find_images(images)
    bad = 0
    answers: list[dict[str, object]] = []
    with render.progress() as tell:
        opened = load(
            bundle, backend=backend, variant=variant, device=device, threads=threads, rebuild=rebuild and tell
        )
    with opened as engine:
        for path in paths:
            try:
                predictions = engine.classify(path, top=top)
            except InputError as error:
                bad += 1
                render.error_line(error.cause, error.hint)
                answers.append({"image": str(path), "error": error.cause, "fix": error.hint})
                continue
            answers.append({"image": str(path), "predictions": predictions})
            if not json:
                tables.prediction_line(str(path), predictions)
        if json:
            render.emit_json(
                {"schema_version": 1, "bundle": str(bundle), "variant": engine.variant.name, "images": answers}
            )
        else:
            render.note(f"[dim]{len(answers) - bad} images, {engine.variant.name} on {engine.device}[/]")
    return 1 if bad else 0
