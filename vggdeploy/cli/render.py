"""How results look: tables and lines on stdout, progress and errors on stderr.

No letter that a terminal obeys comes from anywhere but here: `out` and `err` show such letters escaped in whatever they
draw, and `Plain` does in what libraries, warnings and tracebacks write by themselves.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape as _escape_markup
from rich.segment import Segment
from rich.text import Text

from vggdeploy.errors import one_line, printable

if TYPE_CHECKING:
    from vggdeploy.report.tables import Cell, Grid
    from vggdeploy.types import OnProgress


class _Terminal(Console):
    """A console whose text moves no cursor and styles nothing: whatever is drawn, only Rich's own codes are codes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for part in super().render(renderable, options):
            safe = part.control or part.text.isprintable() or part.text == "\n"
            yield part if safe else part._replace(text=printable(part.text, keep="\n"))


# soft_wrap: paths and commands stay on one line, so that they can be copied.
out = _Terminal(highlight=False, soft_wrap=True, emoji=False)
err = _Terminal(stderr=True, highlight=False, soft_wrap=True, emoji=False)

# By the value of a `Verdict`: `--help` must not pay for what `types` imports.
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "unproven": "yellow"}
LIGHTS = {
    "pass": "[green]✔ pass[/]",
    "fail": "[red]✘ fail[/]",
    "inconclusive": "[yellow]? inconclusive[/]",
    "unproven": "[yellow]– unproven here[/]",
}
LOG_WIDTH = 200  # of a table where stdout is no terminal


def escape(text: str) -> str:
    """Text that is not ours, as markup: no style and no line begins in it."""
    return _escape_markup(printable(text))


class Plain:
    """A stream of text that passes on lines and what can be printed; all else is shown escaped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # A carriage return in front is a progress bar of a library's: it can overwrite its own line.
        lead = "\r" if text.startswith("\r") else ""
        self._stream.write(lead + "\n".join(printable(line, keep="\t") for line in text[len(lead) :].split("\n")))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """From now on only `out` and `err` can style, move or hide anything on this process's terminal. What its encoding has no
    letter for, under the C locale, is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out.file, err.file = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Plain(sys.stdout), Plain(sys.stderr)


def error_line(cause: str, hint: str) -> None:
    """One line of cause, one of remedy, on stderr."""
    err.print(f"[bold red]error:[/] {escape(one_line(cause))}")
    if hint:
        err.print(f"[bold]  fix:[/] {escape(one_line(hint))}")


def emit_json(record: Any) -> None:
    """One document on stdout; JSON is UTF-8 (RFC 8259), whatever the terminal's encoding is."""
    from vggdeploy.records import json_text, to_json

    text = json_text(to_json(record))
    if isinstance(out.file, io.TextIOWrapper):
        out.file.flush()
        out.file.buffer.write(text.encode())
    else:
        out.file.write(text)
    out.file.flush()


def note(text: str) -> None:
    """A line of progress, on stderr. ``text`` is markup: escape what is not ours."""
    err.print(text)


def next_steps(*commands: str) -> None:
    """The commands to try next, on stderr."""
    for index, command in enumerate(commands):
        err.print(f"[dim]{'next:' if index == 0 else '     '}[/] {escape(command)}")


def table(grid: Grid) -> None:
    """A table on stdout, without the columns that are too wide for a terminal."""
    from rich.table import Table

    shown = [index for index, column in enumerate(grid.columns) if not column.wide]
    title = Text(f"\n{grid.caption}") if grid.caption else None
    drawn = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, show_edge=False)
    for index in shown:
        column = grid.columns[index]
        drawn.add_column(Text(column.title), justify="left" if column.left else "right", no_wrap=True)
    for row in grid.rows:
        drawn.add_row(*(_cell(row[index]) for index in shown))
    out.print(drawn, soft_wrap=False) if out.is_terminal else _log().print(drawn)


def _log() -> _Terminal:
    return _Terminal(file=out.file, width=LOG_WIDTH, highlight=False, emoji=False)


def _cell(cell: Cell) -> Text:
    """Text is no markup: nothing in it has to be escaped."""
    from vggdeploy.report.tables import MARKS

    return Text(f"{MARKS[cell.light]} {cell.text}", _COLOURS[cell.light]) if cell.light else Text(cell.text)


@contextmanager
def progress(start: str = "", *, refresh_per_second: float = 10) -> Iterator[OnProgress]:
    """Show on stderr how far a long function is: on a terminal a bar, in a log a line for each phase of unknown length.

    The bar says ``start`` until the first call; without it, it appears with that call.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if not err.is_terminal:
        yield lambda share, phase: note(f"[dim]{escape(phase)}[/]") if share is None else None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, refresh_per_second=refresh_per_second) as bar:
        shown = bar.add_task(escape(start), total=None, visible=bool(start))

        def draw(share: float | None, phase: str) -> None:
            bar.tasks[0].total = None if share is None else 1.0  # update() cannot take a total back
            bar.update(shown, completed=share or 0.0, description=escape(phase), visible=True)

        yield draw


def size_text(count: int) -> str:
    """Bytes as people read them: 553.4 MB (powers of ten)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
