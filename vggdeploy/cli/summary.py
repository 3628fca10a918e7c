"""``vggdeploy summary``: a network layer by layer, without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from vggdeploy.cli.options import Json


def summary(
    arch: Annotated[str, typer.Argument(metavar="ARCH", help="vgg11, vgg13, vgg16 or vgg19, with or without _bn.")],
    width: Annotated[
        float, typer.Option(help="Width ratio: every convolution has this many times its channels.")
    ] = 1.0,
    in_channels: Annotated[int, typer.Option(help="Input channels: 1 (grey) or 3 (RGB).")] = 3,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 1000,
    image_size: Annotated[int, typer.Option(help="Height and width of the input in pixels.")] = 224,
    hidden: Annotated[int, typer.Option(help="Width of fc6 and fc7.")] = 4096,
    json: Json = False,
) -> None:
    """Print layers, output shapes, parameters and multiply-accumulates."""
    from vggdeploy.cli import render
    from vggdeploy.model.summary import summarise
    from vggdeploy.spec import ModelSpec

    spec = ModelSpec.named(
        arch, width=width, in_channels=in_channels, classes=classes, image_size=image_size, hidden=hidden
    )
    result = summarise(spec)
    if json:
        render.emit_json(result)
        return
    rows = [
        [x.name, x.key, x.kind.replace("_", " "), "×".join(map(str, x.shape)), f"{x.parameters:,}", f"{x.macs:,}"]
        for x in result.layers
    ]
    render.table(["layer", "key", "kind", "output", "parameters", "MACs"], rows, title=result.title, left=3)
    render.out.print(
        f"\ntotal: {result.parameters:,} parameters ({render.size_text(result.fp32_bytes)} in FP32), "
        f"{result.macs / 1e9:.3f} GMACs an image"
    )
