"""Charts with a row for each variant, named at its left: nothing overlaps where values tie, and no legend has to be matched."""

from __future__ import annotations

import altair as alt

from vggdeploy.report.axes import GREY, RED, Groups, Rows, colour_of, in_dark, log_scale, shape_of
from vggdeploy.report.plots import Chart

_ROW = 34


def latencies(rows: Rows, *, names: Groups, title: str = "latency of one batch, ms (log scale)") -> Chart:
    """A row for each variant, in the order given: p50 with its interval as a bar, and a thin line to p99.

    Rows: label, p50_ms, low_ms, high_ms, p99_ms (or None), told, counts.
    """
    base = _lines(rows)
    scale = log_scale(rows, "low_ms", "high_ms", "p99_ms", wider=1.6)
    x = alt.X("p50_ms:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, labelOverlap=True))
    colour = colour_of(names, rows, legend=False)
    tail = base.transform_filter("isValid(datum.p99_ms)")
    layers = [
        tail.mark_rule(strokeWidth=1.5).encode(x=x, x2="p99_ms:Q", color=colour),
        tail.mark_tick(thickness=2, size=12).encode(x=alt.X("p99_ms:Q", scale=scale), color=colour),
        base.mark_rule(strokeWidth=6, opacity=0.45).encode(
            x=alt.X("low_ms:Q", scale=scale), x2="high_ms:Q", color=colour
        ),
        *_marks(base, x, names, rows, _LATENCY_TIP),
        base.transform_calculate(end="max(datum.high_ms, isValid(datum.p99_ms) ? datum.p99_ms : datum.p50_ms)")
        .mark_text(align="left", dx=10, fontSize=12)
        .encode(x=alt.X("end:Q", scale=scale), text="told:N"),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_ROW * len(rows)))


def losses(rows: Rows, *, names: Groups) -> Chart:
    """A row for each variant, in the order given: the accuracy lost with its one-sided bound, and the limit in red.

    Rows: label, points (or None, where only a bound is known), upper, limit (or None), told, counts.
    """
    base = _lines(rows)
    ends = [row[key] for row in rows for key in ("points", "upper", "limit") if row.get(key) is not None]
    low, high = min([0.0, *ends]), max([0.1, *ends])
    scale = alt.Scale(domain=[low - 0.06 * (high - low), high + 0.45 * (high - low)], nice=False)
    x = alt.X("points:Q", title="accuracy lost, percentage points", scale=scale, axis=alt.Axis(tickCount=4))
    upper = alt.X("upper:Q", scale=scale)
    colour = colour_of(names, rows, legend=False)
    known, bounded = base.transform_filter("isValid(datum.points)"), base.transform_filter("isValid(datum.upper)")
    start = bounded.transform_calculate(start="isValid(datum.points) ? datum.points : min(0, datum.upper)")
    limited = base.transform_filter("isValid(datum.limit)")
    layers = [
        base.mark_rule(color=alt.ExprRef(GREY), strokeWidth=1).encode(x=alt.datum(0, scale=scale)),
        limited.mark_tick(thickness=2.5, size=_ROW, color=alt.ExprRef(RED)).encode(x=alt.X("limit:Q", scale=scale)),
        start.mark_rule(strokeWidth=2).encode(x=alt.X("start:Q", scale=scale), x2="upper:Q", color=colour),
        bounded.mark_tick(thickness=2, size=12).encode(x=upper, color=colour),
        *_marks(known, x, names, rows, _LOSS_TIP),
        base.transform_calculate(
            end="max(isValid(datum.upper) ? datum.upper : 0, isValid(datum.limit) ? datum.limit : 0)"
        )
        .mark_text(align="left", dx=8, fontSize=12)
        .encode(x=alt.X("end:Q", scale=scale), text="told:N"),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_ROW * len(rows)))


def changes(rows: Rows, *, names: Groups) -> Chart:
    """A row for each variant, in the order given: its speed as a multiple of before, with its interval, and a line at 1.

    Rows: label, backend, ratio, low, high, outcome, told, counts.
    """
    base = _lines(rows)
    scale = log_scale([*rows, {"low": 1 / 1.05, "high": 1.05}], "low", "high", wider=1.3)
    x = alt.X("ratio:Q", title="speed, in multiples of before", scale=scale, axis=alt.Axis(tickCount=5, format=".3~r"))
    colour = colour_of(names, rows, legend=False)
    layers = [
        alt.Chart(alt.InlineData(values=[{}]))
        .mark_rule(color=alt.ExprRef(GREY), strokeWidth=1.5)
        .encode(x=alt.datum(1, scale=scale)),
        base.mark_rule(strokeWidth=6, opacity=0.45).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour),
        *_marks(base, x, names, rows, _CHANGE_TIP),
        base.mark_text(align="left", dx=10, fontSize=12).encode(x=alt.X("high:Q", scale=scale), text="told:N"),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_ROW * len(rows)))


