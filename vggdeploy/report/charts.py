"""The charts of a report. Each takes plain rows and fills the width it is given; numbers are in the tables beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from vggdeploy.report.page import DARK
from vggdeploy.report.plots import Chart

Rows = Sequence[dict[str, Any]]

_HEIGHT = 300
_FIRST_HEIGHT = 380
_STEP = 18
_RED = f"({DARK} ? '#ff7b72' : '#c62828')"
_INK = f"({DARK} ? '#e6e8eb' : '#1f2328')"
_GREY = f"({DARK} ? '#9ea7b3' : '#57606a')"


def pareto(rows: Rows, *, names: Sequence[str]) -> Chart:
    """Accuracy against latency: filled points count, hollow ones do not; the line joins those that nothing beats.

    Rows: label, p50_ms, accuracy, lower, upper (or None), data, verdict, counts, front, throughput.
    """
    rates = [value for row in rows for value in (row["accuracy"], row["lower"], row["upper"]) if value is not None]
    room = max(0.004, (max(rates) - min(rates)) * 0.08)
    base = alt.Chart(alt.InlineData(values=list(rows)))
    x = alt.X("p50_ms:Q", title="p50 latency, ms (log scale)", scale=_log(rows, "p50_ms"))
    y = alt.Y(
        "accuracy:Q",
        title="accuracy",
        axis=alt.Axis(format=".1%", tickCount=5),
        scale=alt.Scale(domain=[max(0.0, min(rates) - room), min(1.0, max(rates) + room)], nice=False, clamp=True),
    )
    front = (
        base.transform_filter("datum.front")
        .mark_line(interpolate="step-after", strokeWidth=1.5, strokeDash=[4, 3], color=alt.ExprRef(_GREY))
        .encode(x=x, y=y, order=alt.Order("p50_ms:Q"))
    )
    interval = (
        base.transform_filter("isValid(datum.lower)")
        .mark_rule(strokeWidth=1.5, opacity=0.7)
        .encode(x=x, y=alt.Y("lower:Q"), y2="upper:Q", color=_colour(names, rows))
    )
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("run:N"),
        alt.Tooltip("accuracy:Q", format=".2%"),
        alt.Tooltip("data:N", title="on"),
        alt.Tooltip("p50_ms:Q", title="p50 ms", format=".3f"),
        alt.Tooltip("throughput:Q", title="images/s", format=",.0f"),
    ]
    points = base.encode(x=x, y=y, color=_colour(names, rows), shape=_shape(names, rows), tooltip=tip)
    counted = points.transform_filter("datum.counts").mark_point(size=150, filled=True, opacity=1)
    hollow = points.transform_filter("!datum.counts").mark_point(size=150, strokeWidth=2)
    return _dark(alt.layer(front, interval, hollow, counted).properties(width="container", height=_FIRST_HEIGHT))


def front(rows: Rows, *, measured: bool) -> Chart:
    """A search's candidates: accuracy lost against speed (or against cost, where nothing was measured).

    Rows: label, speed, points, worst, best, megabytes, holds, chosen. What holds the goal is filled; the winner is named.
    """
    title = "times as fast as the original (log scale)" if measured else "cost, million operations (log scale)"
    base = alt.Chart(alt.InlineData(values=list(rows)))
    x = alt.X("speed:Q", title=title, scale=_log(rows, "speed"))
    y = alt.Y("points:Q", title="accuracy, points beside the original", scale=alt.Scale(zero=False))
    kinds, below = ["holds the goal", "misses it"], alt.Legend(orient="bottom", title=None)
    colour = alt.Color("holds:N", legend=below, scale=alt.Scale(domain=kinds, range=["#0072b2", "#d55e00"]))
    shape = alt.Shape("holds:N", legend=below, scale=alt.Scale(domain=kinds, range=["circle", "cross"]))
    interval = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y="worst:Q", y2="best:Q", color=colour)
    points = base.mark_point(size=120, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        tooltip=[
            alt.Tooltip("label:N", title="candidate"),
            alt.Tooltip("speed:Q", title=title.partition(" (")[0], format=",.2f"),
            alt.Tooltip("points:Q", title="accuracy, points", format="+.2f"),
            alt.Tooltip("worst:Q", title="at worst", format="+.2f"),
            alt.Tooltip("megabytes:Q", title="MB", format=",.2f"),
            alt.Tooltip("holds:N", title="goal"),
        ],
    )
    word = (
        base.transform_filter("datum.chosen").mark_text(align="right", dx=-10, dy=-8).encode(x=x, y=y, text="label:N")
    )
    return _dark(alt.layer(interval, points, word).properties(width="container", height=_HEIGHT))


def ecdf(rows: Rows, *, names: Sequence[str]) -> Chart:
    """The share of calls that took at most so long. Rows: label, ms, share (0–1)."""
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(
        x=alt.X("ms:Q", title="latency (ms, log scale)", scale=_log(rows, "ms")),
        y=alt.Y("share:Q", title="share of calls", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        color=_colour(names, rows, line=True),
    )
    line = base.mark_line(strokeWidth=2).encode(strokeDash=_dash(names, rows, line=True))
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("share:Q", title="of calls", format=".0%"),
        alt.Tooltip("ms:Q", title="took at most, ms", format=".3f"),
    ]
    points = base.mark_circle(size=70, opacity=0).encode(tooltip=tip)
    return _dark(alt.layer(line, points).properties(width="container", height=_HEIGHT))


def throughput(rows: Rows, *, names: Sequence[str]) -> Chart:
    """Images a second over the batch size. Rows: label, batch, images_per_second, p50_ms, run."""
    y = alt.Y("images_per_second:Q", title="images/s", axis=alt.Axis(format="~s"))
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("batch:Q"),
        alt.Tooltip("images_per_second:Q", title="images/s", format=",.0f"),
        alt.Tooltip("p50_ms:Q", title="p50 ms", format=".3f"),
        alt.Tooltip("run:N"),
    ]
    return _joined(rows, names, _batch(rows), y, tip)


def server(rows: Rows, *, names: Sequence[str]) -> Chart:
    """p99 over the rate of queries, with the bound that was asked for. Rows: label, batch, qps, p99_ms, bound_ms, run."""
    x = alt.X("qps:Q", title="queries a second (Poisson arrivals)", scale=alt.Scale(zero=False, padding=16))
    y = alt.Y("p99_ms:Q", title="p99 latency (ms, log scale)", scale=_log(rows, "p99_ms", "bound_ms"))
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("qps:Q", title="queries/s", format=",.1f"),
        alt.Tooltip("p99_ms:Q", title="p99 ms", format=".3f"),
        alt.Tooltip("batch:Q", title="batches up to"),
        alt.Tooltip("bound_ms:Q", title="bound ms", format=".3f"),
        alt.Tooltip("run:N"),
    ]
    bounds = sorted({row["bound_ms"] for row in rows if row["bound_ms"] is not None})
    limits = _limits([{"bound_ms": b, "text": f"bound {b:g} ms"} for b in bounds], "bound_ms", above=True)
    return _joined(rows, names, x, y, tip, *limits, line_of="batch:N")


def roof(rows: Rows, *, names: Sequence[str], roofs: Rows) -> Chart:
    """Arithmetic that was reached, over the batch size, below the measured roof. Rows: label, batch, tera_ops, share."""
    y = alt.Y("tera_ops:Q", title="tera-operations a second (log scale)", scale=alt.Scale(type="log"))
    tip = [
        alt.Tooltip("label:N", title="engine"),
        alt.Tooltip("batch:Q"),
        alt.Tooltip("tera_ops:Q", title="TOP/s", format=",.1f"),
        alt.Tooltip("share:Q", title="of the roof", format=".0%"),
    ]
    return _joined(rows, names, _batch(rows), y, tip, *_limits(roofs, "tera_ops", above=False))


def _batch(rows: Rows) -> alt.X:
    return alt.X(
        "batch:Q",
        title="batch (log scale)",
        axis=alt.Axis(values=sorted({row["batch"] for row in rows}), format="d", grid=False),
        scale=alt.Scale(type="log", base=2, nice=False, padding=16),
    )


def _limits(rows: Rows, field: str, *, above: bool) -> tuple[alt.Chart, alt.Chart]:
    """Red lines across the picture, each with its ``text`` above or below it."""
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(y=f"{field}:Q")
    place: dict[str, Any] = {"baseline": "bottom", "dy": -2} if above else {"baseline": "top", "dy": 4}
    words = base.mark_text(align="left", dx=4, color=alt.ExprRef(_RED), **place).encode(x=alt.value(0), text="text:N")
    return base.mark_rule(strokeDash=[6, 4], color=alt.ExprRef(_RED)), words


def _joined(
    rows: Rows, names: Sequence[str], x: alt.X, y: alt.Y, tip: list[alt.Tooltip], *below: alt.Chart, line_of: str = ""
) -> Chart:
    """The points of each variant, and a line that joins them: a line for each value of ``line_of``, where there is one."""
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(x=x, y=y, color=_colour(names, rows))
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=_dash(names, rows))
    lines = lines.encode(detail=line_of) if line_of else lines
    points = base.mark_point(size=90, filled=True, opacity=1).encode(shape=_shape(names, rows), tooltip=tip)
    return _dark(alt.layer(*below, lines, points).properties(width="container", height=_HEIGHT))


def bars(rows: Rows, *, title: str, unit: str = ",.1f") -> Chart:
    """One number for each name, from zero. Rows: label, value."""
    names = list(dict.fromkeys(row["label"] for row in rows))
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=list(rows)), width="container", height=26 * len(names))
        .mark_bar(color=alt.ExprRef(f"({DARK} ? '#56b4e9' : '#0072b2')"))
        .encode(
            x=alt.X("value:Q", title=title),
            y=alt.Y("label:N", title=None, sort=names, axis=alt.Axis(labelLimit=150, ticks=False)),
            tooltip=[alt.Tooltip("label:N", title="variant"), alt.Tooltip("value:Q", title=title, format=unit)],
        )
    )
    return _dark(chart)


def distances(rows: Rows, *, names: Sequence[str]) -> Chart:
    """Relative L2 of every output, a row each. Rows: label, output (with its data), relative_l2 (above 0), exact."""
    outputs = list(dict.fromkeys(row["output"] for row in rows))
    # The output in one line, the images below it.
    lines = alt.Axis(labelLimit=150, grid=True, ticks=False, labelExpr="split(datum.label, ' | ')")
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=list(rows)), width="container", height=38 * len(outputs))
        .mark_point(size=110, filled=True, opacity=1)
        .encode(
            x=alt.X(
                "relative_l2:Q",
                title="relative L2 (log scale)",
                scale=_log(rows, "relative_l2", least=100),
                axis=alt.Axis(format=".0e", tickCount=5, labelOverlap=True),
            ),
            y=alt.Y("output:N", title=None, sort=outputs, axis=lines),
            color=_colour(names, rows),
            shape=_shape(names, rows),
            tooltip=[
                alt.Tooltip("label:N", title="variant"),
                alt.Tooltip("output:N"),
                alt.Tooltip("told:N", title="relative L2"),
                alt.Tooltip("verdict:N"),
            ],
        )
    )
    return _dark(chart)


def layer_errors(rows: Rows, *, culprit: str | None) -> Chart:
    """The error after each layer, from the first to the last. Rows: layer, error (above 0), told, alone, marked,
    finite, largest.

    The culprit is red, larger, and named in words: no colour has to be seen.
    """
    order = [row["layer"] for row in rows]
    base = alt.Chart(alt.InlineData(values=list(rows)), height=_STEP * len(order)).encode(
        y=alt.Y(
            "layer:N",
            title=None,
            sort=order,
            axis=alt.Axis(ticks=False, domain=False, labelLimit=110, labelOverlap=False, grid=False),
        )
    )
    scale = _log(rows, "error")
    low = scale.domain[0]
    x = alt.X(
        "error:Q",
        title="relative L2 (log scale)",
        scale=scale,
        axis=alt.Axis(format=".0e", tickCount=5, labelOverlap=True),
    )
    colour = alt.ExprRef(f"datum.marked ? {_RED} : ({DARK} ? '#56b4e9' : '#0072b2')")
    stems = base.transform_calculate(start=str(low)).mark_rule(strokeWidth=2, color=colour).encode(x=x, x2="start:Q")
    dots = base.mark_point(filled=True, opacity=1, size=alt.ExprRef("datum.marked ? 170 : 60"), color=colour).encode(
        x=x,
        shape=alt.Shape(
            "finite:N",
            scale=alt.Scale(
                domain=["finite", "NaN or infinity", "another shape"], range=["circle", "triangle-up", "cross"]
            ),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("told:N", title="relative L2"),
            alt.Tooltip("alone:N", title="of this layer alone"),
            alt.Tooltip("max_abs:Q", title="max |Δ|", format=".2e"),
            alt.Tooltip("cosine_min:Q", title="min cosine", format=".6f"),
            alt.Tooltip("largest:Q", title="reference's largest", format=".3~g"),
            alt.Tooltip("finite:N", title="values"),
        ],
    )
    layers: list[alt.Chart] = [stems, dots]
    if culprit is not None and any(row["marked"] for row in rows):
        high = scale.domain[1]
        word = next((f"{row['layer']}: {row['word']}" for row in rows if row["marked"]), "")
        right = next(row["error"] for row in rows if row["marked"]) > (low * high) ** 0.5
        layers.append(
            base.transform_filter("datum.marked")
            .mark_text(
                align="right" if right else "left",
                dx=-12 if right else 12,
                dy=-9 if right else 0,
                fontWeight="bold",
                color=alt.ExprRef(_RED),
            )
            .encode(x=x, text=alt.value(word))
        )
    return _dark(alt.layer(*layers).properties(width="container"))


def _dark(chart: Any) -> Chart:
    """With the parameter that the page sets, and axes that share the width between labels and plot."""
    dark: Chart = chart.add_params(alt.param(name=DARK, value=False)).properties(
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    return dark


def _log(rows: Rows, *fields: str, least: float = 1.0) -> alt.Scale:
    """A log scale a little wider than the values, and ``least`` times its own start wide."""
    values = [row[field] for row in rows for field in fields if (row.get(field) or 0) > 0] or [1.0]
    low, high = min(values), max(values)
    room = max(1.15, (high / low) ** 0.05, (least * low / high) ** 0.5)
    return alt.Scale(type="log", domain=[low / room, high * room], nice=False)


_SHAPES = ("circle", "square", "triangle-up", "cross", "diamond", "triangle-down", "triangle-left")
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (12, 4))


def _legend(names: Sequence[str], rows: Rows, *, line: bool) -> alt.Legend:
    """One legend for colour, shape and dash: of the variants that are in the picture, as what they are drawn as."""
    there = {row["label"] for row in rows}
    look: dict[str, Any] = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolSize": 500} if line else {}
    return alt.Legend(
        title=None,
        orient="bottom",
        labelLimit=260,
        columns=alt.ExprRef("width < 420 ? 1 : width < 640 ? 3 : 4"),
        values=[name for name in names if name in there],
        **look,
    )


def _colour(names: Sequence[str], rows: Rows, *, line: bool = False) -> alt.Color:
    """Every variant has its colour, shape and dash in the whole report: ``names`` are all of them, in their order."""
    return alt.Color("label:N", scale=alt.Scale(domain=list(names)), legend=_legend(names, rows, line=line))


def _shape(names: Sequence[str], rows: Rows) -> alt.Shape:
    scale = alt.Scale(domain=list(names), range=list(_SHAPES))
    return alt.Shape("label:N", scale=scale, legend=_legend(names, rows, line=False))


def _dash(names: Sequence[str], rows: Rows, *, line: bool = False) -> alt.StrokeDash:
    scale = alt.Scale(domain=list(names), range=[list(dash) for dash in _DASHES])
    return alt.StrokeDash("label:N", scale=scale, legend=_legend(names, rows, line=line))
