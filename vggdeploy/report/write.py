"""Results in, one file out. Importing this needs no Altair; writing HTML does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vggdeploy.errors import UsageError, one_line
from vggdeploy.records import BenchReport
from vggdeploy.records.conclusions import Recommended, ReportSummary, VariantLight
from vggdeploy.report.curves import need_plots
from vggdeploy.report.documents import Results, read_results
from vggdeploy.report.findings import recommend
from vggdeploy.report.subjects import Cast, gather, short_path
from vggdeploy.report.text import comma_separated, markdown
from vggdeploy.system.files import atomic_write

SUFFIXES = (".html", ".md", ".csv")


def write_report(sources: Sequence[Path], target: Path, *, title: str = "") -> ReportSummary:
    """Make one report of several results of ``verify``, ``bench`` and ``evaluate``; whole, or not at all.

    Args:
        sources: JSON files, in any order.
        target: its suffix is the format: .html (self-contained), .md or .csv.
        title: default: the names of the bundles.

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
    return one_line(f"Report: {', '.join(dict.fromkeys(map(short_path, paths)))}")


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
            VariantLight(label=s.label, variant=s.variant, sha256=s.sha256, verdict=s.verdict, why=s.why)
            for s in cast.subjects
        ),
        recommended=tuple(
            Recommended(bench=str(path), label=take.label if take.row else None, reason=take.reason)
            for path, take in takes
        ),
    )
