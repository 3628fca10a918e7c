"""A chart in one HTML file that opens offline, in the light or dark of its reader, and asks the network for nothing.

Altair's own ``inline`` template puts the chart's JSON into a script as it is: a class named ``</script>…`` would end
that script. Here names reach the page as text only, and the page's policy lets no other script run and no request out.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Okabe & Ito 2008, "Color Universal Design": told apart with any colour vision, three to one or more on their ground.
_LIGHT = ("#0072b2", "#d55e00", "#007f5c", "#a6558a")
_DARK = ("#56b4e9", "#e69f00", "#2fc49a", "#cc79a7")
# ColorBrewer's Blues: one hue from light to dark reads the same with any colour vision, and in grey.
_BLUES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
_BLUES_ON_DARK = ("#1d2430", "#0b3360", "#08519c", "#2171b5", "#4292c6", "#6baed6", "#9ecae1", "#c6dbef", "#f7fbff")
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif"
DARK = "dark"  # the chart's parameter that says so, where a chart has to know

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1f2328; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181d; --ink: #e6e8eb; --line: #3a3f47; } }
body { background: var(--ground); color: var(--ink); font: 16px/1.5 FONT; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 0.25rem 0 1rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
#chart svg.marks { max-width: 100%; min-width: 20rem; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.2rem 0.75rem 0.2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: 1rem 0 0.5rem; }
""".replace("FONT", FONT)

# ast: expressions are interpreted, not compiled, so the policy need not allow eval.
_DRAW = """
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const spec = read("spec"), themes = read("themes"), place = document.getElementById("chart");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let shown = null;
async function draw() {
  if (shown) shown.finalize();
  for (const param of spec.params || []) if (param.name === "dark") param.value = dark.matches;
  const theme = dark.matches ? "dark" : "light";
  shown = await vegaEmbed(place, spec, {
    mode: "vega-lite", renderer: "svg", ast: true, config: themes[theme], tooltip: { theme },
    actions: { export: true, source: false, compiled: false, editor: false },
  });
}
const failed = (error) => { place.textContent = "The chart cannot be drawn: " + error.message; };
dark.addEventListener("change", () => draw().catch(failed));
draw().catch(failed);
"""


@dataclass(frozen=True)
class Grid:
    """The numbers of a picture, as a table: a picture alone tells nothing to who cannot see it."""

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


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
        "range": {"category": list(_DARK if dark else _LIGHT), "heatmap": list(_BLUES_ON_DARK if dark else _BLUES)},
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
    library = library.replace("</script", "<\\/script")
    scripts = " ".join(f"'sha256-{_sha256(script)}'" for script in (library, _DRAW))
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in grid.rows)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>{escape(text)}</p>
<div class="scroll"><div id="chart" role="group" aria-label="{escape(text)}"></div></div>
<details>
<summary>{escape(grid.caption)}</summary>
<div class="scroll" tabindex="0" role="group" aria-label="{escape(grid.caption)}">
<table><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
</details>
</main>
<script type="application/json" id="spec">{_json(spec)}</script>
<script type="application/json" id="themes">{_json({"light": theme(dark=False), "dark": theme(dark=True)})}</script>
<script>{library}</script>
<script>{_DRAW}</script>
</body>
</html>
"""


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
