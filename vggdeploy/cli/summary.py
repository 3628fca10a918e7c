"""``vggdeploy summary``: a network layer by layer, without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy.cli.options import Json

if TYPE_CHECKING:
    from vggdeploy.spec import ModelSpec


# Options that are not given are None: with a directory, whose network is fixed, one that is given is refused.
def summary(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="vgg11, vgg13, vgg16 or vgg19, with or without _bn; blocks as in 1x64,1x128,2x256; "
            "or the directory of a checkpoint or bundle.",
        ),
    ],
    width: Annotated[
        float | None,
        typer.Option(help="Width ratio: every convolution has this many times its channels.", show_default="1.0"),
    ] = None,
    in_channels: Annotated[
        int | None, typer.Option("--in-channels", "--channels", help="1 (grey) or 3 (RGB).", show_default="3")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.", show_default="1000")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of the input in pixels.", show_default="224")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of fc6 and fc7.", show_default="4096")] = None,
    json: Json = False,
) -> None:
    """Print layers, output shapes, parameters and multiply-accumulates."""
    from vggdeploy.cli import render
    from vggdeploy.model.layers import summarise
    from vggdeploy.report.tables import NETWORK, grid

    given: dict[str, Any] = {
        "width": width, "in_channels": in_channels, "classes": classes, "image_size": image_size, "hidden": hidden
    }  # fmt: skip
    result = summarise(_spec(network, {name: value for name, value in given.items() if value is not None}))
    if json:
        render.emit_json(result)
        return
    render.table(grid(NETWORK, [(layer,) for layer in result.layers], result.title))
    render.out.print(
        f"\ntotal: {result.parameters:,} parameters ({render.size_text(result.fp32_bytes)} in FP32), "
        f"{result.macs / 1e9:.3f} GMACs an image"
    )


def _spec(network: str, options: dict[str, Any]) -> ModelSpec:
    from vggdeploy.errors import UsageError, nearby
    from vggdeploy.spec import CUSTOM, ModelSpec, at_width, parse_blocks

    path = Path(network)
    if path.is_dir():
        if options:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
            raise UsageError(f"the network in {path} is fixed, and {names} would change it", "leave the options out")
        return _stored(path)
    if os.sep in network:
        raise UsageError(
            f"{network} does not exist", f"{nearby(network)}give a checkpoint, a bundle, or a name such as vgg16"
        )
    if "x" not in network:
        return ModelSpec.named(network, **options)
    width = options.pop("width", 1.0)
    hidden = options.pop("hidden", 4096)
    blocks = at_width(parse_blocks(network), width)
    return ModelSpec(arch=CUSTOM, blocks=blocks, width=width, hidden=(hidden, hidden), **options)


def _stored(path: Path) -> ModelSpec:
    """The network of a checkpoint or of a bundle."""
    from vggdeploy.bundle import MANIFEST_NAME, Bundle
    from vggdeploy.bundle.checkpoint import read_checkpoint

    if (path / MANIFEST_NAME).is_file():
        return Bundle.open(path, only=()).manifest.spec
    return read_checkpoint(path, check_weights=False).spec
