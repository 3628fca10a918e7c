"""``vggdeploy predict``: labels and probabilities for image files. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.cluster import MODES as RAY_MODES
from vggdeploy.cli.cluster import RayAddress, RayWorkers, ShardSize
from vggdeploy.cli.options import BundlePath, DeviceName, Json, Modes, Rebuild, Threads, check_modes

_HERE = ("without --ray",)
MODES: Modes = {**RAY_MODES, "-o": ("--ray",), **dict.fromkeys(("--device", "--rebuild", "--explain"), _HERE)}


def predict(
    context: typer.Context,
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or directories of them.")],
    top: Annotated[int, typer.Option(help="Answers an image.")] = 3,
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    rebuild: Rebuild = False,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a picture for each image: where the network looked for its first answer (Grad-CAM; needs torch).",
        ),
    ] = None,
    directory: Annotated[Path | None, typer.Option("-o", help="With --ray: the directory to write.")] = None,
    ray: RayAddress = None,
    ray_workers: RayWorkers = None,
    shard: ShardSize = 1024,
    json: Json = False,
) -> int:
    """Classify images. An image that cannot be used is reported; the others are answered, and the exit code is 1."""
    from vggdeploy.cli import cluster, render, tables
    from vggdeploy.engine.engine import load
    from vggdeploy.errors import InputError, counted
    from vggdeploy.preprocess import find_images

    check_modes(context, MODES)
    if ray is not None:
        from vggdeploy.embed.cluster import RayOptions

        options = RayOptions(address=ray, workers=ray_workers, threads=threads or 1, size=shard)
        return cluster.run(
            "predict", bundle, images, directory, options, json=json, backend=backend, variant=variant, top=top,
        )  # fmt: skip
    paths = find_images(images)
    explainer = _Explainer(bundle, explain, len(paths)) if explain else None
    bad = 0
    answers: list[dict[str, object]] = []
    with render.progress(f"opening {bundle}") as tell:
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
            if explainer:
                answers[-1]["explanation"] = str(explainer.picture(len(answers), path, predictions[0].index))
        if json:
            render.emit_json(
                {"schema_version": 1, "bundle": str(bundle), "variant": engine.variant.name, "images": answers}
            )
        else:
            if explainer:
                render.note(f"where it looked: {render.escape(str(explain))}/")
            render.note(f"[dim]{counted(len(answers) - bad, 'image')}, {engine.variant.name} on {engine.device}[/]")
    return 1 if bad else 0


class _Explainer:
    """Writes the pictures of ``--explain``: numbered, since images of two directories may have one name."""

    def __init__(self, root: Path, directory: Path, images: int) -> None:
        from vggdeploy.bundle import Bundle
        from vggdeploy.system.optional import require

        require("torch", to="explain an answer", extra="train")
        from vggdeploy.evaluate.grad_cam import GradCam

        bundle = Bundle.open(root)
        self._preprocess = bundle.manifest.preprocess
        self._cam = GradCam(bundle)
        self._directory = directory
        self._digits = len(str(images))
        directory.mkdir(parents=True, exist_ok=True)

    def picture(self, number: int, path: Path, index: int) -> Path:
        from vggdeploy.evaluate.grad_cam import heat_picture
        from vggdeploy.preprocess import prepare
        from vggdeploy.system.files import atomic_write

        pixels = prepare(path, self._preprocess)
        target = self._directory / f"{number:0{self._digits}}-{path.stem}.png"
        atomic_write(target, heat_picture(pixels, self._cam(pixels[None], [index])[0]))
        return target
