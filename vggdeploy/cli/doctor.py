"""``vggdeploy doctor``: what this machine can run, what it can only build, and what to install for the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import Json, Modes, check_modes

if TYPE_CHECKING:
    from vggdeploy.doctor.doctor import SelfTest


MODES: Modes = {
    "--gpu-day": ("without --self-test",),
    "-o": ("--gpu-day",),
    "--minutes": ("--gpu-day",),
}


def doctor(
    context: typer.Context,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Prove it: run a tiny network on everything that is here.")
    ] = False,
    gpu_day: Annotated[
        bool, typer.Option("--gpu-day", help="Measure everything on this machine's GPU; run it again to continue.")
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file of the GPU day, written after each step.")
    ] = Path("gpu-day.json"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Minutes that the GPU day may take.")] = 40,
    json: Json = False,
) -> int:
    """Say which backends run here, which can only build engines, and what the others lack."""
    from vggdeploy.cli import render, tables
    from vggdeploy.doctor.doctor import diagnose

    check_modes(context, MODES)
    if self_test:
        return _prove(json)
    if gpu_day:
        return _spend_day(output, minutes, json)
    with render.progress("looking at what is installed"):
        diagnosis = diagnose()
    if json:
        render.emit_json(diagnosis)
    else:
        tables.doctor_table(diagnosis)
    return 0


def _prove(json: bool) -> int:
    from vggdeploy.cli import render
    from vggdeploy.doctor.doctor import self_test

    with render.progress("self-test") as tell:
        result = self_test(tell)
    if json:
        render.emit_json(result)
    else:
        _show(result)
    return 3 if result.failed else 0


def _spend_day(output: Path, minutes: float, json: bool) -> int:
    from vggdeploy.cli import render
    from vggdeploy.cli.options import command_line
    from vggdeploy.doctor.gpu_day.day import gpu_day
    from vggdeploy.report.gpu_days import failures, lines

    with render.progress("GPU day") as tell:
        day = gpu_day(output, minutes=minutes, command=command_line(), on_progress=tell)
    if json:
        render.emit_json(day)
    else:
        for line in lines(day):
            render.out.print(render.escape(line))
    return 3 if failures(day) else 0


def _show(result: SelfTest) -> None:
    """A line a proof, what was seen or why not; then what helps the others."""
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.doctor.doctor import Outcome
    from vggdeploy.report.tables import PROOFS, Facts, grid

    render.table(grid(PROOFS, [(Facts(told=p.detail or p.reason), p) for p in result.proofs]))
    for fix in dict.fromkeys(p.fix for p in result.proofs if p.fix):
        render.out.print(f"[dim]fix:[/] {escape(fix)}")
    counts = {o: sum(p.outcome is o for p in result.proofs) for o in Outcome}
    render.out.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
