"""The charts of a report. Each takes plain rows and fills the width it is given; numbers are in the tables beside them."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from vggdeploy.report.axes import (
    INK,
    MARK,
    RED,
    Groups,
    Rows,
    colour_of,
    dash_of,
    in_dark,
    log_scale,
    shape_of,
    with_marks,
)
from vggdeploy.report.page import DARK
from vggdeploy.report.plots import Chart

_HEIGHT = 300
_STEP = 18


def front(rows: Rows, *, names: Groups, measured: bool, limit: float) -> Chart:
    """A search's candidates: accuracy lost against speed (or against cost, where nothing was measured), and the limit.

    Rows: label, backend, speed, points, worst, best, megabytes, holds, chosen. What holds the goal is filled, and the
    winner is named.
    """
    title = "times as fast as the original (log scale)" if measured else "cost, million operations (log scale)"
    base = alt.Chart(alt.InlineData(values=list(rows)))
    x = alt.X("speed:Q", title=title, scale=log_scale(rows, "speed"))
    y = alt.Y("points:Q", title="accuracy, points beside the original", scale=alt.Scale(zero=False))
    colour = colour_of(names, rows, legend=False)
    interval = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y="worst:Q", y2="best:Q", color=colour)
    points = base.encode(
        x=x,
        y=y,
        color=colour,
        shape=shape_of(names),
        tooltip=[
            alt.Tooltip("label:N", title="candidate"),
            alt.Tooltip("speed:Q", title=title.partition(" (")[0], format=",.3~r"),
            alt.Tooltip("points:Q", title="accuracy, points", format="+.2f"),
            alt.Tooltip("worst:Q", title="at worst", format="+.2f"),
            alt.Tooltip("megabytes:Q", title="MB", format=",.3~r"),
            alt.Tooltip("holds:N", title="goal"),
        ],
    )
    good = "datum.holds === 'holds the goal'"
    word = (
        base.transform_filter("datum.chosen").mark_text(align="right", dx=-10, dy=-8).encode(x=x, y=y, text="label:N")
    )
    layers = [
        *_limits([{"points": limit, "text": f"limit: {limit:g} points, at worst"}], "points", above=True),
        interval,
        points.transform_filter(good).mark_point(size=120, filled=True, opacity=1),
        points.transform_filter(f"!({good})").mark_point(size=120, strokeWidth=2),
        word,
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_HEIGHT))


def frontier(rows: Rows) -> Chart:
    """Every network of a fit: accuracy on validation images against the time of one image, and the line of those that no other
    beats. Rows: label, ms, accuracy, network, kind, front. The winner is named."""
    base = alt.Chart(alt.InlineData(values=list(rows)))
    x = alt.X("ms:Q", title="ms an image (log scale)", scale=log_scale(rows, "ms"))
    y = alt.Y("accuracy:Q", title="accuracy, validation", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    points = base.encode(
        x=x,
        y=y,
        tooltip=[
            alt.Tooltip("label:N", title="network"),
            alt.Tooltip("network:N", title="blocks"),
            alt.Tooltip("ms:Q", title="ms", format=",.3~r"),
            alt.Tooltip("accuracy:Q", format=".2%"),
            alt.Tooltip("kind:N", title="it is"),
        ],
    )
    colour = alt.value(alt.ExprRef(f"{DARK} ? '#56b4e9' : '#0072b2'"))
    best = base.transform_filter("datum.kind === 'winner'")
    layers = [
        base.transform_filter("datum.front").mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        points.transform_filter("!datum.front").mark_point(size=70, strokeWidth=2, opacity=0.7).encode(color=colour),
        points.transform_filter("datum.front").mark_point(size=90, filled=True, opacity=1).encode(color=colour),
        best.mark_point(size=300, shape="diamond", strokeWidth=3, color=alt.ExprRef(RED)).encode(x=x, y=y),
        best.mark_text(align="left", dx=16, dy=4, color=alt.ExprRef(INK)).encode(x=x, y=y, text="label:N"),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_HEIGHT))


def beside(rows: Rows) -> Chart:
    """What a fit made and what others did: accuracy on test images, with its interval, against the time of one image. Rows:
    label, ms, accuracy, lower, upper, ours."""
    base = alt.Chart(alt.InlineData(values=list(rows)))
    x = alt.X("ms:Q", title="ms an image (log scale)", scale=log_scale(rows, "ms"))
    y = alt.Y("accuracy:Q", title="accuracy, test", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    points = base.encode(
        x=x,
        y=y,
        tooltip=[
            alt.Tooltip("label:N", title="made by"),
            alt.Tooltip("ms:Q", title="ms", format=",.3~r"),
            alt.Tooltip("accuracy:Q", format=".2%"),
            alt.Tooltip("lower:Q", title="at least", format=".2%"),
            alt.Tooltip("upper:Q", title="at most", format=".2%"),
        ],
    )
    colour = alt.value(alt.ExprRef(f"{DARK} ? '#56b4e9' : '#0072b2'"))
    mine, theirs = (base.transform_filter(f"{no}datum.ours") for no in ("", "!"))
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x, y=alt.Y("lower:Q"), y2="upper:Q", color=colour),
        points.transform_filter("!datum.ours").mark_point(size=90, filled=True, opacity=1).encode(color=colour),
        points.transform_filter("datum.ours").mark_point(
            size=300, shape="diamond", strokeWidth=3, color=alt.ExprRef(RED)
        ),
        theirs.mark_text(align="left", dx=8, dy=-6, color=alt.ExprRef(INK)).encode(x=x, y=y, text="label:N"),
        mine.mark_text(align="left", dx=16, dy=4, fontWeight="bold", color=alt.ExprRef(INK)).encode(
            x=x, y=y, text="label:N"
        ),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_HEIGHT))


def tails(rows: Rows, *, names: Groups) -> Chart:
    """Latency over the percentile on an axis of nines: each step to the right is ten times as rare.

    Rows: label, ms, nines (-log10 of the share of calls that took longer), told (the percentile in words).
    """
    last = max((row["nines"] for row in rows), default=2)
    ticks = [0.0, math.log10(2), 1.0, 2.0, *(float(n) for n in range(3, math.ceil(last) + 1))]
    words = " : ".join(f"abs(datum.value - {tick:.4f}) < 0.01 ? '{_percentile(tick)}'" for tick in ticks)
    x = alt.X(
        "nines:Q",
        title="percentile of the calls",
        axis=alt.Axis(values=ticks, labelExpr=f"{words} : ''", grid=True, labelOverlap="greedy"),
        scale=alt.Scale(domain=[0, max(2.1, last)], nice=False),
    )
    y = alt.Y("ms:Q", title="latency, ms (log scale)", scale=log_scale(rows, "ms"))
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(x=x, y=y, color=colour_of(names, rows))
    line = base.mark_line(strokeWidth=2).encode(strokeDash=dash_of(names, rows))
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("told:N", title="of the calls"),
        alt.Tooltip("ms:Q", title="took at most, ms", format=".3~r"),
    ]
    points = base.mark_circle(size=70, opacity=0).encode(tooltip=tip)
    return in_dark(alt.layer(line, points).properties(width="container", height=_HEIGHT))


def _percentile(nines: float) -> str:
    return "min" if nines == 0 else f"p{100 * (1 - 10**-nines):.6g}"


def throughput(rows: Rows, *, names: Groups) -> Chart:
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


def server(rows: Rows, *, names: Groups) -> Chart:
    """p99 over the rate of queries, with the bound that was asked for.

    Rows: label, batch, qps, p99_ms, bound_ms, run, kind ("valid", "invalid" or "confirmed"), told. Filled points are valid
    and hollow ones are not; a ring and its rate mark what was confirmed.
    """
    top = max(row["qps"] for row in rows)
    x = alt.X(
        "qps:Q",
        title="queries a second (Poisson arrivals)",
        scale=alt.Scale(domain=[0, top * 1.08], nice=False),
        axis=alt.Axis(tickCount=8, labelOverlap=True),
    )
    y = alt.Y("p99_ms:Q", title="p99 latency, ms (log scale)", scale=log_scale(rows, "p99_ms", "bound_ms"))
    tip = [
        alt.Tooltip("label:N", title="variant"),
        alt.Tooltip("qps:Q", title="queries/s", format=",.3~r"),
        alt.Tooltip("p99_ms:Q", title="p99 ms", format=".3~r"),
        alt.Tooltip("batch:Q", title="batches up to"),
        alt.Tooltip("bound_ms:Q", title="bound ms", format=".3~r"),
        alt.Tooltip("kind:N", title="run"),
    ]
    bounds = sorted({row["bound_ms"] for row in rows if row["bound_ms"] is not None})
    limits = _limits([{"bound_ms": b, "text": f"bound {b:g} ms"} for b in bounds], "bound_ms", above=True)
    base = alt.Chart(alt.InlineData(values=with_marks(rows, names))).encode(x=x, y=y)
    lines, points = _lines(base, names, rows).encode(detail="batch:N"), _points(base, names, rows, tip)
    confirmed = base.transform_filter("datum.kind === 'confirmed'")
    layers = [
        *limits,
        lines,
        points.transform_filter("datum.kind === 'invalid'").mark_point(size=90, strokeWidth=2, shape=MARK),
        points.transform_filter("datum.kind !== 'invalid'").mark_point(size=90, filled=True, opacity=1, shape=MARK),
        confirmed.mark_point(size=420, strokeWidth=2, shape="circle", color=alt.ExprRef(INK)),
        confirmed.mark_text(align="right", dx=-16, dy=-14, fontWeight="bold").encode(text="told:N"),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_HEIGHT))


def roof(rows: Rows, *, names: Groups, roofs: Rows) -> Chart:
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
    words = base.mark_text(align="left", dx=4, color=alt.ExprRef(RED), **place).encode(x=alt.value(0), text="text:N")
    return base.mark_rule(strokeDash=[6, 4], color=alt.ExprRef(RED)), words


def _lines(base: alt.Chart, names: Groups, rows: Rows) -> alt.Chart:
    """A line for each variant; the legend is of the lines alone, since a backend's variants share their mark."""
    dash = dash_of(names, rows)
    lines: alt.Chart = base.mark_line(strokeWidth=2).encode(color=colour_of(names, rows), strokeDash=dash)
    return lines


