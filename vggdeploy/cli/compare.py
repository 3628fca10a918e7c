"""``vggdeploy compare``: two benches of different days, for the CI of a project that ships a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import Json
from vggdeploy.errors import UsageError

if TYPE_CHECKING:
    from vggdeploy.records.conclusions import ComparedRow, ComparisonReport


def compare(
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD.json", help="What 'bench --json' printed for the version before; several runs with commas."
        ),
    ],
    new: Annotated[str, typer.Argument(metavar="NEW.json", help="What it printed for the new one, likewise.")],
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit with 4 when a variant is slower by more than this, or when that cannot be told.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Compare two results of bench, variant by variant; nothing is measured."""
    from vggdeploy.bench.compare import compare_files, failed_outputs
    from vggdeploy.cli import render
    from vggdeploy.cli.options import with_command

    limit = None if fail_if_slower is None else parse_limit(fail_if_slower)
    report = with_command(compare_files(files(old), files(new), limit=limit))
    if json:
        render.emit_json(report)
    else:
        show(report)
    if failed_outputs(files(new)):
        render.error_line("a variant of the new bench failed parity", "run: vggdeploy verify BUNDLE")
        return 3
    return exit_code(report)


def files(text: str) -> list[Path]:
    """``"a.json,b.json"`` → two paths; a file that has commas in its own name is one."""
    return [Path(text)] if Path(text).exists() else [Path(name) for name in text.split(",")]


def exit_code(report: ComparisonReport) -> int:
    """4, and a line for each row that misses the limit or cannot be held against it; 0 where none does."""
    from vggdeploy.cli import render
    from vggdeploy.report.tables import SPEED
    from vggdeploy.types import SpeedOutcome

    if report.passed:
        return 0
    for row in report.rows:
        if row.too_slow:
            speed = SPEED.cell((row,)).text
            render.error_line(f"{_who(row)} is slower than allowed: {speed} × as fast as before", "")
        elif row.outcome is SpeedOutcome.NOT_JUDGED and row.old_ms is not None:
            render.error_line(f"{_who(row)} could not be judged: {row.reasons[0]}", "")
        elif row.cannot_rule_out:
            render.error_line(f"{_who(row)} could not be judged: {_power(row, report.limit or 0)}", _measure_more(row))
    return 4


def _power(row: ComparedRow, limit: float) -> str:
    least = math.log((row.ratio_high or 1) / (row.ratio_low or 1))  # both halves: found, and told from the limit
    return (
        f"a slowdown of {limit:.3g} lies within its interval; this much measuring shows one of {math.expm1(least):.0%}"
    )


def _measure_more(row: ComparedRow) -> str:
    more = max(2, math.ceil(row.more or 2))
    return f"measure {more} times as much (--processes, --rounds, --duration; or more runs of each side, with commas)"


def parse_limit(text: str) -> float:
    """``"5%"`` or ``"5"`` → 0.05.

    Raises:
        UsageError: no percentage of at least 0.
    """
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise UsageError(f"--fail-if-slower is {text}", "give a percentage of the time before, for example 5%")
    return percent / 100


def show(report: ComparisonReport) -> None:
    """Each row's verdict, then the times; below them what else differs between the two."""
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.report.tables import COMPARISON, grid

    render.table(grid(COMPARISON, [(row,) for row in report.rows]))
    for row in report.rows:
        for reason in row.reasons:
            render.sentence(f"[dim]{escape(_who(row))}: {escape(reason)}[/]", "  ")
    for warning in report.warnings:
        render.notice(f"[yellow]warning:[/] {escape(warning)}")


def _who(row: ComparedRow) -> str:
    return f"{row.variant} at {row.batch}" + (f", {row.scenario}" if row.scenario else "")
