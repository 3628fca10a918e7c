"""Results in, one file out: a page, Markdown for people, or CSV for programs. Only writing the page needs Altair."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vggdeploy.errors import UsageError, one_line
from vggdeploy.records import BenchReport, ParityRecord, ParityReport, SearchReport
from vggdeploy.records.conclusions import ComparisonReport, Recommended, ReportSummary, VariantLight
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.fit import FitReport
from vggdeploy.records.gpu import GpuReport
from vggdeploy.records.gpu_day import CopyRate, GpuDay, NetworkRate, OperationRate
from vggdeploy.records.profile import ProfileReport
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.report import fits, gpu_day_sections, gpu_tables, layer_times, tables
from vggdeploy.report.answers import Answer, answers
from vggdeploy.report.documents import Document, Result, Results, read_results
from vggdeploy.report.findings import RULE, recommend
from vggdeploy.report.pictures import need_plots
from vggdeploy.report.sections import sections
from vggdeploy.report.server_tables import SERVER
from vggdeploy.report.subjects import Cast, gather, short_path
from vggdeploy.report.tables import Cell, Grid
from vggdeploy.system.files import atomic_write

SUFFIXES = (".html", ".md", ".csv")
COLUMNS = ("result", "kind", "variant", "backend", "device", "batch", "scenario", "on", "output", "metric", "value")
_Line = tuple[dict[str, Any], Sequence[tables.Column], tables.Row]
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~$"})


def write_report(
    sources: Sequence[Path], target: Path, *, title: str = "", made: Sequence[Document] = ()
) -> ReportSummary:
    """Make one report of several results of ``verify``, ``bench`` and ``evaluate``; whole, or not at all.

    Args:
        sources: JSON files, in any order.
        target: its suffix is the format: .html (self-contained), .md or .csv.
        title: default: the names of the bundles.
        made: results that are in no file, such as a comparison with a baseline; each with the file that it is about.

    Raises:
        UsageError: another suffix.
        InputError, BundleError: a source that is no result.
        MissingDependencyError: HTML, and Altair or vl-convert is not installed.
    """
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{target} ends in none of {', '.join(SUFFIXES)}", "name the report so: -o report.html")
    if suffix == ".html":
        need_plots()
    results = read_results(sources)
    results = Results((*results.documents, *made))
    cast = gather(results)
    name = one_line(title) or _title(results)
    if suffix == ".html":
        from vggdeploy.report.html import report_page  # only now: it imports Altair

        text = report_page(results, cast, title=name)
    elif suffix == ".md":
        text = markdown(results, cast, title=name)
    else:
        text = comma_separated(results)
    atomic_write(target, text.encode())
    return _summary(results, cast, target)


def _title(results: Results) -> str:
    paths = [getattr(d.result, "bundle", "") or getattr(d.result, "target", "") for d in results.documents]
    paths += [s.shadow.model for s in results.shadows]
    gpus = [day.gpu.partition(",")[0] for day in results.gpu_days]
    return one_line(f"Report: {', '.join(dict.fromkeys([*map(short_path, filter(None, paths)), *gpus]))}")


def _summary(results: Results, cast: Cast, target: Path) -> ReportSummary:
    takes = [
        (d.path, recommend(d.result, cast))
        for d in results.documents
        if isinstance(d.result, BenchReport) and d.result.rows
    ]
    return ReportSummary(
        file=str(target),
        sources=tuple(str(d.path) for d in results.documents),
        lights=tuple(
            VariantLight(
                label=s.label,
                variant=s.variant,
                sha256=s.sha256,
                verdict=s.verdict,
                numerical=s.numerical,
                bounds=s.bounds,
                why=s.why,
            )
            for s in cast.subjects
        ),
        recommended=tuple(
            Recommended(bench=str(path), label=take.label if take.row else None, reason=take.reason)
            for path, take in takes
        ),
    )


def markdown(results: Results, cast: Cast, *, title: str) -> str:
    """The findings, then the tables of the HTML page."""
    lines = [f"# {_text(title)}", ""]
    for answer in answers(results, cast):
        lines += _answer(answer)
    if cast.subjects:
        lines += [_text(RULE), "", "| variant | verdict | of which | why |", "|---|---|---|---|"]
    for s in cast.subjects:
        lines.append(f"| {_text(s.label)} | {_cell(tables.verdict_cell(s.verdict))} | {s.apart} | {_text(s.why)} |")
    for part in sections(results, cast):
        if not (part.grids or part.commands or part.notes):
            continue  # a picture, whose numbers are in another part's table
        lines += ["", f"## {part.title}", ""]
        for text in (part.text, part.missing, *(f"- {note}" for note in part.notes)):
            if text:
                lines += [f"- {_text(text[2:])}" if text.startswith("- ") else _text(text), ""]
        for grid in part.grids:
            lines += [*_table(grid), ""]
        if part.commands:
            fence = "`" * 3
            lines += [f"{fence}sh", *part.commands, fence, ""]
    return "\n".join(lines).rstrip() + "\n"


def _answer(answer: Answer) -> Iterator[str]:
    yield f"**{_text(answer.heading)}: {_text(answer.name)}.** {_text(answer.why[:1].upper() + answer.why[1:])}."
    yield ""
    yield from (f"- {_text(fact.name)}: {_text(fact.text)}" for fact in answer.facts)
    for word, text in (("to settle it", answer.mend), ("runner-up", answer.runner_up)):
        if text:
            yield f"- {word}: {_text(text)}"
    if answer.command:
        yield f"- use it: {_text(answer.command)}"
    yield ""


def _table(grid: Grid) -> Iterator[str]:
    yield f"**{_text(grid.caption)}**"
    yield ""
    yield f"| {' | '.join(_text(column.title) for column in grid.columns)} |"
    yield "|" + "".join("---|" if column.left else "--:|" for column in grid.columns)
    for row in grid.rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(cell: Cell) -> str:
    return f"{tables.MARKS[cell.light]} {_text(cell.text)}" if cell.light else _text(cell.text)


def _text(text: str) -> str:
    """Markdown that shows the text as it is: no HTML, no link, no emphasis, no new column."""
    return escape(one_line(text), quote=False).translate(_SPECIAL)


def comma_separated(results: Results) -> str:
    """Every number of every result, one a line: `COLUMNS`. Lists (quantiles, rounds, …) have an index in their metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for document in results.documents:
        for about, columns, row in _records(document.result):
            for metric, value in tables.numbers(columns, row).items():
                if metric not in COLUMNS:
                    line = {"result": str(document.path), **about, "metric": metric, "value": value}
                    writer.writerow([_harmless(line.get(column, "")) for column in COLUMNS])
    return out.getvalue()


