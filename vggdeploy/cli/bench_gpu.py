"""``vggdeploy bench --gpu-detail``: one engine taken apart on its GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from vggdeploy.cli import render

if TYPE_CHECKING:
    from vggdeploy.bench.gpu_records import GpuReport
    from vggdeploy.bundle import Bundle
    from vggdeploy.pipeline.bench import BenchPlan


def run(bundle: Bundle, plan: BenchPlan, *, json: bool, require_valid: bool) -> int:
    """Measure, print, and return the exit code."""
    from vggdeploy.pipeline.bench_gpu import bench_gpu

    with render.progress("measuring") as tell:
        report = bench_gpu(bundle, plan, on_progress=tell)
    if json:
        render.emit_json(report)
    else:
        show(report)
    return 4 if require_valid and not all(load.valid for load in report.loads) else 0


def show(report: GpuReport) -> None:
    """Where the time of a batch goes, then what several streams reach, with the reasons of what does not count."""
    out = render.out.print
    roof = f"roof {report.roof.tera_ops:,.0f} TOP/s" if report.roof else f"no roof: {report.roof_missing}"
    out(f"[bold]{escape(report.variant)}[/] on {escape(report.gpu)} ({report.capability}), {escape(roof)}")
    more = "" if report.context_bytes is None else f", {render.size_text(report.context_bytes)} a further context"
    out(f"[dim]GPU memory: {render.size_text(report.engine_bytes)}{more}; times in ms[/]")
    rows = [
        [
            str(t.batch),
            t.graph or "no",
            *(f"{ms:.3f}" for ms in (t.h2d_ms, t.compute_ms, t.d2h_ms, t.device_ms, t.host_compute_ms, t.host_ms)),
            f"{t.tera_ops:,.1f}",
            "–" if t.roof_share is None else f"{t.roof_share:.0%}",
        ]
        for t in report.times
    ]
    columns = ["batch", "graph", "H2D", "compute", "D2H", "device", "host, no copies", "host", "TOP/s", "of roof"]
    render.table(columns, rows, left=2)
    rows = [
        [
            str(x.batch),
            str(x.streams),
            "yes" if x.graph else "no",
            "[green]valid[/]" if x.valid else "[yellow]invalid[/]",
            f"{x.images_per_second:,.0f}",
            "–" if x.joules_per_image is None else f"{x.joules_per_image:.4f}",
            "–" if x.seen.power_watts_mean is None else f"{x.seen.power_watts_mean:.0f}",
            "–" if x.seen.sm_clock_mhz_min is None else f"{x.seen.sm_clock_mhz_min}–{x.seen.sm_clock_mhz_max}",
            "–" if x.seen.temperature_c_max is None else str(x.seen.temperature_c_max),
        ]
        for x in report.loads
    ]
    render.table(["batch", "streams", "graph", "", "images/s", "J/image", "W", "SM MHz", "°C"], rows, left=4)
    for text in dict.fromkeys(
        [f"no graph for batch {t.batch}: {t.graph_refused}" for t in report.times if t.graph_refused]
        + [reason for x in report.loads for reason in x.reasons]
    ):
        out(f"[yellow]·[/] {escape(text)}")
