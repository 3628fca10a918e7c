"""Draw benchmarks/results/peers.json as docs/images/peers.svg: ``python docs/images/make_peers_picture.py``."""

from __future__ import annotations

import json
from pathlib import Path

import altair as alt
import vl_convert

from vggdeploy.report.page import FONT, theme

HERE = Path(__file__).parent.resolve()
RESULT = HERE.parent.parent / "benchmarks" / "results" / "peers.json"


def main() -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    measured, rows = record["measured"], []
    for name, row in measured["rows"].items():
        speed = row["faster_than_onnxruntime"]
        ours = name.startswith("vggdeploy ")
        rows.append({"name": name, "who": "vggdeploy" if ours else "as its user has it", **speed,
                     "text": f"{speed['median']:.2f} ×, {row['median_ms']:.0f} ms"})  # fmt: skip
    rows.sort(key=lambda row: -row["median"])
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("name:N", sort=[row["name"] for row in rows], title=None, axis=alt.Axis(labelLimit=300))
    )
    bars = base.mark_bar().encode(
        x=alt.X("median:Q", title="speed beside plain ONNX Runtime (higher is faster), with its 95% interval"),
        color=alt.Color("who:N", title=None, legend=alt.Legend(orient="top")),
    )
    ranges = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    texts = base.mark_text(align="left", dx=6).encode(x="high:Q", text="text:N")
    title = (
        f"{measured['network']}, batch {measured['batch']}, {measured['threads']} threads, {record['machine']['cpu']}"
    )
    chart = (bars + ranges + texts).properties(width=520, height=28 * len(rows), title=title)
    spec = chart.to_dict() | {"config": theme(dark=False) | {"font": FONT}}
    (HERE / "peers.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


if __name__ == "__main__":
    main()
