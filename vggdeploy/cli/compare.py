"""``vggdeploy bench --compare``: two benches of different days, for the CI of a project that ships a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape

from vggdeploy.bench.regression import compare_files, failed_outputs
from vggdeploy.cli import render
from vggdeploy.cli.invocation import with_command
from vggdeploy.errors import UsageError
from vggdeploy.records.comparison import ComparedRow, ComparisonReport
from vggdeploy.types import SpeedOutcome

_OWN = {"bundles", "compare", "fail_if_slower", "json"}
_COLOURS = {SpeedOutcome.FASTER: "green", SpeedOutcome.SLOWER: "yellow", SpeedOutcome.NOT_JUDGED: "yellow"}


def run(context: typer.Context, files: Sequence[Path], *, compare: bool, fail_if_slower: str | None, json: bool) -> int:
    """Compare, print, and return the exit code.

    Raises:
        UsageError: not two files, or an option that belongs to measuring, or a limit without ``compare``.
    """
    if not compare:
        raise UsageError("--fail-if-slower belongs to --compare", "compare: bench --compare OLD.json NEW.json")
    given = [p for p in context.params if getattr(context.get_parameter_source(p), "name", "") == "COMMANDLINE"]
    if others := [f"--{name.replace('_', '-')}" for name in given if name not in _OWN]:
        raise UsageError(f"--compare measures nothing, and takes no {', '.join(others)}", "leave it out")
    if len(files) != 2:
        raise UsageError(f"--compare takes two results, and got {len(files)}", "bench --compare OLD.json NEW.json")
    limit = None if fail_if_slower is None else parse_limit(fail_if_slower)
    report = with_command(compare_files(*files, limit=limit))
    if json:
        render.emit_json(report)
    else:
        show(report)
    if failed_outputs(files[1]):
        render.error_line("a variant of the new bench failed parity", "run: vggdeploy verify BUNDLE")
        return 3
    if report.passed:
        return 0
    for row in report.rows:
        if row.too_slow:
            render.error_line(f"{_who(row)} is slower than allowed: {_speed(row)} × as fast as before", "")
        elif row.outcome is SpeedOutcome.NOT_JUDGED and row.old_ms is not None:
            render.error_line(f"{_who(row)} could not be judged: {row.reasons[0]}", "")
    return 4


def parse_limit(text: str) -> float:
    """``"5%"`` or ``"5"`` → 0.05.

    Raises:
        UsageError: no percentage of at least 0.
    """
    try:
        found = float(text.strip().removesuffix("%"))
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise UsageError(f"--fail-if-slower {text}", "give a percentage of the time before, for example 5%")
    return found / 100


def show(report: ComparisonReport) -> None:
    """Each row's verdict, then the times; below them what else differs between the two."""
    rows = [
        [
            escape(row.variant),
            row.scenario or "–",
            str(row.batch),
            "[red]too slow[/]" if row.too_slow else _mark(row.outcome),
            *("–" if ms is None else f"{ms:.3f}" for ms in (row.old_ms, row.new_ms)),
            _speed(row),
            "–" if row.same_bytes is None else "same" if row.same_bytes else "others",
        ]
        for row in report.rows
    ]
    columns = ["variant", "scenario", "batch", "verdict", "old p50 ms", "new p50 ms", "speed × old (95%)", "bytes"]
    render.table(columns, rows, left=2)
    for row in report.rows:
        for reason in row.reasons:
            render.out.print(f"  [dim]{escape(_who(row))}: {escape(reason)}[/]")
        if row.cannot_rule_out:
            text = f"{report.limit or 0:.3g} of the time more is not shown, and cannot be ruled out"
            render.out.print(f"  [dim]{escape(_who(row))}: {text}; measure longer[/]")
    for warning in report.warnings:
        render.note(f"[yellow]warning:[/] {escape(warning)}")


def _mark(outcome: SpeedOutcome) -> str:
    return f"[{_COLOURS[outcome]}]{outcome}[/]" if outcome in _COLOURS else str(outcome)


def _speed(row: ComparedRow) -> str:
    if row.ratio is None:
        return "–"
    if row.ratio_low is None or row.ratio_high is None:
        return f"{row.ratio:.2f}"
    return f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})"


def _who(row: ComparedRow) -> str:
    return f"{row.variant} at {row.batch}" + (f", {row.scenario}" if row.scenario else "")
