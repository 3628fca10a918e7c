"""What a report shows of a search: the winner in words, every candidate of the front as a point of a picture."""

from __future__ import annotations

from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import Candidate, SearchReport

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


def _name(candidate: Candidate) -> str:
    return one_line(f"{candidate.variant}, trial {candidate.trial + 1}")