def _points(base: alt.Chart, names: Groups, rows: Rows, tip: list[alt.Tooltip]) -> alt.Chart:
    points: alt.Chart = base.encode(color=colour_of(names, rows), tooltip=tip)
    return points


def _joined(rows: Rows, names: Groups, x: alt.X, y: alt.Y, tip: list[alt.Tooltip], *below: alt.Chart) -> Chart:
    """The points of each variant, and a line that joins them; what is invalid is hollow."""
    base = alt.Chart(alt.InlineData(values=with_marks(rows, names))).encode(x=x, y=y)
    lines, points = _lines(base, names, rows), _points(base, names, rows, tip)
    layers = [
        *below,
        lines,
        points.transform_filter("datum.run !== 'invalid'").mark_point(size=90, filled=True, opacity=1, shape=MARK),
        points.transform_filter("datum.run === 'invalid'").mark_point(size=90, strokeWidth=2, shape=MARK),
    ]
    return in_dark(alt.layer(*layers).properties(width="container", height=_HEIGHT))


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
    scale = log_scale(rows, "error")
    low = scale.domain[0]
    x = alt.X(
        "error:Q",
        title="relative L2 (log scale)",
        scale=scale,
        axis=alt.Axis(format=".0e", tickCount=5, labelOverlap=True),
    )
    colour = alt.ExprRef(f"datum.marked ? {RED} : ({DARK} ? '#56b4e9' : '#0072b2')")
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
                color=alt.ExprRef(RED),
            )
            .encode(x=x, text=alt.value(word))
        )
    return in_dark(alt.layer(*layers).properties(width="container"))
