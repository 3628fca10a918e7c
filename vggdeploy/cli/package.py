"""``vggdeploy package``: a bundle for Triton, for a small container, for C++, for browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, Force, Json
from vggdeploy.errors import counted


def package(
    bundle: BundlePath,
    target: Annotated[
        str,
        typer.Option(
            help="triton: a model repository. slim: a bundle of one variant without the FP32 reference. "
            "oci: a Dockerfile around that bundle. kserve: that, and manifests for Kubernetes with and without KServe. "
            "mlflow: an mlflow.pyfunc model. bentoml: a BentoML service. "
            "cpp: a CMake project. web: a static site.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    variant: Annotated[
        list[str] | None,
        typer.Option(help="The variant to package. Default: the best here. Repeat it for engines of several GPUs."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name (triton, kserve, web). Default: the bundle's.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="The largest batch (triton, kserve). Default: the variant's, 32 or 8 at most.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Copies on each device (triton, default 1), or pods (kserve, default 2).")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="The container serves over HTTP (oci). Default: it runs one command.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(help="ONNX Runtime Web, as 'npm pack' wrote it (web). Default: the user cache's."),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Fetch ONNX Runtime Web with npm into the user's cache first (web).")
    ] = False,
    image: Annotated[str | None, typer.Option(help="Name of the container image, with its registry (kserve).")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Package a bundle for something else to run: a container, Kubernetes, Triton, MLflow, C++ or a browser."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.package.base import Order, PackageReport, get_target
    from vggdeploy.system.files import check_replaceable

    chosen = get_target(target)
    check_replaceable(output, marker=chosen.marker, overwrite=force)
    # What goes in is hashed when it is read; hashing half a gigabyte of weights that stay behind would be for nothing.
    opened = Bundle.open(bundle, only=())
    order = Order(
        bundle=opened,
        output=output,
        variants=tuple(variant or ()),
        name=name,
        max_batch=max_batch,
        instances=instances,
        serve=serve or None,
        runtime=runtime,
        prepare=prepare or None,
        image=image,
        overwrite=force,
    )
    with render.progress(f"packaging for {chosen.name}"):
        made = chosen.make(order)
    done = made.package
    for text in made.notes:
        render.notice(f"[yellow]note:[/] {escape(text)}")
    if json:
        render.emit_json(PackageReport(path=str(output), package=done))
        return
    size = render.size_text(sum(file.size for file in done.files))
    render.out.print(
        f"[bold]{escape(str(output))}[/]: {chosen.name} of {escape(', '.join(done.variants))}, "
        f"{counted(len(done.files), 'file')}, {size}"
    )
    for file in done.files:
        render.out.print(f"  {render.size_text(file.size):>9}  {escape(file.path)}")
    render.next_steps(*made.next)
