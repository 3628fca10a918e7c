"""``vggdeploy curves``: the pictures of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import Json


def curves(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint: what 'train' made.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The directory for the pictures. Default: the checkpoint's.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw loss and accuracy over the epochs of a run: curves.png, and curves.html for a browser, offline."""
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.report.pictures import write_curves

    files = write_curves(checkpoint, output)
    if json:
        render.emit_json({"schema_version": 1, "checkpoint": str(checkpoint), "files": [str(file) for file in files]})
        return
    for file in files:
        render.out.print(escape(str(file)))
