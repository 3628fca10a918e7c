"""``vggdeploy optimize`` without ``--step``: the search, as it is seen in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from vggdeploy.cli import render
from vggdeploy.cli.invocation import command_line
from vggdeploy.errors import EXIT_INTERRUPTED, UsageError
from vggdeploy.optimize.goals import MEGABYTE, Budget
from vggdeploy.records import Candidate, Goal, SearchReport, Trial

SHOWN = 12  # candidates of the front


def run_search(
    source: Path,
    output: Path | None,
    *,
    goal: Goal | None,
    budget: str,
    foreign: Mapping[str, Any],
    settings: Mapping[str, Any],
    resume: bool,
    force: bool,
    json: bool,
) -> int:
    """Search, show the front as it grows, and return the exit code.

    Args:
        foreign: options that only steps have; one that is given is refused.
    """
    from vggdeploy.pipeline.search import Settings, search

    given = [name for name, value in foreign.items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]} belongs to a step, and a search chooses that itself", "add --step, or leave it out"
        )
    if goal is None:
        raise UsageError(
            "neither a step nor a goal", "name steps: --step prune,…; or search: --max-accuracy-drop 0.5 -o BUNDLE"
        )
    if output is None:
        raise UsageError("a search writes a new bundle", "name it: -o BUNDLE")
    wanted = Budget.parse(budget)
    with render.stages() as stage:

        def note(trial: Trial, front: list[Candidate]) -> None:
            best = next((c for c in front if not c.misses), None)
            render.note(escape(f"trial {trial.number + 1}: {_told(trial)}; best that holds: {_best(best)}"))

        how = Settings(**settings, command=command_line(), on_stage=stage, on_trial=note)
        report = search(source, output, goal, wanted, how, resume=resume, overwrite=force)
    if json:
        render.emit_json(report)
    else:
        search_table(report)
        render.next_steps(f"vggdeploy verify {output}", f"vggdeploy bench {output}", *_going_on(report))
    return EXIT_INTERRUPTED if report.interrupted else 0


def _going_on(report: SearchReport) -> list[str]:
    """The line that goes on with an interrupted search, and replaces what it has written."""
    line = report.command
    if not report.interrupted or not line:
        return []
    return [" ".join([line, *(flag for flag in ("--resume", "--force") if flag not in line.split())])]


def _best(one: Candidate | None) -> str:
    if one is None:
        return "none"
    return f"{f'{one.ratio:.1f} × in ' if one.ratio else ''}{one.variant}, {one.bytes / MEGABYTE:.2f} MB"


def _told(trial: Trial) -> str:
    if trial.drop is None:
        return f"left out, {trial.skipped}"
    lost = f"accuracy {-100 * trial.drop.drop:+z.2f} points (at worst {-100 * trial.drop.upper:+z.2f})"
    return f"{trial.macs / 1e6:,.1f} million multiply-accumulates, {lost}"


def search_table(report: SearchReport) -> None:
    """The verdict, then the front, the fastest first."""
    render.out.print(f"[bold green]{escape(report.reason)}[/]")
    won = next((one for one in report.front if report.chose(one)), None)
    if won is not None and won.test_drop is not None:
        test = won.test_drop
        render.out.print(
            f"on the test split, which decided nothing: accuracy {-100 * test.drop:+z.2f} points, at worst "
            f"{-100 * test.upper:+z.2f} ({test.samples:,} images)"
        )
    original = f"{report.original_latency_ms:.2f} ms, " if report.original_latency_ms else ""
    if not report.measured:
        render.out.print(
            f"[yellow]{escape(report.goal.target)} was not measured here: candidates are ranked by multiply-accumulates and "
            "bytes, and the engine is unproven until its GPU ran it[/]"
        )
    render.out.print(
        f"[dim]the original on plain ONNX Runtime, FP32: {original}{report.original_bytes / MEGABYTE:.2f} MB; "
        f"{len(report.trials)} trials, seed {report.seed}, on {escape(report.machine.cpu)}[/]\n"
    )
    rows = [_row(one, report) for one in report.front[:SHOWN]]
    render.table(
        ["", "variant", "trial", "ms", "× faster", "MB", "of the roof", "accuracy, points", "at worst", "misses"], rows
    )


def _row(one: Candidate, report: SearchReport) -> Sequence[str]:
    return [
        "[green]✔[/]" if report.chose(one) else "",
        escape(one.variant),
        str(one.trial + 1),
        f"{one.latency_ms:.2f}" if one.latency_ms else "–",
        f"{one.ratio:.1f} [{one.ratio_low:.1f}, {one.ratio_high:.1f}]".replace("[", r"\[") if one.ratio else "–",
        f"{one.bytes / MEGABYTE:.2f}",
        f"{one.roof_share:.0%}" if one.roof_share else "–",
        f"{-100 * one.drop.drop:+z.2f}",
        f"{-100 * one.drop.upper:+z.2f}",
        escape("; ".join(one.misses)),
    ]
