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
SIZE = {"width": 520, "height": 150}
NAMES = ("a server without all that", "reloads, hostile requests, shadow")


def spread(values: list[float], minutes: float, name: str) -> list[dict[str, Any]]:
    """Each value at the middle of its share of the time."""
    return [{"minute": (place + 0.5) * minutes / len(values), name: value} for place, value in enumerate(values)]


def curve(rows: list[dict[str, Any]], name: str, title: str) -> alt.Chart:
    minute = alt.X("minute:Q", title="minute of the busy turns")
    return alt.Chart(alt.Data(values=rows)).mark_line().encode(x=minute, y=alt.Y(f"{name}:Q", title=title))


def compared(day: dict[str, Any]) -> alt.LayerChart:
    """The 99th percentiles of both servers by turn, each named at its end."""
    rows = [
        row | {"server": name}
        for place, name in enumerate(NAMES)
        for row in spread([turn[place] for turn in day["p99_ms_quiet_and_not_by_turn"]], day["minutes"], "p99")
    ]
    server = alt.Color("server:N", sort=NAMES, legend=None)
    lines = curve(rows, "p99", "99th percentile, ms").encode(color=server)
    ends = [row for row in rows if row["minute"] == max(each["minute"] for each in rows)]
    # Ends that lie close together would be named on top of each other.
    ends.sort(key=lambda row: -row["p99"])
    names = [
        alt.Chart(alt.Data(values=[row]))
        .mark_text(align="left", dx=6, dy=(-8, 8)[place])
        .encode(x="minute:Q", y="p99:Q", text="server:N", color=server)
        for place, row in enumerate(ends)
    ]
    return alt.layer(lines, *names).properties(**SIZE)


def main() -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    day = record["measured"]
    unsent = [f"{day['unsent']:,} were not sent: all connections of the callers waited"] if day["unsent"] else []
    latency = compared(day)
    memory = curve(spread(day["memory_mib"], day["minutes"], "mib"), "mib", "memory, MiB").properties(**SIZE)
    chart = (latency & memory).properties(
        padding={"left": 5, "top": 5, "right": 40, "bottom": 5},  # fonts differ in width
        title=[
            f"{day['requests']:,} requests at {day['rate_per_s']:.0f}/s with {day['reloads']} reloads: "
            f"{day['wrong']} wrong, {day['lost']} lost",
            *unsent,
        ],
    )
    spec = chart.to_dict() | {"config": theme(dark=False) | {"font": FONT}}
    (HERE / "day.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


if __name__ == "__main__":
    main()
