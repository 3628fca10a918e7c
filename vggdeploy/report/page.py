"""Charts and tables in one HTML file that opens offline, in the light or dark of its reader, and asks the network for nothing.

Altair's own ``inline`` template puts the chart's JSON into a script as it is: a class named ``</script>…`` would end
that script. Here names reach the page as text only, and the page's policy lets no other script run and no request out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from vggdeploy.report.looks import PALETTE, mark_css
from vggdeploy.report.tables import Cell, Column, Grid

# ColorBrewer's Blues: one hue from light to dark reads the same with any colour vision, and in grey.
_BLUES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
_BLUES_ON_DARK = ("#1d2430", "#0b3360", "#08519c", "#2171b5", "#4292c6", "#6baed6", "#9ecae1", "#c6dbef", "#f7fbff")
_PLAIN = re.compile(r"[-+−]?[\d,]+(?:\.(\d+))?")
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif"
DARK = "dark"  # the chart's parameter that says so, where a chart has to know


# A shape for each verdict, so that no colour has to be seen: a disc with a tick, an octagon with a cross, a triangle
# with a question mark, a broken ring.
_SHAPES = {
    "pass": '<circle cx="12" cy="12" r="11" fill="currentColor"/><path d="M6.5 12.5l3.8 3.8 7.2-8" stroke="var(--ground)"/>',
    "fail": '<path d="M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4z" fill="currentColor"/>'
    '<path d="M8 8l8 8M16 8l-8 8" stroke="var(--ground)"/>',
    "inconclusive": '<path d="M12 1.5L23.5 22H.5z" fill="currentColor"/>'
    '<path d="M9.4 11.2c.2-3.6 5.4-3.3 5.1-.2-.2 1.6-2.5 1.8-2.5 3.8M12 18.2v.6" stroke="var(--ground)"/>',
    "unproven": '<circle cx="12" cy="12" r="10" stroke="currentColor" stroke-dasharray="4.5 3.350"/>'
    '<path d="M8 12h8" stroke="currentColor"/>',
}


def light_html(verdict: str, *, small: bool = False) -> str:
    """The verdict's shape; the word beside it says the same to a screen reader."""
    size = "light small" if small else "light"
    return (
        f'<svg class="{size} {escape(verdict)}" viewBox="0 0 24 24" fill="none" stroke-width="2.5" stroke-linecap="round" '
        f'aria-hidden="true">{_SHAPES.get(verdict, "")}</svg>'
    )


def theme(*, dark: bool) -> dict[str, Any]:
    """Vega-Lite's configuration for a light or dark ground."""
    ink, line = ("#e6e8eb", "#3a3f47") if dark else ("#1f2328", "#d0d7de")
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": line, "domainColor": ink, "tickColor": ink}
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": "#16181d" if dark else "#ffffff",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**axis, "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"},
        "legend": {**text, "symbolSize": 120, "symbolStrokeWidth": 0},
        "title": {"color": ink, "subtitleColor": ink, "fontSize": 15, "anchor": "start", "offset": 14},
        "text": {"color": ink},
        "range": {
            "category": [look.dark if dark else look.light for look in PALETTE],
            "heatmap": list(_BLUES_ON_DARK if dark else _BLUES),
        },
    }


def chart_page(spec: dict[str, Any], *, title: str, text: str, grid: Grid, library: str) -> str:
    """The page of one chart.

    Args:
        spec: the chart as Vega-Lite, without a configuration of its own.
        title: the page's, plain text.
        text: a sentence below it, plain text; it also describes the chart to a screen reader.
        grid: the numbers in the picture.
        library: Vega, Vega-Lite and Vega-Embed as one script.
    """
    body = f"""<main>
<h1>{escape(title)}</h1>
<p>{escape(text)}</p>
{chart_html(0, spec, text)}
{grid_html(grid, folded=True)}
</main>"""
    return whole_page(body, [spec], title=title, library=library)


def whole_page(body: str, specs: Sequence[dict[str, Any]], *, title: str, library: str) -> str:
    """The document around ``body``, which is HTML with a `chart_html` for each of ``specs``; the rest is plain text."""
    library = library.replace("</script", "<\\/script")
    marks = f"{mark_css(dark=False)} @media screen and (prefers-color-scheme: dark) {{ {mark_css(dark=True)} }}"
    style, draw = f"{asset('page.css')}\n{marks}", asset("page.js")
    scripts = " ".join(f"'sha256-{_sha256(script)}'" for script in (library, draw))
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="specs">{_json(list(specs))}</script>
<script type="application/json" id="themes">{_json({"light": theme(dark=False), "dark": theme(dark=True)})}</script>
<script>{library}</script>
<script>{draw}</script>
</body>
</html>
"""


def chart_html(index: int, spec: dict[str, Any], text: str) -> str:
    """The place where the page's script draws the chart of that index; ``text`` describes it."""
    kind = "fluid" if "width" in spec and spec["width"] == "container" else "fixed"
    return f'<div class="chart {kind}" data-chart="{index}" role="group" aria-label="{escape(text)}"></div>'


def grid_html(grid: Grid, *, folded: bool = False) -> str:
    """A table whose columns sort by a press of their button; ``folded`` into its caption until it is opened."""
    kinds = ["number" if any(c.value is not None for c in cells) else "text" for cells in zip(*grid.rows, strict=True)]
    kinds = kinds or ["text"] * len(grid.columns)
    head = "".join(
        f'<th scope="col" data-kind="{kind}"{_class(column, head=True)}>'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column, kind in zip(grid.columns, kinds, strict=True)
    )
    decimals = [max((_decimals(row[i].text) or 0 for row in grid.rows), default=0) for i in range(len(grid.columns))]
    body = "\n".join(f"<tr>{''.join(map(_cell, row, grid.columns, kinds, decimals))}</tr>" for row in grid.rows)
    table = (
        '<div class="table"><p class="hint" aria-hidden="true">more columns to the right: scroll →</p>\n'
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(grid.caption)}">\n'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></div>"
    )
    return f"<details>\n<summary>{escape(grid.caption)}</summary>\n{table}\n</details>" if folded else table


def _cell(cell: Cell, column: Column, kind: str, decimals: int) -> str:
    light = light_html(cell.light, small=True) if cell.light else ""
    value = f' data-value="{"" if cell.value is None else cell.value!r}"' if kind == "number" else ""
    return (
        f"<td{_class(column, wraps=' ' in cell.text)}{value}>{light}{escape(cell.text)}{_pad(cell.text, decimals)}</td>"
    )


def _decimals(text: str) -> int | None:
    """Digits behind the point of a plain number; None for anything else."""
    found = _PLAIN.fullmatch(text)
    return len(found[1] or "") if found else None


def _pad(text: str, decimals: int) -> str:
    """What a plain number lacks beside the longest one of its column, unseen, so that their points stand in one line."""
    own = _decimals(text)
    if own is None or own >= decimals:
        return ""
    zeros = "0" * (decimals - own)
    return f'<span class="pad" aria-hidden="true">{zeros if own else "." + zeros}</span>'


def _class(column: Column, *, wraps: bool = False, head: bool = False) -> str:
    """A cell of several numbers ``wraps``: it may break its line."""
    names = ["text"] if column.left else ["wrap"] if wraps else []
    names += ["long"] if column.long and not head else []
    return f' class="{" ".join(names)}"' if names else ""


@functools.cache
def asset(name: str) -> str:
    """A file that lies beside this module."""
    return (files("vggdeploy.report") / name).read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for: no point is drawn there."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
