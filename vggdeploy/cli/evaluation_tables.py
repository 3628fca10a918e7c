"""How an evaluation looks in a terminal. Every string that is not ours is escaped."""

from __future__ import annotations

from rich.markup import escape

from vggdeploy.cli.render import note, out, table
from vggdeploy.errors import one_line
from vggdeploy.records.evaluation import EvaluationReport, Rate

MATRIX_CLASSES = 20
_LISTED = 50  # classes in the table; of more, those with the lowest F1
_NAME = 24  # letters of a class name beside a matrix
_LOG_WIDTH = 200  # of `render.table` where stdout is no terminal


def evaluation_table(report: EvaluationReport) -> None:
    """Accuracy first, then each class, then what was taken for what."""
    out.print(
        f"[bold]{escape(report.target)}[/]  {escape(report.variant)} ({escape(report.backend)} on {escape(report.device)}), "
        f"{escape(one_line(report.data))}"
    )
    top5 = f"   top-5 {_rate(report.top5)}" if report.top5 else ""
    out.print(f"accuracy [bold]{report.accuracy.rate:.2%}[/] {_interval(report.accuracy)}{top5}")
    out.print(
        f"loss {report.loss:.4f} nats, calibration error {report.calibration_error:.2%}, balanced accuracy "
        f"{report.balanced_accuracy:.2%}, macro F1 {report.macro_f1:.2%}   [dim]intervals: 95%, Clopper–Pearson[/]\n"
    )
    _class_table(report)
    if report.confusion is not None and len(report.classes) <= MATRIX_CLASSES and _fits(report):
        _matrix(report)
    else:
        _pairs(report)
    for text in report.notes:
        note(f"[yellow]note:[/] {escape(one_line(text))}")


def _interval(found: Rate) -> str:
    return f"({found.lower:.2%}–{found.upper:.2%}; {found.hits:,} of {found.samples:,})"


def _rate(found: Rate) -> str:
    return f"{found.rate:.2%} ({found.lower:.2%}–{found.upper:.2%})"


def _class_table(report: EvaluationReport) -> None:
    classes = report.classes
    title = ""
    if len(classes) > _LISTED:
        worst = sorted(classes, key=lambda c: (c.f1 is None, c.f1 or 0.0, c.index))
        classes = tuple(worst[:_LISTED])
        title = f"the {_LISTED} of {len(report.classes)} classes with the lowest F1"
    rows = [
        [
            str(c.index),
            escape(one_line(c.label)),
            *("–" if value is None else f"{value:.2%}" for value in (c.precision, c.recall, c.f1)),
            f"{c.images:,}",
        ]
        for c in classes
    ]
    table(["", "class", "precision", "recall", "F1", "images"], rows, title=title, left=2)


def _fits(report: EvaluationReport) -> bool:
    """Whether the matrix is no wider than the terminal: cut off, it would mislead."""
    names = max(len(_name(c.index, c.label)) for c in report.classes)
    cells = sum(2 + _column_width(report, index) for index in range(len(report.classes)))
    return names + cells + 1 <= (out.width if out.is_terminal else _LOG_WIDTH)


def _column_width(report: EvaluationReport, index: int) -> int:
    assert report.confusion is not None  # noqa: S101  # for mypy: the caller looked
    return max(len(str(index)), *(len(str(row[index])) for row in report.confusion)) + 1


def _name(index: int, label: str) -> str:
    line = one_line(label)
    if line == str(index):
        return line
    return f"{index} {line if len(line) <= _NAME else line[: _NAME - 1] + '…'}"


def _matrix(report: EvaluationReport) -> None:
    """Rows are true classes, columns predicted ones, by index."""
    rows = []
    for i, row in enumerate(report.confusion or ()):
        cells = [
            f"[bold green]{count}[/]" if i == j else str(count) if count else "[dim]·[/]" for j, count in enumerate(row)
        ]
        rows.append([escape(_name(i, report.classes[i].label)), *cells])
    columns = ["true ↓  predicted →", *(str(c.index) for c in report.classes)]
    table(columns, rows, title="\nconfusion matrix, images")


def _pairs(report: EvaluationReport) -> None:
    names = [escape(_name(c.index, c.label)) for c in report.classes]
    rows = [[names[pair.label], names[pair.predicted], f"{pair.images:,}"] for pair in report.confused]
    table(["true class", "taken for", "images"], rows, title="\nmost frequent confusions", left=2)