_LATENCY_TIP = [
    alt.Tooltip("label:N", title="variant"),
    alt.Tooltip("verdict:N"),
    alt.Tooltip("run:N"),
    alt.Tooltip("p50_ms:Q", title="p50 ms", format=".3~r"),
    alt.Tooltip("low_ms:Q", title="from ms", format=".3~r"),
    alt.Tooltip("high_ms:Q", title="to ms", format=".3~r"),
    alt.Tooltip("p99_ms:Q", title="p99 ms", format=".3~r"),
    alt.Tooltip("throughput:Q", title="images/s", format=",.3~r"),
]
_LOSS_TIP = [
    alt.Tooltip("label:N", title="variant"),
    alt.Tooltip("verdict:N"),
    alt.Tooltip("points:Q", title="points lost", format="+.2f"),
    alt.Tooltip("upper:Q", title="at most", format=".2f"),
    alt.Tooltip("limit:Q", title="limit", format=".2f"),
    alt.Tooltip("data:N", title="on"),
]

_CHANGE_TIP = [
    alt.Tooltip("label:N", title="variant"),
    alt.Tooltip("outcome:N"),
    alt.Tooltip("ratio:Q", title="speed × before", format=".3~r"),
    alt.Tooltip("low:Q", title="from", format=".3~r"),
    alt.Tooltip("high:Q", title="to", format=".3~r"),
]


def _lines(rows: Rows) -> alt.Chart:
    """A line of the picture for each row, named at its left: no legend has to be matched, and nothing can overlap."""
    axis = alt.Axis(ticks=False, domain=False, grid=True, labelLimit=190, labelFontSize=13, labelOverlap=False)
    order = [row["label"] for row in rows]
    return alt.Chart(alt.InlineData(values=list(rows))).encode(y=alt.Y("label:N", title=None, sort=order, axis=axis))


def _marks(base: alt.Chart, x: alt.X, names: Groups, rows: Rows, tip: list[alt.Tooltip]) -> tuple[alt.Chart, alt.Chart]:
    """Filled where it counts, hollow where it does not."""
    points = base.encode(x=x, color=colour_of(names, rows, legend=False), shape=shape_of(names), tooltip=tip)
    return (
        points.transform_filter("datum.counts").mark_point(size=130, filled=True, opacity=1),
        points.transform_filter("!datum.counts").mark_point(size=130, strokeWidth=2, fill="transparent"),
    )


def bars(rows: Rows, *, names: Groups, title: str) -> Chart:
    """One number for each name, from zero. Rows: label, value, told."""
    base = _lines(rows)
    top = max(row["value"] for row in rows)
    x = alt.X("value:Q", title=title, scale=alt.Scale(domain=[0, top * 1.2], nice=False), axis=alt.Axis(tickCount=5))
    tip = [alt.Tooltip("label:N", title="variant"), alt.Tooltip("told:N", title=title)]
    drawn = base.mark_bar(size=14).encode(x=x, color=colour_of(names, rows, legend=False), tooltip=tip)
    words = base.mark_text(align="left", dx=6).encode(x=x, text="told:N")
    return in_dark(alt.layer(drawn, words).properties(width="container", height=26 * len(rows)))


def distances(rows: Rows, *, names: Groups) -> Chart:
    """Relative L2 of every output of every variant, a row each.

    Rows: label, line (what is compared, in two lines), relative_l2 (above 0), told, verdict.
    """
    order = [row["line"] for row in rows]
    # The variant in one line, the images below it.
    axis = alt.Axis(labelLimit=190, grid=True, ticks=False, labelOverlap=False, labelExpr="split(datum.label, ' | ')")
    x = alt.X(
        "relative_l2:Q",
        title="relative L2 (log scale)",
        scale=log_scale(rows, "relative_l2", least=100, wider=1.15),
        axis=alt.Axis(format=".0e", tickCount=5, labelOverlap=True),
    )
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(
        x=x, y=alt.Y("line:N", title=None, sort=order, axis=axis)
    )
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("line:N", title="output"),
        alt.Tooltip("told:N", title="relative L2"),
        alt.Tooltip("verdict:N"),
    ]
    points = base.mark_point(size=110, filled=True, opacity=1).encode(
        color=colour_of(names, rows, legend=False), shape=shape_of(names), tooltip=tip
    )
    words = base.mark_text(align="left", dx=10).encode(text="told:N")
    return in_dark(alt.layer(points, words).properties(width="container", height=36 * len(rows)))
