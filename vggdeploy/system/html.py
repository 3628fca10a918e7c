"""Pieces of HTML that a notebook shows: a line in bold, a sentence, a table. Whatever the text holds, it is shown as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vggdeploy.errors import one_line

_LEFT = ' style="text-align: left"'  # a notebook sets every cell to the right


def text(plain: str) -> str:
    """Plain text as HTML: no letter of it is markup, and none that turns or hides others is obeyed."""
    return escape(one_line(plain))


def heading(title: str, rest: str = "") -> str:
    """A line whose beginning is bold."""
    return f"<p><strong>{text(title)}</strong> {text(rest)}</p>\n"


def paragraph(sentence: str) -> str:
    return f"<p>{text(sentence)}</p>\n"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[bool], caption: str = "") -> str:
    """A table; ``left`` says of each column whether it holds text, and not numbers."""
    sides = [_LEFT if side else "" for side in left]
    head = "".join(f'<th scope="col"{side}>{text(title)}</th>' for title, side in zip(titles, sides, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{side}>{text(cell)}</td>' for cell, side in zip(row, sides, strict=True))}</tr>"
        for row in rows
    )
    named = f"<caption{_LEFT}>{text(caption)}</caption>" if caption else ""
    return f"<table>{named}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, a row each, without those that are nothing."""
    rows = "\n".join(
        f'<tr><th scope="row"{_LEFT}>{text(name)}</th><td{_LEFT}>{text(value)}</td></tr>'
        for name, value in pairs
        if value
    )
    return f"<table><tbody>\n{rows}\n</tbody></table>\n"


def folded(summary: str, inside: str) -> str:
    """``inside``, which is HTML, behind a line that opens it."""
    return f"<details><summary>{text(summary)}</summary>\n{inside}</details>\n"
