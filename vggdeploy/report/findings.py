"""What a report concludes: which variant to take, and why. Pure functions of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, BenchRow, Candidate, SearchReport
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.report.digits import figures
from vggdeploy.report.subjects import Cast
from vggdeploy.types import Verdict

MEGABYTE = 10**6

RULE = (
    "Rule: of the variants that are proven and whose run is valid, the fastest one at the smallest batch measured whose "
    "whole 95% interval of speed lies above the baseline's 1."
)


@dataclass(frozen=True)
class Recommendation:
    """What one bench says to take: ``row`` is None where it says nothing. ``reason`` is one sentence.

    ``leader`` is then the fastest row that nothing was found against, though it does not count yet; None where every
    variant failed. ``rivals``: the rows that ``row``, or else the leader, was chosen from, the fastest first, each with why
    it was not taken.
    """

    bench: BenchReport
    row: BenchRow | None
    label: str
    reason: str
    leader: BenchRow | None = None
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True)
class Rival:
    """A row that was not taken."""

    row: BenchRow
    label: str
    why_not: str


def smallest_batch(bench: BenchReport) -> list[BenchRow]:
    """The rows that latencies are compared by."""
    smallest = min((row.batch for row in bench.rows), default=0)
    return [row for row in bench.rows if row.batch == smallest]


def recommend(bench: BenchReport, cast: Cast) -> Recommendation:
    """Apply `RULE` to one bench."""
    rows = smallest_batch(bench)
    if not rows:
        return Recommendation(bench, None, "", "this bench holds LoadGen's scenarios only, without a baseline")
    proven = [r for r in rows if is_proven(r, bench, cast)]
    valid = [r for r in proven if r.valid]
    at = f"at batch {rows[0].batch}"
    base = next((r for r in rows if r.variant == bench.baseline), rows[0])
    base_label = cast.row(base, bench).label
    if not valid:
        return _none(bench, cast, proven, _why_none(rows, proven, at))
    faster = sorted((r for r in valid if r is not base and r.ratio_low > 1), key=lambda r: r.p50_ms)
    if faster:
        best = faster[0]
        text = (
            f"{figures(best.ratio)} × as fast as {base_label} {at} (95% interval {figures(best.ratio_low)}–"
            f"{figures(best.ratio_high)}), proven, and its run is valid"
        )
        text += _equals(best, faster[1:], bench, cast)
        return Recommendation(bench, best, cast.row(best, bench).label, text, rivals=_rivals(best, rows, bench, cast))
    if base not in valid:
        text = f"no proven variant with a valid run is shown to be faster than {base_label} {at}, which does not count itself"
        return _none(bench, cast, valid, text)
    others = [r for r in valid if r is not base]
    if not others:
        text = f"nothing else is both proven and validly measured {at}"
    elif any(r.ratio_high >= 1 for r in others):
        covering = ", ".join(cast.row(r, bench).label for r in others if r.ratio_low <= 1 <= r.ratio_high)
        text = f"no variant is shown to be faster {at}: no difference shown for {covering}, whose interval covers 1"
    else:
        text = f"every other proven variant is slower {at}"
    return Recommendation(bench, base, base_label, f"the baseline; {text}", rivals=_rivals(base, rows, bench, cast))


def is_proven(row: BenchRow, bench: BenchReport, cast: Cast) -> bool:
    """Whether every comparison that ran passed, and the outputs of this run were right."""
    return cast.row(row, bench).verdict is Verdict.PASS and row.verdict is Verdict.PASS


def _none(bench: BenchReport, cast: Cast, fit: Sequence[BenchRow], reason: str) -> Recommendation:
    """Nothing to take: the fastest of those that are ``fit``, or else that did not fail, leads until more is known."""
    rows = smallest_batch(bench)
    open_ones = fit or [r for r in rows if Verdict.FAIL not in (cast.row(r, bench).verdict, r.verdict)]
    leader = min(open_ones, key=lambda r: r.p50_ms, default=None)
    rivals = _rivals(leader, rows, bench, cast) if leader is not None else ()
    return Recommendation(bench, None, "", reason, leader, rivals)


def _rivals(best: BenchRow, rows: Sequence[BenchRow], bench: BenchReport, cast: Cast) -> tuple[Rival, ...]:
    others = sorted((r for r in rows if r is not best), key=lambda r: r.p50_ms)
    return tuple(Rival(r, cast.row(r, bench).label, _why_not(r, best, bench, cast)) for r in others)


def _why_not(row: BenchRow, best: BenchRow, bench: BenchReport, cast: Cast) -> str:
    subject = cast.row(row, bench)
    wrong = next((v for v in (row.verdict, subject.verdict) if v is not Verdict.PASS), None)
    if wrong is not None:
        why = next(iter(row.reasons), "") if row.verdict is wrong else subject.why
        return f"its proof says {wrong}" + (f": {why}" if why else "")
    if not row.valid:
        return f"its run is not valid: {next(iter(row.reasons), 'no reason was recorded')}"
    if row.p50_ms < best.p50_ms:
        return f"not shown to be faster than {bench.baseline}"
    slower = f"{figures(row.p50_ms / best.p50_ms)} × the time"
    equal = best.ratio_low <= row.ratio_high and row.variant != bench.baseline
    return f"{slower}; the intervals overlap, so no difference is shown" if equal else slower


def _equals(best: BenchRow, rest: Sequence[BenchRow], bench: BenchReport, cast: Cast) -> str:
    """Those whose interval overlaps with the best one's: the order among them may be chance."""
    close = [cast.row(r, bench).label for r in rest if r.ratio_high >= best.ratio_low]
    return f"; no difference to {', '.join(close)} is shown: the intervals overlap" if close else ""


