"""What a report shows of a search: the winner in words, every candidate of the front in a picture and in a table."""

from __future__ import annotations

from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import Candidate, SearchReport
from vggdeploy.report.grids import NONE, Row, number
from vggdeploy.report.page import Cell, Grid

MEGABYTE = 10**6


def words(report: SearchReport) -> str:
    """The verdict, then on what it rests."""
    goal = report.goal
    limits = [f"at most {100 * goal.accuracy_drop:g} points of accuracy lost"]
    limits += [f"{goal.latency_ms:g} ms"] if goal.latency_ms is not None else []
    limits += [f"{goal.size_mb:g} MB"] if goal.size_mb is not None else []
    tried = sum(trial.drop is not None for trial in report.trials)
    told = report.reason[:1].upper() + report.reason[1:]
    measured = (
        "" if report.measured else f" {goal.target} was not measured: candidates are ranked by what they compute."
    )
    return one_line(
        f"{told}. Asked for: {', '.join(limits)}. {tried} of {len(report.trials)} networks were fine-tuned, seed "
        f"{report.seed}.{measured}"
    )


def points(report: SearchReport) -> list[dict[str, Any]]:
    """Rows of the picture: the candidates that nothing beats, by speed where it was measured, else by cost."""
    return [
        {
            "label": _name(c),
            "speed": c.ratio if report.measured else c.cost / 1e6,
            "points": -100 * c.drop.drop,
            "worst": -100 * c.drop.upper,
            "best": -100 * c.drop.lower,
            "megabytes": c.bytes / MEGABYTE,
            "holds": "holds the goal" if not c.misses else "misses it",
            "chosen": report.chose(c),
        }
        for c in report.front
        if c.ratio or not report.measured
    ]


def front(report: SearchReport) -> Grid:
    rows: list[Row] = [
        [
            _name(c),
            "✔ chosen" if report.chose(c) else "",
            number(c.latency_ms),
            Cell(f"{c.ratio:.1f} ({c.ratio_low:.1f}–{c.ratio_high:.1f})", c.ratio) if c.ratio else NONE,
            number(c.macs / 1e6, ",.1f"),
            number(c.bytes / MEGABYTE, ",.2f"),
            Cell(f"{c.roof_share:.0%}", c.roof_share) if c.roof_share else NONE,
            number(-100 * c.drop.drop, "+z.2f"),
            number(-100 * c.drop.upper, "+z.2f"),
            Cell(f"{-100 * c.test_drop.drop:+z.2f} (at worst {-100 * c.test_drop.upper:+z.2f})", -c.test_drop.drop)
            if c.test_drop
            else NONE,
            one_line("; ".join(c.misses)) or "–",
        ]
        for c in report.front
    ]
    columns = (
        "candidate", "choice", "ms", "× faster (95%)", "million MACs", "MB", "of the roof", "accuracy, points", "at worst",
        "on the test split", "misses",
    )  # fmt: skip
    return Grid(f"The front of {one_line(report.bundle)}", columns, rows, left=2, words=("misses",))


def _name(candidate: Candidate) -> str:
    return one_line(f"{candidate.variant}, trial {candidate.trial + 1}")
