"""``vggdeploy search``: the fastest variant that keeps the accuracy, as the search for it is seen in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Threads

if TYPE_CHECKING:
    from vggdeploy.records import Candidate, SearchReport, Trial

SHOWN = 12  # candidates of the front


def search(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A checkpoint, or a bundle: what 'train' or 'export' made.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")],
    max_accuracy_drop: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="Percentage points below the original, at most, with one-sided 95% confidence, on the validation split.",
        ),
    ],
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds for one image, at most.")] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Megabytes (10⁶ bytes) of the variant, at most.")] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="cpu|tensorrt-rtx:GPU,…",
            help="This machine's CPU, or GPUs to build an engine for without measuring it.",
        ),
    ] = "cpu",
    budget: Annotated[str, typer.Option(metavar="TIME|TRIALS", help="30m, 2h; or a number of trials.")] = "30m",
    seed: Annotated[int, typer.Option(help="The same one repeats the same choices.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted search.")] = False,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning of each network; 0 for none.")] = 3,
    samples: Annotated[int, typer.Option(help="Test images to prove variants on.")] = 1000,
    data: Annotated[str, typer.Option(help="The data set.", show_default="the one trained on")] = "",
    data_dir: DataDir = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Find the fastest variant that keeps the accuracy, over widths, precisions and threads; write its bundle."""
    from vggdeploy.cli import render
    from vggdeploy.cli.options import command_line
    from vggdeploy.cli.render import escape
    from vggdeploy.errors import EXIT_INTERRUPTED
    from vggdeploy.records import Goal
    from vggdeploy.search.goals import Budget
    from vggdeploy.search.search import Settings
    from vggdeploy.search.search import search as run

    goal = Goal(accuracy_drop=max_accuracy_drop / 100, latency_ms=max_latency_ms, size_mb=max_size_mb, target=target)
    spent = Budget.parse(budget)
    with render.progress("starting") as tell:

        def note(trial: Trial, front: list[Candidate]) -> None:
            best = next((c for c in front if not c.misses), None)
            render.note(escape(f"trial {trial.number + 1}: {_told(trial)}; best that holds: {_best(best)}"))

        settings = Settings(
            seed=seed,
            epochs=epochs,
            dataset=data,
            data_dir=data_dir,
            threads=threads,
            samples=samples,
            command=command_line(),
            on_progress=tell,
            on_trial=note,
        )
        report = run(source, output, goal, spent, settings, resume=resume, overwrite=force)
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
    from vggdeploy.search.goals import MEGABYTE

    if one is None:
        return "none"
    return f"{f'{one.ratio:.1f} × in ' if one.ratio else ''}{one.variant}, {one.bytes / MEGABYTE:.2f} MB"


def _told(trial: Trial) -> str:
    if trial.drop is None:
        return f"left out, {trial.skipped}"
    lost = f"accuracy {-100 * trial.drop.drop:+z.2f} points (at worst {-100 * trial.drop.upper:+z.2f})"
    return f"{trial.macs / 1e6:,.1f} million multiply-accumulates, {lost}"


def search_table(report: SearchReport) -> None:
    """What to take, then the front, the fastest first."""
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.render import escape
    from vggdeploy.errors import counted
    from vggdeploy.report.tables import CANDIDATES, Facts, grid
    from vggdeploy.search.goals import MEGABYTE

    tables.answer(report)
    won = next((one for one in report.front if report.chose(one)), None)
    if won is not None and won.test_drop is not None:
        test = won.test_drop
        render.sentence(
            f"on the test split, which decided nothing: accuracy {-100 * test.drop:+z.2f} points, at worst "
            f"{-100 * test.upper:+z.2f} ({counted(test.samples, 'image')})"
        )
    original = f"{report.original_latency_ms:.2f} ms, " if report.original_latency_ms else ""
    if not report.measured:
        render.sentence(
            f"[yellow]{escape(report.goal.target)} was not measured here: candidates are ranked by multiply-accumulates and "
            "bytes, and the engine is unproven until its GPU ran it[/]"
        )
    render.sentence(
        f"[dim]the original on plain ONNX Runtime, FP32: {original}{report.original_bytes / MEGABYTE:.2f} MB; "
        f"{counted(len(report.trials), 'trial')}, seed {report.seed}, on {escape(report.machine.cpu)}[/]\n"
    )
    shown = [(Facts(chosen=report.chose(one)), one) for one in report.front[:SHOWN]]
    render.table(grid(CANDIDATES, shown))
