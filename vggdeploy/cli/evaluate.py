"""``vggdeploy evaluate``: how well a checkpoint or a variant classifies, and what it takes for what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import DataDir, DeviceName, Json, Threads, samples_from

if TYPE_CHECKING:
    from vggdeploy.records.evaluation import EvaluationReport

REPORT_NAME = "evaluation.json"


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A checkpoint, or a bundle.")],
    dataset: Annotated[
        str, typer.Option("--dataset", "--data", help="The data set. Default: the one trained on.")
    ] = "",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    samples: Annotated[str, typer.Option(metavar="N|all", help="How many images, a random sample; or all.")] = "all",
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant of a bundle.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    data_dir: DataDir = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A directory for the report (JSON) and the confusion matrix (PNG, HTML)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the report that stands there.")] = False,
    json: Json = False,
) -> None:
    """Measure accuracy with its interval, over all and for each class, and the confusion matrix, on a split of a data set."""
    from vggdeploy.cli import render, tables
    from vggdeploy.cli.options import with_command
    from vggdeploy.cli.render import escape
    from vggdeploy.evaluate.evaluate import EvaluateOptions
    from vggdeploy.evaluate.evaluate import evaluate as run
    from vggdeploy.report.pictures import need_plots
    from vggdeploy.system.files import check_replaceable
    from vggdeploy.types import Device

    if output is not None:  # before the work
        need_plots()
        check_replaceable(output, marker=REPORT_NAME, overwrite=force)
    count = samples_from(samples)
    where = Device.parse(device) if device else None
    with render.progress("opening") as tell:
        report = run(
            target,
            EvaluateOptions(
                dataset=dataset,
                split=split,
                samples=count,
                data_dir=data_dir,
                backend=backend,
                variant=variant,
                device=where,
                threads=threads,
            ),
            on_progress=tell,
        )
    report = with_command(report)
    if output is not None:
        _write(report, output, overwrite=force)
    if json:
        render.emit_json(report)
        return
    tables.evaluation_table(report)
    if output is None:
        render.note("[dim]-o DIR writes the report, and the confusion matrix as a picture[/]")
    else:
        render.note(f"[dim]written:[/] {escape(str(output))}")


def _write(report: EvaluationReport, output: Path, *, overwrite: bool) -> None:
    """The report and its pictures, all of them or none."""
    from vggdeploy.records import to_json
    from vggdeploy.report.pictures import write_confusion
    from vggdeploy.system.files import atomic_directory

    with atomic_directory(output, marker=REPORT_NAME, overwrite=overwrite) as draft:
        write_confusion(report, draft)
        (draft / REPORT_NAME).write_bytes(to_json(report))
