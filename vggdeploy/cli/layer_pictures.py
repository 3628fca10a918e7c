"""What ``verify --layers -o DIR`` draws, and what it says about it."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from vggdeploy.cli import render
from vggdeploy.errors import UsageError
from vggdeploy.records import ParityReport
from vggdeploy.report.curves import need_plots
from vggdeploy.report.layers import write_layers


def check(output: Path, bundle: Path) -> None:
    """Find out before the work whether pictures can be drawn, and may stand there.

    Raises:
        UsageError: the files of a bundle are fixed.
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    if output.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"{output} is part of a bundle, whose files are fixed", "give another directory: -o DIR")
    need_plots()


def write(report: ParityReport, output: Path) -> None:
    """Draw, and say where: on stderr, so that ``--json`` stays one document."""
    for file in write_layers(report.layers, output):
        render.note(f"[dim]picture:[/] {escape(str(file))}")
    if not report.layers:
        render.note("[dim]no picture: no ONNX variant failed, so no layers were compared[/]")
