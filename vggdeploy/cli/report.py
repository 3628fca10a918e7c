"""``vggdeploy report``: what verify, bench and evaluate found, as one file to share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import Json

if TYPE_CHECKING:
    from vggdeploy.report.documents import Document


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT.json",
            help="What verify, bench, compare, evaluate and search print with --json; a GPU day.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The report: .html (self-contained, opens offline), .md or .csv.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="OLD.json",
            help="An earlier bench of the same bundle, which the new one is held against; several runs with commas.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the report. Default: the bundles' names.")] = "",
    json: Json = False,
) -> None:
    """Make one file of several results: verdicts, what to take and why, pictures and every number."""
    from vggdeploy.cli import render
    from vggdeploy.cli.options import with_command
    from vggdeploy.cli.render import escape
    from vggdeploy.report.write import write_report

    compared = compare_with(baseline, results) if baseline else ()
    summary = with_command(write_report(results, output, title=title, made=compared))
    if json:
        render.emit_json(summary)
        return
    for light in summary.lights:
        render.sentence(
            f"[dim]{escape(light.why)}[/]", f"{render.LIGHTS[light.verdict]}  [bold]{escape(light.label)}[/]  "
        )
    for one in summary.recommended:
        render.sentence(f"recommended: [bold]{escape(one.label or 'none')}[/]; {escape(one.reason)}")
    render.out.print(escape(summary.file))


def compare_with(baseline: str, results: Sequence[Path]) -> tuple[Document, ...]:
    """The benches among the results beside earlier ones: those of several bundles each beside the earlier ones of its own.

    Raises:
        UsageError: none of the results is a bench, or the two sides have nothing in common.
    """
    from vggdeploy.bench.compare import compare_files
    from vggdeploy.cli.compare import files
    from vggdeploy.errors import UsageError
    from vggdeploy.report.documents import Document

    new, old = (_by_bundle(paths) for paths in (results, files(baseline)))
    if not new:
        raise UsageError("none of these results is of bench, so nothing can be held against the baseline", "give one")
    if len(new) == 1 and len(old) == 1:  # perhaps at another path: the variants tell whether they compare
        pairs = [(*old.values(), *new.values())]
    else:
        for bundle in new:
            if bundle not in old:
                raise UsageError(f"the baseline has no bench of {bundle}", "give one of each bundle, with commas")
        pairs = [(old[bundle], paths) for bundle, paths in new.items()]
    return tuple(Document(before[0], compare_files(before, after)) for before, after in pairs)


def _by_bundle(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The benches among these files, by the bundle that they measured."""
    from vggdeploy.records import BenchReport
    from vggdeploy.report.documents import read_results

    found: dict[str, list[Path]] = {}
    for document in read_results(paths).documents:
        if isinstance(document.result, BenchReport):
            found.setdefault(document.result.bundle, []).append(document.path)
    return found
