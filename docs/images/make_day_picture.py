"""Draw benchmarks/results/day_in_production.json as docs/images/day.svg: ``python docs/images/make_day_picture.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from vggdeploy.report.page import FONT, theme

HERE = Path(__file__).parent.resolve()
RESULT = HERE.parent.parent / "benchmarks" / "results" / "day_in_production.json"
LIMIT = 1.5  # of the quiet 99th percentile
SIZE = {"width": 520, "height": 150}


def spread(values: list[float], minutes: float, name: str) -> list[dict[str, float]]:
    """Each value at the middle of its share of the time."""
    return [{"minute": (place + 0.5) * minutes / len(values), name: value} for place, value in enumerate(values)]


def line(rows: list[dict[str, float]], name: str, title: str, marks: list[dict[str, Any]]) -> alt.LayerChart:
    minute = alt.X("minute:Q", title="minute")
    curve = alt.Chart(alt.Data(values=rows)).mark_line().encode(x=minute, y=alt.Y(f"{name}:Q", title=title))
    rules = alt.Chart(alt.Data(values=marks)).mark_rule(strokeDash=[4, 3]).encode(y="at:Q")
    names = (
        alt.Chart(alt.Data(values=marks))
        .mark_text(align="left", baseline="middle", dx=6)
        .encode(x=alt.value(SIZE["width"]), y="at:Q", text="text:N")
    )
    return (curve + rules + names).properties(**SIZE)


def main() -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    day = record["measured"]
    quiet = day["quiet_p99_ms"]
    marks = [
        {"at": quiet, "text": f"quiet: {quiet:.3g} ms"},
        {"at": LIMIT * quiet, "text": f"limit: {LIMIT:g} × quiet"},
    ]
    unsent = [f"{day['unsent']:,} were not sent: all connections of the caller waited"] if day["unsent"] else []
    latency = line(spread(day["p99_ms_by_window"], day["minutes"], "p99"), "p99", "99th percentile, ms", marks)
    memory = line(spread(day["memory_mib"], day["minutes"], "mib"), "mib", "memory, MiB", [])
    chart = (latency & memory).properties(
        title=[
            f"{day['requests']:,} requests at {day['rate_per_s']:.0f}/s with {day['reloads']} reloads: "
            f"{day['wrong']} wrong, {day['lost']} lost",
            *unsent,
        ]
    )
    spec = chart.to_dict() | {"config": theme(dark=False) | {"font": FONT}}
    (HERE / "day.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


if __name__ == "__main__":
    main()
