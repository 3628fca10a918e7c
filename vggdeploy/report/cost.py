"""What a variant costs beside time: its size, its memory, its start, the CPU's time and energy. A part of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy.records import BenchReport, FreshStart
from vggdeploy.report.documents import Results
from vggdeploy.report.grids import NONE, Row, number, run_name
from vggdeploy.report.page import Cell, Grid
from vggdeploy.report.subjects import Cast

if TYPE_CHECKING:
    from vggdeploy.report.plots import Chart

MEGA = 1e6


def starts(bench: BenchReport, cast: Cast) -> Grid:
    """A row for each fresh process."""
    rows: list[Row] = [
        [
            cast.row(f, bench).label,
            f.backend,
            _megabytes(f.size_bytes),
            _megabytes(f.peak_rss_bytes),
            number(f.cold_start_ms, ",.0f"),
            number(f.load_ms, ",.0f"),
            number(f.first_ms, ",.2f"),
        ]
        for f in bench.fresh
    ]
    columns = ("variant", "backend", "size MB", "peak memory MB", "cold start ms", "of that: load ms", "first call ms")
    return Grid(f"Size, memory and start: {run_name(bench)}", columns, rows, left=2)


def shares(bench: BenchReport, cast: Cast) -> Grid:
    """Where the time and the energy of an image go."""
    rows: list[Row] = []
    for r in bench.rows:
        host: Row = [NONE] * 4
        if r.host is not None:
            h = r.host
            host = [number(ms) for ms in (h.preprocess_ms, h.queue_ms, h.run_ms, h.postprocess_ms)]
        cpu = None if r.cpu_seconds_per_image is None else r.cpu_seconds_per_image * 1e3
        energy: Row = [number(r.joules_per_image, ".4f"), r.joules_from or "–"]
        rows.append([cast.row(r, bench).label, number(r.batch, "d"), *host, number(cpu), *energy])
    columns = (
        "variant", "batch", "preprocess ms", "queue ms", "run ms", "postprocess ms", "CPU ms/image", "J/image", "counter",
    )  # fmt: skip
    return Grid(f"An image through classify: {run_name(bench)}", columns, rows, words=("counter",))


def bar_rows(bench: BenchReport, cast: Cast, field: str, unit: float) -> list[dict[str, Any]]:
    """What `charts.bars` draws of the fresh processes."""
    found: list[tuple[FreshStart, float | None]] = [(f, getattr(f, field)) for f in bench.fresh]
    return [{"label": cast.row(f, bench).label, "value": value / unit} for f, value in found if value is not None]


def has_shares(bench: BenchReport) -> bool:
    return any(r.host or r.cpu_seconds_per_image is not None or r.joules_per_image is not None for r in bench.rows)


def cost_grids(results: Results, cast: Cast) -> tuple[Grid, ...]:
    found = [starts(bench, cast) for bench in results.bench if bench.fresh]
    return (*found, *(shares(bench, cast) for bench in results.bench if has_shares(bench)))


def draw_bars(rows: list[dict[str, Any]], title: str, unit: str) -> Chart:
    from vggdeploy.report import charts  # only now: it imports Altair

    return charts.bars(rows, title=title, unit=unit)


def _megabytes(count: int | None) -> Cell:
    return number(None if count is None else count / MEGA, ",.1f")
