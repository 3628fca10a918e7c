"""How results look: tables and lines on stdout, progress and errors on stderr.

No letter that a terminal obeys comes from anywhere but here: `out` and `err` show such letters escaped in whatever they
draw, and `Plain` does in what libraries, warnings and tracebacks write by themselves.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape as _escape_markup
from rich.segment import Segment
from rich.text import Text

from vggdeploy.cli.heartbeat import Heartbeat, beating
from vggdeploy.cli.table_layout import parts
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


def with_path(text: str, bundle: object) -> str:
    """A text whose commands name the bundle's path in place of the word BUNDLE, which is all that a record can know of it."""
    return re.sub(r"\b(vggdeploy [a-z-]+) BUNDLE\b", lambda found: f"{found[1]} {shlex.quote(str(bundle))}", text)


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


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_heart: ContextVar[Heartbeat | None] = ContextVar("heart", default=None)


@contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Within it nothing is said of progress and of what to do next."""
    token = _quiet.set(wanted)
    try:
        yield
    finally:
        _quiet.reset(token)


def note(text: str) -> None:
    """A line of progress, on stderr. ``text`` is markup: escape what is not ours."""
    if not _quiet.get():
        notice(text)


def notice(text: str) -> None:
    """What has to be known though quiet was asked for, on stderr. ``text`` is markup."""
    err.print(text)
    if heart := _heart.get():
        heart.heard()


def next_steps(*commands: str) -> None:
    """The commands to try next, on stderr."""
    for index, command in enumerate(commands):
        note(f"[dim]{'next:' if index == 0 else '     '}[/] {escape(command)}")


def sentence(text: str, lead: str = "") -> None:
    """A line of markup on stdout that breaks between words on a terminal, each further line under the end of ``lead``."""
    if not (out.is_terminal and lead):
        out.print(lead + text, soft_wrap=not out.is_terminal)
        return
    from rich.table import Table

    drawn = Table.grid()
    drawn.add_column(width=min(Text.from_markup(lead).cell_len, out.width // 2))
    drawn.add_column(overflow="fold")
    drawn.add_row(lead, text)
    out.print(drawn, soft_wrap=False)


def table(grid: Grid) -> None:
    """A table on stdout, in the width of the terminal; without the columns that are too wide for any."""
    from rich.table import Table

    console = out if out.is_terminal else _log()
    for number, part in enumerate(parts(grid, console.width)):
        if number:
            console.print()
        title = Text(f"\n{grid.caption}") if grid.caption and not number else None
        drawn = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, show_edge=False)
        for index, width in zip(part.columns, part.widths, strict=True):
            column = grid.columns[index]
            drawn.add_column(
                Text(column.title), justify="left" if column.left else "right", width=width, overflow="fold"
            )
        for row in part.rows:
            drawn.add_row(*(_cell(row[index]) for index in part.columns))
        console.print(drawn, soft_wrap=False)


def _log() -> _Terminal:
    return _Terminal(file=out.file, width=LOG_WIDTH, highlight=False, emoji=False)


def _cell(cell: Cell) -> Text:
    """Text is no markup: nothing in it has to be escaped."""
    from vggdeploy.report.tables import MARKS

    return Text(f"{MARKS[cell.light]} {cell.text}", _COLOURS[cell.light]) if cell.light else Text(cell.text)


@contextmanager
def progress(start: str = "", *, refresh_per_second: float = 10) -> Iterator[OnProgress]:
    """Show on stderr how far a long function is: on a terminal a bar with a clock, in a log lines, the first of them before
    three seconds are over.

    The bar says ``start`` until the first call; without it, it appears with that call.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if _quiet.get():
        yield lambda _share, _phase: None
        return
    if not err.is_terminal:
        heart = Heartbeat(lambda phase: err.print(f"[dim]{escape(phase)}[/]"), start or "working")
        token = _heart.set(heart)
        try:
            with beating(heart):
                yield heart.tell
        finally:
            _heart.reset(token)
        return
    bar_column = BarColumn(40 if err.width >= 120 else 10)
    columns = (
        TextColumn("{task.description}"),
        bar_column,
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
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
