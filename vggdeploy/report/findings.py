"""What a report concludes: which variant to take, and why. Pure functions of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, BenchRow, Candidate, SearchReport
from vggdeploy.report.subjects import Accuracy, Cast
from vggdeploy.types import Verdict

MEGABYTE = 10**6

RULE = (
    "Rule: of the variants that are proven and whose run is valid, the fastest one at the smallest batch measured whose "
    "whole 95% interval of speed lies above the baseline's 1."
)


@dataclass(frozen=True)
class Recommendation:
    """What one bench says to take: ``row`` is None where it says nothing. ``reason`` is one sentence."""

    bench: BenchReport
    row: BenchRow | None
    label: str
    reason: str


@dataclass(frozen=True)
class Point:
    """A variant in the picture of accuracy against latency. ``counts``: proven, and its run is valid."""

    label: str
    accuracy: Accuracy
    row: BenchRow
    verdict: Verdict
    counts: bool
    front: bool = False


def smallest_batch(bench: BenchReport) -> list[BenchRow]:
    """The rows that latencies are compared by."""
    smallest = min((row.batch for row in bench.rows), default=0)
    return [row for row in bench.rows if row.batch == smallest]


def recommend(bench: BenchReport, cast: Cast) -> Recommendation:
    """Apply `RULE` to one bench."""
    rows = smallest_batch(bench)
    if not rows:
        return Recommendation(bench, None, "", "this bench holds LoadGen's scenarios only, without a baseline")
    proven = [r for r in rows if cast.row(r, bench).verdict is Verdict.PASS and r.verdict is Verdict.PASS]
    valid = [r for r in proven if r.valid]
    at = f"at batch {rows[0].batch}"
    base = next((r for r in rows if r.variant == bench.baseline), rows[0])
    base_label = cast.row(base, bench).label
    if not valid:
        return Recommendation(bench, None, "", _why_none(rows, proven, at))
    faster = sorted((r for r in valid if r is not base and r.ratio_low > 1), key=lambda r: r.p50_ms)
    if faster:
        best = faster[0]
        text = (
            f"{best.ratio:.2f} × as fast as {base_label} {at} (95% interval {best.ratio_low:.2f}–{best.ratio_high:.2f}), "
            f"p50 {best.p50_ms:.3f} ms on {best.device}, proven, and its run is valid"
        )
        return Recommendation(bench, best, cast.row(best, bench).label, text + _rivals(best, faster[1:], bench, cast))
    if base not in valid:
        text = f"no proven variant with a valid run is shown to be faster than {base_label} {at}, which does not count itself"
        return Recommendation(bench, None, "", text)
    others = [r for r in valid if r is not base]
    if not others:
        text = f"nothing else is both proven and validly measured {at}"
    elif any(r.ratio_high >= 1 for r in others):
        covering = ", ".join(cast.row(r, bench).label for r in others if r.ratio_low <= 1 <= r.ratio_high)
        text = f"no variant is shown to be faster {at}: no difference shown for {covering}, whose interval covers 1"
    else:
        text = f"every other proven variant is slower {at}"
    return Recommendation(bench, base, base_label, f"the baseline; {text}")


def _rivals(best: BenchRow, rest: Sequence[BenchRow], bench: BenchReport, cast: Cast) -> str:
    """Those whose interval overlaps with the best one's: the order among them may be chance."""
    close = [cast.row(r, bench).label for r in rest if r.ratio_high >= best.ratio_low]
    return f"; no difference to {', '.join(close)} is shown: the intervals overlap" if close else ""


def _why_none(rows: Sequence[BenchRow], proven: Sequence[BenchRow], at: str) -> str:
    if not proven:
        return f"no variant measured {at} is proven: verify first"
    reasons = list(dict.fromkeys(reason for r in proven for reason in r.reasons))
    first = f": {reasons[0]}" if reasons else ""
    return f"no run {at} is valid{first}"


def pareto(bench: BenchReport, cast: Cast) -> tuple[list[Point], str]:
    """The variants whose accuracy is known, at the smallest batch, on the data that most of them share; and that data.

    A point is on the front when no other one that counts is both at least as fast and at least as accurate.
    """
    rows = [(r, cast.row(r, bench)) for r in smallest_batch(bench)]
    known = [a.data for _, subject in rows for a in {a.data: a for a in subject.accuracies}.values()]
    data = max(dict.fromkeys(known), key=known.count, default="")
    points = []
    for row, subject in rows:
        accuracy = next((a for a in subject.accuracies if a.data == data), None)
        if accuracy is not None:
            good = subject.verdict is Verdict.PASS and row.verdict is Verdict.PASS and row.valid
            points.append(Point(subject.label, accuracy, row, subject.verdict, good))
    return [Point(**{**vars(p), "front": p.counts and not _beaten(p, points)}) for p in points], data


def _beaten(point: Point, points: Sequence[Point]) -> bool:
    def place(p: Point) -> tuple[float, float]:
        return -p.row.p50_ms, p.accuracy.rate

    mine = place(point)
    return any(
        p.counts and place(p) != mine and all(a >= b for a, b in zip(place(p), mine, strict=True)) for p in points
    )


def search_words(report: SearchReport) -> str:
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


def search_points(report: SearchReport) -> list[dict[str, Any]]:
    """Rows of the picture: the candidates that nothing beats, by speed where it was measured, else by cost."""
    return [
        {
            "label": _candidate_name(c),
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


def _candidate_name(candidate: Candidate) -> str:
    return one_line(f"{candidate.variant}, trial {candidate.trial + 1}")
