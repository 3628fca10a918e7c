"""Draw benchmarks/results/fit_digits.json as docs/images/fit.svg: ``python docs/images/make_fit_picture.py [RESULT]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from vggdeploy.report.page import FONT, theme

HERE = Path(__file__).parent.resolve()
RESULT = HERE.parent.parent / "benchmarks" / "results" / "fit_digits.json"


def levels(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Each row with how many lines its name stands above its point: none lies over the name of another of like accuracy."""
    placed: list[tuple[float, float, int]] = []
    for row in sorted(rows, key=lambda row: row["ms"], reverse=True):
        near = [level for ms, rate, level in placed if ms < 1.9 * row["ms"] and abs(rate - row["rate"]) < 0.003]
        level = max(near, default=-1) + 1
        placed.append((row["ms"], row["rate"], level))
        yield row, level


def main(result: Path) -> None:
    record = json.loads(result.read_text(encoding="utf-8"))
    measured = record["measured"]
    rows = [
        {"name": name, "ours": name == "vggdeploy fit", "ms": row["median_ms"], **row["test"]}
        for name, row in measured["rows"].items()
    ]
    fastest, slowest = (pick(row["ms"] for row in rows) for pick in (min, max))
    lowest = min(row["lower"] for row in rows)
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X(
        "ms:Q",
        title="ms an image, one after the other (log scale)",
        scale=alt.Scale(type="log", domain=[fastest / 1.3, slowest * 2.5], nice=False),
        axis=alt.Axis(format="~g", values=[n * 10.0**e for e in (-2, -1, 0, 1) for n in (1, 2, 5)]),
    )
    # Room above for the names of networks that are all right.
    scale = alt.Scale(domain=[lowest - 0.05 * (1 - lowest), 1 + 0.4 * (1 - lowest)], nice=False)
    marks = [1 - part * (1 - lowest) for part in (0, 0.25, 0.5, 0.75, 1)]
    y = alt.Y(
        "rate:Q", title="accuracy on test images, 95% interval", scale=scale, axis=alt.Axis(format=".1%", values=marks)
    )
    colour = alt.Color("ours:N", legend=None)
    ranges = base.mark_rule(opacity=0.5).encode(x=x, y=alt.Y("lower:Q", scale=scale), y2="upper:Q", color=colour)
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, y=y, color=colour, shape=alt.Shape("ours:N", legend=None)
    )
    texts = alt.layer(
        *(
            alt.Chart(alt.Data(values=[row]))
            .mark_text(align="left", dx=6, dy=-10 - 14 * level)
            .encode(x=x, y=y, text="name:N")
            for row, level in levels(rows)
        )
    )
    title = (
        f"{measured['fit']['source']}: everybody has {measured['budget']} and the same labels; "
        f"{record['machine']['cpu']}, {measured['threads']} threads"
    )
    chart = (ranges + points + texts).properties(width=620, height=320, title=title)
    spec = chart.to_dict() | {"config": theme(dark=False) | {"font": FONT}}
    (HERE / "fit.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else RESULT)