def _records(result: Result) -> Iterator[_Line]:
    """The parts of a result that hold numbers: what identifies them, and the columns that name their numbers."""
    if isinstance(result, ParityReport):
        yield from _parity_records("parity", result.variants)
        for target in result.fleet:
            yield from _parity_records("fleet", target.variants)
        for report in result.layers:
            for layer in report.layers:
                about: dict[str, Any] = {"kind": "layer", "variant": report.variant, "output": layer.layer}
                yield about, tables.LAYERS, (layer,)
    elif isinstance(result, BenchReport):
        yield from _bench_records(result)
    elif isinstance(result, EvaluationReport):
        yield {"kind": "evaluation", **_who(result), "on": result.data}, tables.EVALUATIONS, (result,)
    elif isinstance(result, (SearchReport, FitReport)):
        yield from _tried(result)
    elif isinstance(result, ShadowReport):
        yield from _shadow_records(result)
    elif isinstance(result, ProfileReport):
        yield from _profile_records(result)
    elif isinstance(result, GpuDay):
        yield from _day_records(result)
    elif isinstance(result, ComparisonReport):
        yield from _comparison_records(result)
    elif isinstance(result, GpuReport):
        gpu = {"kind": "gpu", "variant": result.variant, "backend": result.backend}
        yield from (({**gpu, "batch": t.batch}, gpu_tables.TIMES, (t,)) for t in result.times)


