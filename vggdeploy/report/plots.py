"""The charts, as Altair makes them, and the files that they are written to: PNG and self-contained HTML."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from vggdeploy.errors import UsageError, one_line
from vggdeploy.report import tables
from vggdeploy.report.grids import distinct
from vggdeploy.report.history import Point
from vggdeploy.report.page import DARK, chart_page, theme
from vggdeploy.report.tables import Grid
from vggdeploy.system.files import atomic_write

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart

SPLITS = ("train", "validation", "test")
MATRIX_CLASSES = 100  # with more, the cells of a confusion matrix are smaller than anyone can point at
_COUNTED_CLASSES = 20  # up to here a cell has room for its count
# The share from which a cell's colour wants the other ink, on a light and on a dark ground.
MIDDLE = {False: 0.47, True: 0.19}
INKS = ("#ffffff", "#16181d")
_FRAME = "#8c959f"  # seen on white and on black
_PNG_SCALE = 2.0
_PNG_WIDTH = 560


def training_curves(history: Sequence[Point], *, title: str = "") -> Chart:
    """Loss and accuracy over the epochs of a run, a line for each split."""
    splits = [split for split in SPLITS if any(p.split == split for p in history)]
    loss = _curve(history, splits, "loss", "loss (cross-entropy, nats)", ".4f")
    accuracy = _curve(history, splits, "accuracy", "accuracy", ".2%")
    chart: Chart = alt.vconcat(loss, accuracy, spacing=16)
    return chart.properties(title=one_line(title)) if title else chart


def _curve(history: Sequence[Point], splits: Sequence[str], name: str, title: str, number: str) -> alt.Chart:
    rows: list[dict[str, Any]] = [
        {"epoch": p.epoch, "step": "–" if p.step is None else f"{p.step:,}", "split": p.split, name: getattr(p, name)}
        for p in history
        if getattr(p, name) is not None
    ]
    key = alt.Legend(orient="top", title=None)  # both panels ask for the same one, and it is shown once
    flat = alt.Scale(zero=False)
    # Colour, dash and shape all say the same: the picture survives a grey printer.
    panel: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows), width=560, height=210)
        .mark_line(strokeWidth=2, point={"filled": True, "size": 30})
        .encode(
            x=alt.X(
                "epoch:Q",
                title="epoch" if name == "accuracy" else None,
                axis=alt.Axis(grid=False, tickMinStep=1),
                scale=alt.Scale(domainMin=0, nice=False),  # the run began at 0, before its first point
            ),
            y=alt.Y(f"{name}:Q", title=title, axis=alt.Axis(format="%" if name == "accuracy" else ""), scale=flat),
            color=alt.Color("split:N", scale=alt.Scale(domain=splits), legend=key),
            strokeDash=alt.StrokeDash("split:N", scale=alt.Scale(domain=splits), legend=key),
            shape=alt.Shape("split:N", scale=alt.Scale(domain=splits), legend=key),
            tooltip=[
                alt.Tooltip("split:N"),
                alt.Tooltip("epoch:Q", format=".2f"),
                alt.Tooltip("step:N"),
                alt.Tooltip(f"{name}:Q", format=number),
            ],
        )
    )
    return panel


def curves_grid(history: Sequence[Point]) -> Grid:
    """The numbers of `training_curves`."""
    return tables.grid(tables.HISTORY, [(point,) for point in history], "The numbers")


def confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]], *, title: str = "") -> Chart:
    """How many images of each class (rows) were taken for which (columns); the colour is the share of the row.

    Raises:
        UsageError: more than `MATRIX_CLASSES` classes.
    """
    classes = len(labels)
    if classes > MATRIX_CLASSES:
        raise UsageError(
            f"{classes} classes do not fit into a confusion matrix",
            f"the picture holds {MATRIX_CLASSES}; show the confused pairs",
        )
    names = distinct(labels)
    rows = [
        {"class": names[i], "predicted": names[j], "images": count, "share": count / sum(row)}
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count
    ]
    step = 36 if classes <= _COUNTED_CLASSES else 18 if classes <= 50 else 11
    dark = alt.param(name=DARK, value=False)
    axis: dict[str, Any] = {"grid": False, "ticks": False, "domain": False, "labelLimit": 180, "labelOverlap": False}
    axis["labelFontSize"] = 12 if step > 11 else 9
    angle = 0 if max(map(len, names)) * 8 <= step else -45
    base = alt.Chart(alt.InlineData(values=rows), width=alt.Step(step), height=alt.Step(step)).encode(
        x=alt.X(
            "predicted:O",
            title="predicted class",
            scale=alt.Scale(domain=names),
            axis=alt.Axis(**axis, labelAngle=angle),
        ),
        y=alt.Y("class:O", title="true class", scale=alt.Scale(domain=names), axis=alt.Axis(**axis)),
        tooltip=[
            alt.Tooltip("class:N", title="true class"),
            alt.Tooltip("predicted:N", title="predicted class"),
            alt.Tooltip("images:Q", format=","),
            alt.Tooltip("share:Q", title="share of the class", format=".1%"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "share:Q",
            title="share of the class",
            # A square root: one image in a hundred taken for another is to be seen too.
            scale=alt.Scale(domain=[0, 1], type="sqrt"),
            legend=alt.Legend(format="%", gradientLength=min(200, step * classes), direction="vertical"),
        )
    )
    layers: list[alt.Chart] = [cells]
    if classes <= _COUNTED_CLASSES:
        middle = f"({DARK} ? {MIDDLE[True]} : {MIDDLE[False]})"
        ink = f"(datum.share > {middle}) !== {DARK} ? '{INKS[0]}' : '{INKS[1]}'"
        longest = max((len(str(row["images"])) for row in rows), default=1)
        layers.append(
            base.mark_text(fontSize=12 if longest <= 4 else 10, color=alt.ExprRef(ink)).encode(text="images:Q")
        )
    chart = alt.layer(*layers).add_params(dark).properties(view=alt.ViewBackground(stroke=_FRAME))
    return chart.properties(title=one_line(title)) if title else chart


def confused_pairs(pairs: Sequence[tuple[str, str, int]], *, title: str = "") -> Chart:
    """The most frequent confusions as bars: (true class, predicted class, images), for more classes than a matrix holds."""
    names = distinct([f"{true} → {predicted}" for true, predicted, _ in pairs])
    rows = [{"confusion": name, "images": count} for name, (_, _, count) in zip(names, pairs, strict=True)]
    chart: Chart = (
        alt.Chart(alt.InlineData(values=rows), width=420, height=alt.Step(22))
        .mark_bar()
        .encode(
            x=alt.X("images:Q", title="images", axis=alt.Axis(tickMinStep=1, format=",d")),
            y=alt.Y("confusion:N", title="true class → predicted class", sort=None, axis=alt.Axis(labelLimit=320)),
            color=alt.value(alt.ExprRef(f"{DARK} ? '#56b4e9' : '#0072b2'")),
            tooltip=[alt.Tooltip("confusion:N", title="true → predicted"), alt.Tooltip("images:Q", format=",")],
        )
        .add_params(alt.param(name=DARK, value=False))
    )
    return chart.properties(title=one_line(title)) if title else chart


_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, 900 kB; putting it together takes a second."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)


def vega_spec(chart: Chart) -> dict[str, Any]:
    """A chart as Vega-Lite, without Altair's default size: the themes set all that is to be set."""
    spec: dict[str, Any] = chart.to_dict()
    return {key: value for key, value in spec.items() if key not in ("config", "$schema")}


def save_chart(chart: Chart, path: Path, *, title: str, text: str = "", grid: Grid | None = None) -> None:
    """Write a chart as ``.png`` (on white, drawn twice as fine) or as a self-contained ``.html``; whole, or not at all.

    Args:
        title, text: of the HTML page; plain text.
        grid: the numbers in the picture, for the page.

    Raises:
        UsageError: another suffix.
    """
    spec = vega_spec(chart)
    suffix = path.suffix.lower()
    if suffix == ".png":
        if spec.get("width") == "container":
            spec["width"] = _PNG_WIDTH  # a file has no container
        data = vl_convert.vegalite_to_png(
            spec | {"config": theme(dark=False), "padding": 16}, vl_version=_VEGA_LITE, scale=_PNG_SCALE
        )
    elif suffix == ".html":
        numbers = grid or Grid("The numbers", (), ())
        data = chart_page(spec, title=one_line(title), text=one_line(text), grid=numbers, library=library()).encode()
    else:
        raise UsageError(f"{path} is neither .png nor .html", "give a name that ends in one of them")
    atomic_write(path, data)
