"""A report without pictures: Markdown for people, and CSV with one number a line for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from html import escape
from typing import Any

import msgspec

from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, ParityReport, SearchReport
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.report import hunt
from vggdeploy.report.documents import Document, GpuDetail, Results
from vggdeploy.report.findings import RULE, recommend
from vggdeploy.report.page import Cell, Grid
from vggdeploy.report.sections import sections
from vggdeploy.report.subjects import Cast, measured
from vggdeploy.types import Verdict

_MARKS = {Verdict.PASS: "✔", Verdict.FAIL: "✘", Verdict.INCONCLUSIVE: "?", Verdict.UNPROVEN: "–"}
COLUMNS = ("result", "kind", "variant", "backend", "device", "batch", "scenario", "on", "output", "metric", "value")
_ABOUT = frozenset(COLUMNS) | {"layer", "bundle", "target", "data", "label", "index", "name"}
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~$"})


def markdown(results: Results, cast: Cast, *, title: str) -> str:
    """The findings, then the tables of the HTML page."""
    lines = [f"# {_text(title)}", ""]
    for bench in results.bench:
        if bench.rows:
            found = recommend(bench, cast)
            name = found.label if found.row is not None else "none"
            lines += [f"**Recommended: {_text(name)}.** {_text(found.reason[:1].upper() + found.reason[1:])}.", ""]
    for search in results.searches:
        lines += [f"**The search's winner: {_text(search.chosen or 'none')}.** {_text(hunt.words(search))}", ""]
    if cast.subjects:
        lines += [_text(RULE), "", "| variant | verdict | why |", "|---|---|---|"]
    for s in cast.subjects:
        lines.append(f"| {_text(s.label)} | {_MARKS[s.verdict]} {s.verdict} | {_text(s.why)} |")
    for part in sections(results, cast):
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


def _table(grid: Grid) -> Iterator[str]:
    yield f"**{_text(grid.caption)}**"
    yield ""
    yield f"| {' | '.join(map(_text, grid.columns))} |"
    yield "|" + "".join(
        "---|" if i < grid.left or n in (*grid.words, *grid.long) else "--:|" for i, n in enumerate(grid.columns)
    )
    for row in grid.rows:
        yield f"| {' | '.join(_text(c.text if isinstance(c, Cell) else c) for c in row)} |"


def _text(text: str) -> str:
    """Markdown that shows the text as it is: no HTML, no link, no emphasis, no new column."""
    return escape(one_line(text), quote=False).translate(_SPECIAL)


def comma_separated(results: Results) -> str:
    """Every number of every result, one a line: `COLUMNS`. Lists (quantiles, rounds, …) have an index in their metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for document in results.documents:
        for about, record in _records(document):
            for metric, value in _numbers(msgspec.to_builtins(record)):
                row = {"result": str(document.path), **about, "metric": metric, "value": value}
                writer.writerow([_cell(row.get(column, "")) for column in COLUMNS])
    return out.getvalue()


def _records(document: Document) -> Iterator[tuple[dict[str, Any], Any]]:
    """The parts of a result that hold numbers, with what identifies them."""
    result = document.result
    if isinstance(result, ParityReport):
        for r in result.variants:
            about = {"kind": "parity", **_who(r), "on": r.data}
            yield about, msgspec.structs.replace(r, outputs=())
            for o in r.outputs:
                yield {**about, "output": o.output}, o
        for report in result.layers:
            for layer in report.layers:
                yield {"kind": "layer", "variant": report.variant, "output": layer.layer}, layer
    elif isinstance(result, BenchReport):
        for row in measured(result):
            about = {"kind": "bench", **_who(row), "batch": row.batch, "scenario": getattr(row, "scenario", "")}
            yield {**about, "on": result.data}, row
    elif isinstance(result, EvaluationReport):
        yield {"kind": "evaluation", **_who(result), "on": result.data}, _without_classes(result)
    elif isinstance(result, SearchReport):
        for c in result.front:
            yield {"kind": "search", "variant": c.variant, "backend": c.backend, "output": f"trial {c.trial + 1}"}, c
    elif isinstance(result, GpuDetail):
        for t in result.times:
            yield {"kind": "gpu", "variant": result.variant, "backend": result.backend, "batch": t.batch}, t


def _who(record: Any) -> dict[str, Any]:
    return {"variant": record.variant, "backend": record.backend, "device": record.device}


def _without_classes(report: EvaluationReport) -> EvaluationReport:
    return msgspec.structs.replace(report, classes=(), confusion=None, confused=(), schema_version=0)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float | str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if name or key not in _ABOUT | {"schema_version", "tools"}:
                yield from _numbers(part, f"{name}.{key}" if name else key)
    elif isinstance(value, (list, tuple)):
        if all(isinstance(part, (int, float)) for part in value):
            for index, part in enumerate(value):
                yield f"{name}.{index}", part
    elif isinstance(value, bool):
        yield name, int(value)
    elif isinstance(value, (int, float)) or name == "verdict":
        yield name, value


def _cell(value: Any) -> Any:
    """A spreadsheet runs what begins with one of these as a formula; with a quote before it, it stays text."""
    text = one_line(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text