def _tried(result: SearchReport | FitReport) -> Iterator[_Line]:
    found = isinstance(result, SearchReport)
    for one in result.front if isinstance(result, SearchReport) else result.variants:
        about = {"variant": one.variant, "backend": one.backend, "output": f"trial {one.trial + 1}"}
        yield {"kind": "search" if found else "fit", **about}, tables.CANDIDATES if found else fits.FILES, (one,)


def _shadow_records(report: ShadowReport) -> Iterator[_Line]:
    about = {"kind": "shadow"}
    yield {**about, "variant": report.served.variant, "output": "served"}, tables.SHADOWS, (report.served,)
    yield {**about, "variant": report.shadow.variant, "output": "shadow"}, tables.SHADOWS, (report.shadow, report)


def _profile_records(result: ProfileReport) -> Iterator[_Line]:
    for profile in result.profiles:
        about = {"kind": "layer times", **_who(profile), "batch": profile.batch, "on": result.data}
        for kernel, row in zip(profile.kernels, layer_times.rows(profile), strict=True):
            yield {**about, "output": " + ".join(kernel.layers)}, layer_times.COLUMNS, row


def _comparison_records(result: ComparisonReport) -> Iterator[_Line]:
    for row in result.rows:
        about = {"kind": "comparison", **_who(row), "batch": row.batch, "scenario": row.scenario}
        yield about, tables.COMPARISON, (row,)


def _day_records(day: GpuDay) -> Iterator[_Line]:
    kinds = {NetworkRate: gpu_day_sections.NETWORKS, OperationRate: gpu_day_sections.OPERATIONS}
    for step in day.steps:
        for reading in step.readings:
            if isinstance(reading, (NetworkRate, OperationRate)):
                what = reading.network if isinstance(reading, NetworkRate) else f"{reading.operation} {reading.shape}"
                about = {"kind": "gpu day", "variant": what, "backend": reading.by, "output": reading.precision}
                yield about, kinds[type(reading)], (reading,)
            elif isinstance(reading, CopyRate):
                way = "to the GPU" if reading.to_gpu else "from the GPU"
                about = {
                    "kind": "gpu day",
                    "variant": f"copy {way}",
                    "output": "pinned" if reading.pinned else "pageable",
                }
                yield about, gpu_day_sections.COPIES, (reading,)


def _parity_records(kind: str, records: Sequence[ParityRecord]) -> Iterator[_Line]:
    for r in records:
        about = {"kind": kind, **_who(r), "on": r.data}
        yield about, tables.PARITY, (r,)
        for o in r.outputs:
            yield {**about, "output": o.output}, tables.PARITY, (o,)


def _bench_records(bench: BenchReport) -> Iterator[_Line]:
    columns = (*tables.BENCH, *tables.SHARES, *tables.UNDER_ROOF)
    for row in bench.rows:
        yield {"kind": "bench", **_who(row), "batch": row.batch, "on": bench.data}, columns, (row,)
    for case in bench.scenarios:
        about = {"kind": "bench", **_who(case), "batch": case.batch, "scenario": case.scenario, "on": bench.data}
        yield about, tables.SCENARIOS if bench.server is None else SERVER, (case,)
    for f in bench.fresh:
        about = {"kind": "start", "variant": f.variant, "backend": f.backend, "batch": f.batch}
        yield about, tables.STARTS, (f,)
    for roof in bench.roofs:
        yield {"kind": "roof", "backend": roof.library, "output": str(roof.precision)}, tables.ROOFS, (roof,)


def _who(record: Any) -> dict[str, Any]:
    return {"variant": record.variant, "backend": record.backend, "device": record.device}


def _harmless(value: Any) -> Any:
    """A spreadsheet runs what begins with one of these as a formula; with a quote before it, it stays text."""
    text = one_line(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text
