"""How a table is laid out in the width that there is: as it is, with titles and texts on several lines, or in parts
beneath each other. No number and no name is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggdeploy.report.tables import Cell, Grid

GAP = 3  # letters between two columns: " │ "
_TEXT = 24  # letters that a folded text keeps at least, where it has so many
_NAMING = 3  # columns that name a row, beside the first, at most


@dataclass(frozen=True)
class Part:
    """Some columns of a table, by index, each with its width in letters; and the rows that say something in them."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    rows: Sequence[Sequence[Cell]]


def parts(grid: Grid, width: int) -> list[Part]:
    """The columns of ``grid`` in as few tables as have room in ``width`` letters; each begins with those that name a row.

    Columns without a value leave first. Where not all others have room, titles break at their spaces, and columns of text
    do; then the table continues below.
    """
    from vggdeploy.report.tables import NONE

    shown = [i for i, column in enumerate(grid.columns) if not column.wide]
    whole = [_widest(grid, i) for i in range(len(grid.columns))]
    if _total([whole[i] for i in shown]) <= width:
        return [Part(tuple(shown), tuple(whole[i] for i in shown), grid.rows)]
    shown = [i for i in shown if i == shown[0] or any(row[i] != NONE for row in grid.rows)]
    least = [_narrowest(grid, i) for i in range(len(grid.columns))]
    names = _naming(grid, shown)
    if _total([least[i] for i in names]) + GAP + _TEXT > width:
        names = names[:1]
    room = max(width - _total([least[i] for i in names]) - GAP, _TEXT)
    groups: list[list[int]] = [[]]
    for i in [i for i in shown if i not in names]:
        if groups[-1] and _total([least[n] for n in (*groups[-1], i)]) > room:
            groups.append([])
        groups[-1].append(i)
    found: list[Part] = []
    for group in groups:
        columns = (*names, *group)
        rows = [row for row in grid.rows if not found or any(row[i] != NONE for i in group)]
        found.append(Part(columns, _spread(columns, least, whole, width), rows))
    return found


def _spread(columns: Sequence[int], least: Sequence[int], whole: Sequence[int], width: int) -> tuple[int, ...]:
    """The least widths; what is left of ``width`` goes to the columns that want more, from the left."""
    widths = [least[i] for i in columns]
    spare = width - _total(widths)
    for place, i in enumerate(columns):
        more = max(0, min(spare, whole[i] - widths[place]))
        widths[place] += more
        spare -= more
    if spare < 0:  # the names alone are wider than the terminal: they fold
        widths[0] = max(8, widths[0] + spare)
    return tuple(widths)


def _naming(grid: Grid, shown: Sequence[int]) -> list[int]:
    """The first column, with the texts and counts beside it that tell every row from the others; or with the next one."""
    first, *others = shown
    named = [i for i in others[:_NAMING] if grid.columns[i].left or grid.columns[i].write == "d"]
    for more in range(len(named) + 1):
        for beside in combinations(named, more):
            names = [tuple(row[i].text for i in (first, *beside)) for row in grid.rows]
            if len(set(names)) == len(names):
                return [first, *beside]
    return [first, *others[:1]]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * max(0, len(widths) - 1)


def _widest(grid: Grid, index: int) -> int:
    return max(len(grid.columns[index].title), *(_length(row[index]) for row in grid.rows), 1)


def _narrowest(grid: Grid, index: int) -> int:
    """The width at which a title breaks only at its spaces; a text does too, but is no column of single words."""
    column = grid.columns[index]
    title = max(map(len, column.title.split()), default=1)
    cells = max((_length(row[index]) for row in grid.rows), default=1)
    if column.left and index:
        sign = 2 * any(row[index].light for row in grid.rows)
        words = max((len(word) for row in grid.rows for word in row[index].text.split()), default=1)
        cells = min(cells, sign + max(words, min(_TEXT, cells // 2 + 2)))
    return max(title, cells)


def _length(cell: object) -> int:
    text, light = getattr(cell, "text", ""), getattr(cell, "light", None)
    return len(text) + (2 if light else 0)
