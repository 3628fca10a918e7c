"""The part of a report on load: what each variant kept up, which runs count, and how far the tails reach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from vggdeploy.records import BenchReport, ScenarioRow
from vggdeploy.report import grids
from vggdeploy.report.digits import figures
from vggdeploy.report.documents import Results
from vggdeploy.report.parts import Figure, Section, drawn, groups
from vggdeploy.report.server_tables import scenario_name
from vggdeploy.report.subjects import Cast
from vggdeploy.report.tables import row_notes

_ASK = "The server scenario was not run: vggdeploy bench BUNDLE --scenario server --target-qps 100 --latency-bound 50 --json"


def load_section(results: Results, cast: Cast) -> Section:
    """Latency over the rate of queries, the tails of every scenario, and every try of a search for the highest rate."""
    servers = [(r, bench) for bench in results.bench for r in bench.scenarios if r.scenario == "server"]
    rows = [point for r, bench in servers for point in _points(r, cast.row(r, bench).label)]
    text = (
        "p99 latency of the server scenario over the rate of its queries, and the bound that was asked for. Filled: the run is "
        "valid; hollow: it is not; ringed, with its rate: confirmed by a run of the whole time."
    )
    shown = [Figure(text, drawn("server", rows, names=groups(cast)))] if rows else []
    tails = [point for b in results.bench for r in _best(b) for point in _tail(r, cast.row(r, b).label)]
    if tails:
        names = {row["label"]: row["backend"] for row in tails}
        told = "Latency at p50, p90 and p99 of each scenario: of a variant's runs the one that counts, at the highest rate."
        shown.append(Figure(told, drawn("tails", tails, names=names), "The tail of each scenario"))
    tables = tuple(grids.scenarios(bench, cast) for bench in results.bench if bench.scenarios)
    tables += tuple(grids.tries(b, cast) for b in results.bench if any(r.search for r in b.scenarios))
    notes = grids.reasons(
        (f"{cast.row(r, b).label}, {scenario_name(r)} at {r.batch}", row_notes(r))
        for b in results.bench
        for r in b.scenarios
    )
    return Section("load", "Latency under load", "", tuple(shown), tables, missing="" if servers else _ASK, notes=notes)


def _best(bench: BenchReport) -> list[ScenarioRow]:
    """Of each variant under each scenario the run that counts at the highest rate, else the one of the highest rate."""
    best: dict[tuple[str, str], ScenarioRow] = {}
    for row in sorted(bench.scenarios, key=lambda r: (r.valid, r.samples_per_second)):
        best[row.variant, row.scenario] = row
    return list(best.values())


def _points(row: ScenarioRow, label: str) -> Iterator[dict[str, Any]]:
    """A server's row, and every run of the search that led to it, by their rate."""
    tries = {(t.qps, t.p99_ms): _kind(t.valid, t.confirms) for t in (row.search.tries if row.search else ())}
    if row.target_qps is not None:
        tries[row.target_qps, row.p99_ms] = _kind(row.valid, row.search is not None)
    for (qps, p99), kind in sorted(tries.items(), key=lambda item: item[0][0]):
        if qps and p99:
            yield {
                "label": label,
                "batch": row.batch,
                "qps": qps,
                "p99_ms": p99,
                "bound_ms": row.latency_bound_ms,
                "kind": kind,
                "told": f"confirmed: {figures(qps)} a second",
            }


def _kind(valid: bool, confirms: bool) -> str:
    return "invalid" if not valid else "confirmed" if confirms else "valid"


def _tail(row: ScenarioRow, label: str) -> Iterator[dict[str, Any]]:
    """The three percentiles that a scenario records, for a variant's batch size and rate."""
    rate = f" at {figures(row.target_qps)} queries/s" if row.target_qps is not None else ""
    for percent, ms in ((50, row.p50_ms), (90, row.p90_ms), (99, row.p99_ms)):
        if ms:
            yield {
                "label": f"{label}, {row.scenario}{rate}",
                "backend": row.backend,
                "ms": ms,
                "nines": -math.log10(1 - percent / 100),
                "told": f"p{percent}",
            }