def _why_none(rows: Sequence[BenchRow], proven: Sequence[BenchRow], at: str) -> str:
    if not proven:
        return f"no variant measured {at} is proven: verify first"
    reasons = list(dict.fromkeys(reason for r in proven for reason in r.reasons))
    first = f": {reasons[0]}" if reasons else ""
    return f"no run {at} is valid{first}"


def tail(row: BenchRow, label: str) -> list[dict[str, Any]]:
    """Rows of the picture of tails: the percentiles that so many calls can tell, then the slowest call at its own rank."""
    most = math.log10(max(row.calls, 1))
    nines = [-math.log10(1 - percent / 100) for percent in range(min(len(row.quantiles_ms) - 1, 100))]
    points = [(f"p{i}", n, ms) for i, (n, ms) in enumerate(zip(nines, row.quantiles_ms, strict=False)) if n <= most]
    points += [(f"the slowest of {row.calls:,} calls", most, ms) for ms in row.quantiles_ms[-1:]]
    return [{"label": label, "nines": n, "ms": ms, "told": told} for told, n, ms in points if ms > 0]


def search_words(report: SearchReport) -> str:
    """The verdict, then on what it rests."""
    return one_line(f"{report.reason[:1].upper() + report.reason[1:]}. {asked_words(report)}")


def shadow_words(report: ShadowReport) -> str:
    """Whether the shadow may take over, and why."""
    may = "may take over" if report.may_take_over else "may not take over"
    return one_line(
        f"{report.shadow.variant} of {report.shadow.model} {may} from {report.served.variant} of {report.served.model}: "
        f"{shadow_counts(report)}. Their times are of other conditions: which is faster says vggdeploy bench OLD NEW."
    )


def shadow_counts(report: ShadowReport) -> str:
    """The verdict, in the words of parity, and what was counted."""
    flips = report.flips
    seen = (
        f"{flips.flips} of {flips.samples:,} different requests were answered with another class, {flips.lower:.2%} to "
        f"{flips.upper:.2%} at one-sided 95% confidence each, at any look; the limit is {report.limit:.2%}"
        if flips
        else "nothing was compared"
    )
    return (
        f"{report.verdict}; {seen}; {report.errors:,} errors, {report.shed:,} not asked since callers were waiting, "
        f"{report.repeated:,} repeated"
    )


def asked_words(report: SearchReport) -> str:
    """What a search was asked for, and how far it looked."""
    goal = report.goal
    limits = [f"at most {100 * goal.accuracy_drop:g} points of accuracy lost"]
    limits += [f"{goal.latency_ms:g} ms"] if goal.latency_ms is not None else []
    limits += [f"{goal.size_mb:g} MB"] if goal.size_mb is not None else []
    tried = sum(trial.drop is not None for trial in report.trials)
    measured = (
        "" if report.measured else f" {goal.target} was not measured: candidates are ranked by what they compute."
    )
    return one_line(
        f"Asked for: {', '.join(limits)}. {tried} of {len(report.trials)} networks were fine-tuned, seed "
        f"{report.seed}.{measured}"
    )


def search_points(report: SearchReport) -> list[dict[str, Any]]:
    """Rows of the picture: the candidates that nothing beats, by speed where it was measured, else by cost."""
    return [
        {
            "label": candidate_name(c),
            "backend": c.backend,
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


def candidate_name(candidate: Candidate) -> str:
    return one_line(f"{candidate.variant}, trial {candidate.trial + 1}")
