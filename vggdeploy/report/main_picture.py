"""The main picture of a report: what each variant takes and what it loses, in rows of one order, the fastest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vggdeploy.bundle import REFERENCE
from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, SearchReport
from vggdeploy.report.answers import points
from vggdeploy.report.digits import figures
from vggdeploy.report.documents import Results
from vggdeploy.report.findings import candidate_name, is_proven, smallest_batch
from vggdeploy.report.parts import Figure, drawn
from vggdeploy.report.subjects import Cast, Loss
from vggdeploy.types import Verdict

_MOST = 12  # rows: of a search's front, the fastest
_Row = dict[str, Any]


def main_figures(results: Results, cast: Cast) -> list[Figure]:
    """Latency, and accuracy lost, of the newest bench, else of a search, else of what was proven; empty where nothing of it
    is known."""
    benches = sorted((b for b in results.bench if b.rows), key=lambda b: b.created)
    if benches:
        rows, at = _of_bench(benches[-1], cast), f"one batch of {smallest_batch(benches[-1])[0].batch}"
        filled = "proven, and its run is valid"
    elif results.searches:
        rows, at, filled = _of_search(results.searches[-1]), "one image", "it holds the goal"
    else:
        rows, at, filled = _of_proofs(cast), "", "proven"
    return [*_latency(rows, at, filled), *_loss(rows, filled)]


def _latency(rows: Sequence[_Row], at: str, filled: str) -> list[Figure]:
    timed = [row for row in rows if row["p50_ms"] is not None]
    if not timed:
        return []
    tail = ", the line reaches to p99" if any(row["p99_ms"] is not None for row in timed) else ""
    text = (
        f"Time for {at}, the fastest first: the mark is p50, the bar its 95% interval beside the baseline{tail}. Filled: "
        f"{filled}; hollow: not."
    )
    named = [{**row, "told": row["time"]} for row in timed]
    draw = drawn("latencies", named, names=_names(rows), title=f"time for {at}, ms (log scale)")
    return [Figure(text, draw, "Latency")]


def _loss(rows: Sequence[_Row], filled: str) -> list[Figure]:
    if not any(row["upper"] is not None for row in rows):
        return []
    data = ", ".join(dict.fromkeys(row["data"] for row in rows if row["data"]))
    bounds = [row for row in rows if row["upper"] is not None]
    limit = " Red: the limit." if any(row["limit"] is not None for row in bounds) else ""
    without = " A line without a mark is the bound of changed classes, which no loss exceeds."
    text = (
        f"Accuracy lost, with its one-sided 95% bound, on {data}.{limit} Filled: {filled}; hollow: not."
        f"{without if any(row['points'] is None for row in bounds) else ''}"
    )
    named = [{**row, "told": row["lost"]} for row in rows]
    return [Figure(text, drawn("losses", named, names=_names(rows)), "Accuracy lost")]


def _names(rows: Sequence[_Row]) -> dict[str, str]:
    return {row["label"]: row["backend"] for row in rows}


def _of_bench(bench: BenchReport, cast: Cast) -> list[_Row]:
    rows = []
    for r in sorted(smallest_batch(bench), key=lambda r: r.p50_ms):
        subject = cast.row(r, bench)
        told = figures(r.p50_ms) + (f" (p99 {figures(r.p99_ms)})" if r.p99_ms is not None else "")
        rows.append(
            {
                "label": subject.label,
                "backend": r.backend,
                "p50_ms": r.p50_ms,
                "low_ms": r.p50_ms * r.ratio / r.ratio_high,
                "high_ms": r.p50_ms * r.ratio / r.ratio_low,
                "p99_ms": r.p99_ms,
                "time": told,
                "throughput": r.images_per_second,
                "verdict": str(subject.verdict),
                "run": "valid" if r.valid else "invalid",
                "counts": is_proven(r, bench, cast) and r.valid,
                **_lost(subject.loss, reference=subject.variant == REFERENCE),
            }
        )
    return rows


def _of_search(report: SearchReport) -> list[_Row]:
    rows = []
    for c in report.front[:_MOST]:
        timed = c.latency_ms is not None and bool(c.ratio and c.ratio_low and c.ratio_high)
        low, high = (c.ratio_low or 1, c.ratio_high or 1)
        loss = Loss(c.drop.drop, c.drop.upper, report.goal.accuracy_drop, "the validation split", c.drop.samples)
        rows.append(
            {
                "label": candidate_name(c),
                "backend": c.backend,
                "p50_ms": c.latency_ms,
                "low_ms": (c.latency_ms or 0) * (c.ratio or 1) / high if timed else c.latency_ms,
                "high_ms": (c.latency_ms or 0) * (c.ratio or 1) / low if timed else c.latency_ms,
                "p99_ms": None,
                "time": figures(c.latency_ms) if c.latency_ms is not None else "",
                "throughput": None,
                "verdict": "holds the goal" if not c.misses else "misses the goal",
                "run": "",
                "counts": not c.misses,
                **_lost(loss),
            }
        )
    return rows


def _of_proofs(cast: Cast) -> list[_Row]:
    return [
        {
            "label": s.label,
            "backend": s.backend,
            "p50_ms": None,
            "verdict": str(s.verdict),
            "counts": s.verdict is Verdict.PASS,
            **_lost(s.loss, reference=s.variant == REFERENCE),
        }
        for s in cast.subjects
    ]


def _lost(loss: Loss | None, *, reference: bool = False) -> _Row:
    """In percentage points."""
    if reference or loss is None:
        told = "the reference" if reference else "not compared on images"
        return {"points": 0.0 if reference else None, "upper": None, "limit": None, "data": "", "lost": told}
    bound = f"≤ {points(loss.upper)}"
    return {
        "points": None if loss.drop is None else 100 * loss.drop,
        "upper": 100 * loss.upper,
        "limit": None if loss.limit is None else 100 * loss.limit,
        "data": one_line(loss.data),
        "lost": bound if loss.drop is None else f"{points(loss.drop)} ({bound})",
    }
