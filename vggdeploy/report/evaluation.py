"""The pictures of an evaluation: its confusion matrix, or with many classes the most frequent confusions."""

from __future__ import annotations

from pathlib import Path

from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.report.curves import need_plots
from vggdeploy.report.page import Grid

NAMES = ("confusion.png", "confusion.html")


def write_confusion(report: EvaluationReport, directory: Path) -> tuple[Path, ...]:
    """Draw ``confusion.png`` and ``confusion.html`` into a directory; returns the files.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    need_plots()
    from vggdeploy.report import plots  # only now: it imports Altair

    labels = plots.distinct([c.label for c in report.classes])
    title = f"{Path(report.target).name}: {report.variant} on {report.data}"
    chart: plots.Chart
    if report.confusion is not None:
        chart = plots.confusion_matrix(labels, report.confusion)
    else:
        pairs = [(labels[pair.label], labels[pair.predicted], pair.images) for pair in report.confused]
        chart = plots.confused_pairs(pairs)
    a = report.accuracy
    text = f"Accuracy {a.rate:.2%} (95% interval {a.lower:.2%} to {a.upper:.2%}), {a.hits:,} of {a.samples:,} images."
    files = tuple(directory / name for name in NAMES)
    for file in files:
        shown = chart.properties(title={"text": title, "subtitle": text}) if file.suffix == ".png" else chart
        plots.save_chart(shown, file, title=title, text=text, grid=classes_grid(report))
    return files


def classes_grid(report: EvaluationReport) -> Grid:
    """Each class in numbers, and what it was most often taken for."""
    from vggdeploy.report.plots import distinct

    names = distinct([c.label for c in report.classes])
    rows = []
    for c in report.classes:
        pair = next((p for p in report.confused if p.label == c.index), None)
        taken = f"{names[pair.predicted]} ({pair.images:,})" if pair else "–"
        rows.append((names[c.index], f"{c.images:,}", *map(share_text, (c.precision, c.recall, c.f1)), taken))
    return Grid("Each class in numbers", ("class", "images", "precision", "recall", "F1", "most often taken for"), rows)


def share_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
