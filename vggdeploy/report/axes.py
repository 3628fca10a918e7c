"""What the charts of a report share: the ground they are drawn on, log scales, and each backend's colour, mark and dash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from vggdeploy.report.looks import looks
from vggdeploy.report.page import DARK
from vggdeploy.report.plots import Chart

Rows = Sequence[dict[str, Any]]
Groups = Mapping[str, str]  # each name in a report, with the backend whose colour and mark it has

RED = f"({DARK} ? '#ff7b72' : '#c62828')"
INK = f"({DARK} ? '#e6e8eb' : '#1f2328')"
GREY = f"({DARK} ? '#9ea7b3' : '#57606a')"


def in_dark(chart: Any) -> Chart:
    """With the parameter that the page sets, and axes that share the width between labels and plot."""
    dark: Chart = chart.add_params(alt.param(name=DARK, value=False)).properties(
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    return dark


def log_scale(rows: Rows, *fields: str, least: float = 1.0, wider: float = 1.0) -> alt.Scale:
    """A log scale a little wider than the values, and ``least`` times its own start wide. ``wider``: room at the right, for
    words, as a power of the values' range."""
    values = [row[field] for row in rows for field in fields if (row.get(field) or 0) > 0] or [1.0]
    low, high = min(values), max(values)
    room = max(1.15, (high / low) ** 0.05, (least * low / high) ** 0.5)
    words = max(high / low, 2.0) ** (wider - 1)
    return alt.Scale(type="log", domain=[low / room, high * room * words], nice=False)


_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (12, 4))


def _legend(names: Groups, rows: Rows) -> alt.Legend:
    """One legend for colour and dash, of the variants that are in the picture, as lines."""
    there = {row["label"] for row in rows}
    return alt.Legend(
        title=None,
        orient="bottom",
        labelLimit=260,
        columns=alt.ExprRef("width < 420 ? 1 : width < 640 ? 3 : 4"),
        values=[name for name in names if name in there],
        symbolType="stroke",
        symbolStrokeWidth=2,
        symbolSize=500,
    )


def colour_of(names: Groups, rows: Rows, *, legend: bool = True) -> alt.Color:
    """Every backend has its colour and mark in all reports; its variants are told apart by dashes and by their names.

    ``names``: all variants of the report, each with its backend.
    """
    found = looks(names.values())
    colours = [alt.ExprRef(f"{DARK} ? '{found[g].dark}' : '{found[g].light}'") for g in names.values()]
    scale = alt.Scale(domain=list(names), range=colours)
    return alt.Color("label:N", scale=scale, legend=_legend(names, rows) if legend else None)


def shape_of(names: Groups) -> alt.Shape:
    found = looks(names.values())
    scale = alt.Scale(domain=list(names), range=[found[g].mark for g in names.values()])
    return alt.Shape("label:N", scale=scale, legend=None)


# A mark by its row's field: an encoded shape would be drawn in the legend in place of a line's dash.
MARK = alt.ExprRef("datum.mark")


def with_marks(rows: Rows, names: Groups) -> list[dict[str, Any]]:
    """The rows, each with its backend's mark for `MARK`."""
    found = looks(names.values())
    return [{**row, "mark": found[names[row["label"]]].mark} for row in rows]


def dash_of(names: Groups, rows: Rows) -> alt.StrokeDash:
    """A dash for each variant of a backend."""
    seen: Counter[str] = Counter()
    dashes = []
    for group in names.values():
        dashes.append(list(_DASHES[seen[group] % len(_DASHES)]))
        seen[group] += 1
    scale = alt.Scale(domain=list(names), range=dashes)
    return alt.StrokeDash("label:N", scale=scale, legend=_legend(names, rows))
