"""The pictures of ``verify --layers``: the error after each layer of a variant, with the culprit marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vggdeploy.records import LayerReport
from vggdeploy.report import grids
from vggdeploy.report.curves import need_plots
from vggdeploy.report.sections import layer_figure


def write_layers(reports: Sequence[LayerReport], directory: Path) -> tuple[Path, ...]:
    """Draw ``layers-VARIANT.png`` and ``.html`` of each variant into a directory; returns the files.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    need_plots()
    from vggdeploy.report import plots  # only now: it imports Altair

    files = []
    for report in reports:
        figure = layer_figure(report)
        chart = figure.draw()
        name = re.sub(r"[^\w.-]", "_", report.variant)
        for suffix in (".png", ".html"):
            file = directory / f"layers-{name}{suffix}"
            title = {"text": figure.heading, "subtitle": figure.text.partition(": ")[2]}
            shown = chart.properties(title=title) if suffix == ".png" else chart
            plots.save_chart(shown, file, title=figure.heading, text=figure.text, grid=grids.layers(report))
            files.append(file)
    return tuple(files)
