"""The part of a report that holds a bench against an earlier one: which variants became faster, which slower."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records.conclusions import ComparedRow, ComparisonReport
from vggdeploy.report import tables
from vggdeploy.report.documents import Results
from vggdeploy.report.parts import Figure, Section, drawn
from vggdeploy.report.subjects import short_path
from vggdeploy.report.tables import grid
from vggdeploy.types import SpeedOutcome


def comparison_sections(results: Results) -> list[Section]:
    """A section for each comparison, where there is one: most reports have none, and miss nothing."""
    several = len(results.comparisons) > 1
    return [
        _section(report, f"baseline-{number}" if several else "baseline")
        for number, report in enumerate(results.comparisons, 1)
    ]


def _section(report: ComparisonReport, anchor: str) -> Section:
    rows = [_point(row) for row in report.rows if row.ratio is not None]
    names = {one_line(_name(row)): row.backend for row in report.rows}
    text = (
        "How many times as fast as before, with its 95% interval; at 1 nothing changed. Hollow: it could not be judged."
    )
    figures = (Figure(text, drawn("changes", rows, names=names)),) if rows else ()
    notes = [f"{_name(row)}: {reason}" for row in report.rows for reason in row.reasons]
    found = grid(tables.COMPARISON, [(row,) for row in report.rows], "Each variant, before and now")
    return Section(
        anchor, "Against the baseline", _verdict(report), figures, (found,),
        notes=tuple(map(one_line, (*notes, *report.warnings))),
    )  # fmt: skip


def _verdict(report: ComparisonReport) -> str:
    """What became of the variants since then, in one sentence."""
    counts = Counter(row.outcome for row in report.rows)
    told = ", ".join(f"{outcome} {count}" for outcome in SpeedOutcome if (count := counts[outcome]))
    old, new = (f"{short_path(path)} ({created[:10]})" for path, created in _sides(report))
    return one_line(f"From {old} to {new}, of {len(report.rows)} rows: {told}.")


def _sides(report: ComparisonReport) -> tuple[tuple[str, str], tuple[str, str]]:
    return (report.old, report.old_created), (report.new, report.new_created)


def _point(row: ComparedRow) -> dict[str, Any]:
    judged = row.outcome is not SpeedOutcome.NOT_JUDGED
    told = f"{row.ratio:.3g} ×" if judged else f"{row.ratio:.3g} ×, not judged"
    return {
        "label": one_line(_name(row)),
        "backend": row.backend,
        "ratio": row.ratio,
        "low": row.ratio if row.ratio_low is None else row.ratio_low,
        "high": row.ratio if row.ratio_high is None else row.ratio_high,
        "outcome": str(row.outcome),
        "told": told,
        "counts": judged,
    }


def _name(row: ComparedRow) -> str:
    return f"{row.variant} at {row.batch}" + (f", {row.scenario}" if row.scenario else "")
