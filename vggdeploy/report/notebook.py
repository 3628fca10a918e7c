"""Bundles and results as a notebook shows them: what the report's first screen says, then its tables. Torch-free, no script."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from vggdeploy.bundle import Bundle
from vggdeploy.records import BenchReport, ParityReport, SearchReport
from vggdeploy.records.conclusions import ComparisonReport
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.fit import FitReport
from vggdeploy.records.gpu_day import GpuDay
from vggdeploy.records.profile import ProfileReport
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.report import grids, tables
from vggdeploy.report.answers import Answer, answers
from vggdeploy.report.documents import Document, Result, Results
from vggdeploy.report.sections import sections
from vggdeploy.report.subjects import gather
from vggdeploy.report.tables import Grid
from vggdeploy.system import html

_OPEN = frozenset({"summary", "latency", "parity", "accuracy"})  # the sections that are not folded
_QUIET = frozenset({"machine", "commands", "absent"})


@singledispatch
def html_of(shown: object) -> str | None:
    """HTML of a bundle or a result; None of anything else, which a notebook then prints."""
    return None


@html_of.register
def _bundle(shown: Bundle) -> str:
    manifest = shown.manifest
    return "".join((
        html.heading(manifest.name, manifest.spec.title),
        html.facts((
            ("directory", str(shown.root)),
            ("input", str(manifest.input)),
            ("outputs", ", ".join(map(str, manifest.outputs))),
            ("labels", _some(manifest.labels)),
            ("data", manifest.dataset),
            ("made", manifest.created),
            ("signed by the key", shown.signer),
        )),
        _table(grids.variants(shown)),
    ))  # fmt: skip


def _some(labels: tuple[str, ...], most: int = 12) -> str:
    rest = len(labels) - most
    return ", ".join(labels[:most]) + (f" and {rest:,} more" if rest > 0 else "")


@html_of.register(ParityReport)
@html_of.register(BenchReport)
@html_of.register(EvaluationReport)
@html_of.register(SearchReport)
@html_of.register(FitReport)
@html_of.register(ComparisonReport)
@html_of.register(ShadowReport)
@html_of.register(ProfileReport)
@html_of.register(GpuDay)
def _result(shown: Result) -> str:
    results = Results((Document(Path(), shown),))
    cast = gather(results)
    parts = [_answer(answer) for answer in answers(results, cast)] if cast.subjects or results.gpu_days else []
    for section in sections(results, cast):
        if section.anchor in _QUIET or not (section.grids or section.notes):
            continue
        inside = "".join(map(_table, section.grids)) + "".join(map(html.paragraph, section.notes))
        opened = section.anchor in _OPEN
        parts.append(html.heading(section.title) + inside if opened else html.folded(section.title, inside))
    return "".join(parts)


def _answer(answer: Answer) -> str:
    told = [(fact.name, fact.text) for fact in answer.facts]
    told += [("runner-up", answer.runner_up), ("to settle it", answer.mend), ("use it", answer.command)]
    return html.heading(f"{answer.heading}: {answer.name}", answer.why) + html.facts(told)


def _table(grid: Grid) -> str:
    shown = tables.without_empty_columns(grid)
    rows = [[f"{tables.MARKS[c.light]} {c.text}" if c.light else c.text for c in row] for row in shown.rows]
    return html.table(
        [column.title for column in shown.columns],
        rows,
        left=[column.left for column in shown.columns],
        caption=shown.caption,
    )
