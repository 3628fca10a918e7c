"""PNG and HTML pictures of a training, an evaluation and a variant's layers. Writing them imports Altair, this does not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME
from vggdeploy.errors import UsageError
from vggdeploy.records import LayerReport
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.report import grids
from vggdeploy.report.history import Point, read_history
from vggdeploy.report.sections import layer_figure
from vggdeploy.report.tables import Grid
from vggdeploy.system.optional import require

if TYPE_CHECKING:
    from vggdeploy.report.plots import Chart

_SUFFIXES = (".png", ".html")


def need_plots() -> None:
    """Find out before any work whether pictures can be drawn.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    for module in ("altair", "vl_convert"):
        require(module, to="draw pictures", extra="plots")


def write_curves(
    checkpoint: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, *, title: str = ""
) -> tuple[Path, ...]:
    """Draw the loss and accuracy of a checkpoint's run as ``curves.png`` and ``curves.html``.

    Args:
        checkpoint: a checkpoint's directory (of a run that has just ended too: both of its files have to be there).
        target: the directory for the pictures; made where it is not there. Default: the checkpoint's.
        title: of the pictures. Default: the directory's name.

    Returns:
        The files written.

    Raises:
        CheckpointError: no checkpoint, or no record of a run in it.
        UsageError: the checkpoint belongs to a bundle, whose files are fixed, and no other directory was given.
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    root = Path(checkpoint)
    need_plots()
    history = read_history(root)
    directory = root if target is None else Path(target)
    if (directory / CHECKPOINT_NAME).is_file() and (directory.absolute().parent / MANIFEST_NAME).is_file():
        raise UsageError(f"{directory} is part of a bundle, whose files are fixed", "give another directory: -o DIR")
    return draw_curves(history, directory, name=title or root.resolve().name)


def draw_curves(history: Sequence[Point], directory: Path, *, name: str) -> tuple[Path, ...]:
    """The same from points in memory.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    need_plots()
    from vggdeploy.report import plots  # only now: it imports Altair

    epochs = max(point.epoch for point in history)
    splits = [split for split in plots.SPLITS if any(p.split == split for p in history)]
    text = f"Loss and accuracy over {epochs:g} epochs: {', '.join(splits)}."
    chart = plots.training_curves(history)
    return _both(chart, directory / "curves", f"Training of {name}", text, plots.curves_grid(history))


def write_confusion(report: EvaluationReport, directory: Path) -> tuple[Path, ...]:
    """Draw an evaluation's confusion matrix, or with many classes the most frequent confusions, as ``confusion.png`` and
    ``confusion.html``; returns the files.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    need_plots()
    from vggdeploy.report import plots  # only now: it imports Altair

    labels = grids.distinct([c.label for c in report.classes])
    chart: Chart
    if report.confusion is not None:
        chart = plots.confusion_matrix(labels, report.confusion)
    else:
        pairs = [(labels[pair.label], labels[pair.predicted], pair.images) for pair in report.confused]
        chart = plots.confused_pairs(pairs)
    title = f"{Path(report.target).name}: {report.variant} on {report.data}"
    a = report.accuracy
    text = f"Accuracy {a.rate:.2%} (95% interval {a.lower:.2%} to {a.upper:.2%}), {a.hits:,} of {a.samples:,} images."
    return _both(chart, directory / "confusion", title, text, grids.classes(report), subtitle=text)


def write_layers(reports: Sequence[LayerReport], directory: Path) -> tuple[Path, ...]:
    """Draw the error after each layer of each variant, the culprit marked, as ``layers-VARIANT.png`` and ``.html``;
    returns the files.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    need_plots()
    files: list[Path] = []
    for report in reports:
        figure = layer_figure(report)
        name = re.sub(r"[^\w.-]", "_", report.variant)
        stem = directory / f"layers-{name}"
        subtitle = figure.text.partition(": ")[2]
        files += _both(figure.draw(), stem, figure.heading, figure.text, grids.layers(report), subtitle=subtitle)
    return tuple(files)


def _both(
    chart: Chart, stem: Path, title: str, text: str, grid: Grid, *, subtitle: str | None = None
) -> tuple[Path, ...]:
    """One chart as PNG, titled in the picture, and as HTML, titled on the page."""
    from vggdeploy.report import plots

    files = tuple(stem.with_name(stem.name + suffix) for suffix in _SUFFIXES)
    titled = chart.properties(title=title if subtitle is None else {"text": title, "subtitle": subtitle})
    for file, shown in zip(files, (titled, chart), strict=True):
        plots.save_chart(shown, file, title=title, text=text, grid=grid)
    return files
