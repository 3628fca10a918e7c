"""``vggdeploy report``: what verify, bench and evaluate found, as one file to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import Json


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT.json...", help="What verify, bench, evaluate and search print with --json; a GPU day."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The report: .html (self-contained, opens offline), .md or .csv.")
    ],
    title: Annotated[str, typer.Option(help="Of the report. Default: the bundles' names.")] = "",
    json: Json = False,
) -> None:
    """Make one file of several results: verdicts, what to take and why, pictures and every number."""
    from vggdeploy.cli import render
    from vggdeploy.cli.options import with_command
    from vggdeploy.cli.render import escape
    from vggdeploy.report.write import write_report

    summary = with_command(write_report(results, output, title=title))
    if json:
        render.emit_json(summary)
        return
    for light in summary.lights:
        render.out.print(f"{render.LIGHTS[light.verdict]}  [bold]{escape(light.label)}[/]  [dim]{escape(light.why)}[/]")
    for one in summary.recommended:
        render.out.print(f"recommended: [bold]{escape(one.label or 'none')}[/]; {escape(one.reason)}")
    render.out.print(escape(summary.file))
