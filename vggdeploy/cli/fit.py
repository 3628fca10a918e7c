"""``vggdeploy fit``: the frontier of accuracy and speed as it grows in a terminal, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import DataDir, Force, Json, Modes, Threads, check_modes

if TYPE_CHECKING:
    from vggdeploy.records.fit import FitReport


MODES: Modes = {"--ray-workers": ("--ray",)}


def fit(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder with a folder for each class, a data set's name, or a checkpoint, which then teaches.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write; its page stands beside it.")],
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Percentage points below the teacher (else the most accurate network that was trained), at most.",
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Smallest accuracy that will do.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Largest latency of one image on this machine: 1ms, 800us.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest size of the file: 300kB, 1.5MB.")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME|TRIALS", help="20m, 2h; or a number of networks.")] = "20m",
    teacher: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="A checkpoint or bundle whose answers teach, too.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="BACKBONE",
            help="A trained backbone to start from as well: a checkpoint, torchvision:vgg11_bn, a .pth or .safetensors.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the folds and the choices.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
    samples: Annotated[int, typer.Option(help="Test images to prove variants on.")] = 1000,
    data_dir: DataDir = None,
    threads: Threads = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Train on a Ray cluster, several networks at a time: local, auto or HOST:PORT."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option(help="With --ray: trainings at a time, at most. Default: one for each core.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Make the fastest proven network for your labelled pictures: train, shrink, quantise, prove, in one budget of time."""
    from vggdeploy.cli import render
    from vggdeploy.cli.frontier import watched
    from vggdeploy.cli.options import command_line
    from vggdeploy.errors import EXIT_INTERRUPTED, TargetError
    from vggdeploy.fit.fit import fit as run
    from vggdeploy.fit.goal import goal_words, read_goal
    from vggdeploy.fit.trials import Settings
    from vggdeploy.fit.write import check_page, write_page
    from vggdeploy.search.goals import Budget

    check_modes(context, MODES)
    goal = read_goal(max_accuracy_drop, min_accuracy, max_latency, max_size)
    spent = Budget.parse(budget)
    check_page(output, overwrite=force)
    with watched(goal, spent) as (tell, note):
        settings = Settings(
            seed=seed,
            teacher=teacher,
            init=init,
            data_dir=data_dir,
            threads=threads,
            samples=samples,
            ray=ray,
            ray_workers=ray_workers,
            command=command_line(),
            on_progress=tell,
            on_trial=note,
        )
        report = run(data, output, goal, spent, settings, resume=resume, overwrite=force)
        tell(None, "drawing the page")
        page = write_page(output)
    if json:
        render.emit_json(report)
    else:
        _show(report)
    render.next_steps(f"vggdeploy verify {output}", f"vggdeploy bench {output}", *_going_on(report))
    if page is None:
        render.note("[dim]no page was drawn: pip install 'vggdeploy[bench]', then vggdeploy report "
                    f"{render.escape(str(output / 'fit.json'))} -o page.html[/]")  # fmt: skip
    else:
        render.note(f"[dim]page:[/] {render.escape(str(page))}")
    if report.interrupted:
        return EXIT_INTERRUPTED
    if not report.reached:
        render.error_line(
            f"nothing reaches the goal ({goal_words(goal)}); the closest is kept in {output}",
            "ask for less, or give it more time: --resume --force with a larger --budget",
        )
        return TargetError.exit_code
    return 0


def _going_on(report: FitReport) -> list[str]:
    """The line that goes on with a fit that is not over, and replaces what it has written."""
    line = report.command
    if not line or (report.reached and not report.interrupted):
        return []
    return [" ".join([line, *(flag for flag in ("--resume", "--force") if flag not in line.split())])]


def _show(report: FitReport) -> None:
    """What to take, the files, the frontier, and what would help."""
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.render import escape
    from vggdeploy.report import fits

    tables.answer(report)
    render.table(fits.files(report))
    render.table(fits.networks(report))
    for text in (report.more_time, *report.advice, *fits.roof_words(report), fits.cost_words(report), *report.notes):
        render.out.print(f"[dim]{escape(text)}[/]")
