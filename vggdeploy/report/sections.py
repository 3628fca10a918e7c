"""The parts of a report below its first screen: text, pictures and tables, or what is missing and how to get it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import LayerReport
from vggdeploy.report import findings, fits, grids, layer_times
from vggdeploy.report.comparison_section import comparison_sections
from vggdeploy.report.digits import figures as told_figures
from vggdeploy.report.documents import Results
from vggdeploy.report.findings import shadow_words
from vggdeploy.report.gpu_day_sections import gpu_day_sections
from vggdeploy.report.load_section import load_section
from vggdeploy.report.parts import Figure, Section, drawn, groups, heading
from vggdeploy.report.subjects import Cast
from vggdeploy.report.tables import Grid, row_notes, without_empty_columns
from vggdeploy.types import Verdict


def sections(results: Results, cast: Cast) -> list[Section]:
    """All of them, in the order in which they are read. Of a search alone, no more than it can tell."""
    parts = [
        *fits.sections_of(results),
        *comparison_sections(results),
        _summary(results, cast),
        _distributions(results, cast),
        _throughput(results, cast),
        load_section(results, cast),
        _cost(results, cast),
        _roofline(results, cast),
        *_layer_times(results, cast),
        _parity(results, cast),
        _fleet(results),
        _layers(results),
        _accuracy(results, cast),
        *_searches(results),
        *_shadows(results),
        *(part for day in results.gpu_days for part in gpu_day_sections(day)),
        Section("machine", "Machine and versions", grids=(grids.machines(results),)),
        _commands(results),
    ]
    whole = [
        replace(part, grids=tuple(map(without_empty_columns, part.grids))) for part in parts if part.holds_anything
    ]
    return [*whole, *_absent([part for part in parts if not part.holds_anything])] if cast.subjects else whole


def _summary(results: Results, cast: Cast) -> Section:
    """A line for each variant, where anything was timed or compared on labelled images."""
    known = any(bench.rows for bench in results.bench) or any(s.accuracies for s in cast.subjects)
    return Section("summary", "Every variant", grids=(grids.summary(results, cast),) if known else ())


def _absent(parts: list[Section]) -> list[Section]:
    """What was not measured, in one place at the end: no part of a report is empty."""
    notes = tuple(f"{part.title}: {part.missing}" for part in parts if part.missing)
    return [Section("absent", "Not in these results", notes=notes)] if notes else []


def _distributions(results: Results, cast: Cast) -> Section:
    figures = []
    for bench in results.bench:
        for batch in sorted({r.batch for r in bench.rows if r.quantiles_ms}):
            chosen = [r for r in bench.rows if r.batch == batch and r.quantiles_ms]
            rows = [point for r in chosen for point in findings.tail(r, cast.row(r, bench).label)]
            medians = ", ".join(f"{cast.row(r, bench).label} {told_figures(r.p50_ms)}" for r in chosen)
            text = (
                f"Latency at each percentile, at batch {batch}: every step to the right is ten times as rare, and a line ends "
                f"at its slowest call. Medians in ms: {medians}."
            )
            figures.append(
                Figure(text, drawn("tails", rows, names=groups(cast)), heading(results, bench, f"Batch {batch}"))
            )
    tables = tuple(grids.latency(bench, cast) for bench in results.bench if bench.rows)
    missing = "" if tables else "vggdeploy bench BUNDLE --json"
    if tables and not figures:
        missing = "The distributions are not in these results, which an older vggdeploy made: measure again."
    text = "A flat line is a steady variant; its right end is its tail."
    notes = grids.reasons((f"{cast.row(r, b).label} at {r.batch}", row_notes(r)) for b in results.bench for r in b.rows)
    return Section("latency", "Latency", text if figures else "", tuple(figures), tables, missing=missing, notes=notes)


def _throughput(results: Results, cast: Cast) -> Section:
    figures = []
    for bench in results.bench:
        if len({r.batch for r in bench.rows}) < 2:
            continue
        rows = [
            {
                "label": cast.row(r, bench).label,
                "batch": r.batch,
                "images_per_second": r.images_per_second,
                "p50_ms": r.p50_ms,
                "run": "valid" if r.valid else "invalid",
            }
            for r in bench.rows
        ]
        good = [r for r in bench.rows if r.valid and cast.row(r, bench).verdict is Verdict.PASS]
        best = max(good, key=lambda r: r.images_per_second, default=None)
        most = "no run of a proven variant is valid"
        if best is not None:
            most = f"the most: {cast.row(best, bench).label}, {told_figures(best.images_per_second)} at {best.batch}"
        text = f"Images a second over the batch size; {most}."
        figures.append(Figure(text, drawn("throughput", rows, names=groups(cast)), heading(results, bench)))
    missing = "" if figures else "two batch sizes or more are needed, vggdeploy bench BUNDLE --batch 1,8,32 --json"
    text = "The numbers are in the latency table." if figures else ""
    return Section("throughput", "Throughput against batch", text, tuple(figures), missing=missing)


def _cost(results: Results, cast: Cast) -> Section:
    figures = []
    for bench in results.bench:
        for field, title, unit in (
            ("peak_rss_bytes", "peak memory of a fresh process, MB", 1e6),
            ("cold_start_ms", "cold start: process start to first answer, ms", 1.0),
        ):
            rows = [
                {"label": cast.row(start, bench).label, "value": value / unit, "told": told_figures(value / unit)}
                for start in bench.fresh
                if (value := getattr(start, field)) is not None
            ]
            if rows:
                least = min(rows, key=lambda row: float(row["value"]))
                text = f"{title[0].upper()}{title[1:]}; the least: {least['label']}, {least['told']}."
                draw = drawn("bars", rows, names=groups(cast), title=title)
                figures.append(Figure(text, draw, heading(results, bench)))
    tables = grids.costs(results, cast)
    missing = "" if figures else "vggdeploy bench BUNDLE --json"
    return Section("cost", "Size, memory and start", "", tuple(figures), tables, missing=missing)


def _roofline(results: Results, cast: Cast) -> Section:
    rows = [
        {
            "label": f"{cast.label(g.variant, g.sha256, g.bundle)} on {one_line(g.gpu)}",
            "backend": g.backend,
            "batch": t.batch,
            "tera_ops": t.tera_ops,
            "share": t.roof_share,
        }
        for g in results.gpu
        for t in g.times
    ]
    under = [b for b in results.bench if b.roofs]
    rows += [
        {
            "label": cast.row(r, b).label,
            "backend": r.backend,
            "batch": r.batch,
            "tera_ops": r.tera_ops,
            "share": r.roof_share,
        }
        for b in under
        for r in b.rows
        if r.tera_ops is not None
    ]
    roofs = [
        {"tera_ops": g.roof.tera_ops, "text": f"measured roof, {g.roof.precision}: {g.roof.tera_ops:,.0f} TOP/s"}
        for g in results.gpu
        if g.roof
    ]
    roofs += [
        {
            "tera_ops": r.tera_ops,
            "text": one_line(f"measured roof, {r.precision}: {r.tera_ops:,.3f} TOP/s ({r.library})"),
        }
        for b in under
        for r in b.roofs
    ]
    names = {row["label"]: row["backend"] for row in rows}
    text = "How much of the fastest matrix product measured on that device a variant reaches."
    figures = [Figure(text, drawn("roof", rows, names=names, roofs=roofs))] if rows and roofs else []
    missing = "; ".join(one_line(g.roof_missing) for g in results.gpu if not g.roof)
    if not results.gpu and not under:
        missing = "vggdeploy bench BUNDLE --roof --json (CPUs), or --gpu-detail (an engine)"
    tables = (
        *map(grids.gpu_times, results.gpu),
        *(grids.under_roof(bench, cast) for bench in under),
        *map(grids.roofs, under),
    )
    return Section("roofline", "Roofline", "", tuple(figures), tables, missing=missing)


def _layer_times(results: Results, cast: Cast) -> list[Section]:
    """A section for the kernels' times, where there are any: most reports have none, and miss nothing."""
    found = [(cast.label(p.variant, p.sha256, r.bundle), p) for r in results.profiles for p in r.profiles]
    if not found:
        return []
    figures = tuple(
        Figure(
            layer_times.sentence(p),
            drawn("bars", bars, names={row["label"]: p.backend for row in bars}, title="ms a batch"),
            f"{name}, batch {p.batch}",
        )
        for (name, p), bars in ((each, layer_times.bars(each[1])) for each in found)
    )
    text = "The library timed its own kernels, which slows it down: compare these with each other, and with no latency."
    notes = tuple(f"{name}, batch {p.batch}: {note}" for name, p in found for note in layer_times.notes(p))
    tables = tuple(layer_times.table(p, name) for name, p in found)
    return [Section("layer-times", "The time of each layer", text, figures, tables, notes=notes)]


def _parity(results: Results, cast: Cast) -> Section:
    rows: list[dict[str, Any]] = []
    for report in results.parity:
        for r in report.variants:
            for o in r.outputs:
                told = f"{o.relative_l2:.1e}" if o.relative_l2 else "0"
                rows.append(
                    {
                        "label": cast.label(r.variant, r.sha256, report.bundle),
                        "line": one_line(f"{cast.label(r.variant, r.sha256, report.bundle)} | {o.output}, {r.data}"),
                        "relative_l2": o.relative_l2,
                        "told": told,
                        "verdict": str(r.verdict),
                    }
                )
    floor = min((row["relative_l2"] for row in rows if row["relative_l2"]), default=1e-8) / 10
    for row in rows:
        row["relative_l2"] = row["relative_l2"] or floor
    text = "Relative L2 distance of every output to the FP32 reference. What does not differ at all stands at the left end."
    figures = [Figure(text, drawn("distances", rows, names=groups(cast)))] if rows else []
    tables: tuple[Grid, ...] = grids.parity(results, cast) if results.parity else ()
    if any(report.checks for report in results.parity):
        tables += (grids.checks(results),)
    missing = "" if results.parity else "vggdeploy verify BUNDLE --json"
    notes = grids.reasons(
        (cast.label(r.variant, r.sha256, p.bundle), r.reasons) for p in results.parity for r in p.variants
    )
    return Section("parity", "Parity per output", "", tuple(figures), tables, missing=missing, notes=notes)


def _fleet(results: Results) -> Section:
    found = [report for report in results.parity if report.fleet]
    notes = tuple(reason for report in found for reason in grids.fleet_reasons(report))
    missing = "" if found else "vggdeploy verify BUNDLE --fleet --json"
    return Section("fleet", "On other machines", grids=tuple(map(grids.fleet, found)), missing=missing, notes=notes)


def _layers(results: Results) -> Section:
    reports = [report for parity in results.parity for report in parity.layers]
    figures = tuple(layer_figure(report) for report in reports)
    missing = "" if reports else "vggdeploy verify BUNDLE --layers --json, for an ONNX variant that fails"
    return Section("layers", "Error layer by layer", "", figures, tuple(map(grids.layers, reports)), missing=missing)


def layer_figure(report: LayerReport) -> Figure:
    """The error after each layer, with the culprit marked. An error of 0 stands at the left end, what has no output of the
    reference's shape at the right."""
    above = [r.relative_l2 for r in report.layers if r.relative_l2]
    floor, ceiling = min(above, default=1e-8) / 3, max(above, default=1.0)
    rows = [
        {
            "layer": one_line(r.layer),
            "error": ceiling if r.relative_l2 is None else r.relative_l2 or floor,
            "told": "another shape" if r.relative_l2 is None else f"{r.relative_l2:.1e}",
            "alone": "unknown" if r.isolated is None else f"{r.isolated:.1e}",
            "marked": r.layer == report.culprit,
            "word": "overflow" if not r.finite else "at fault",
            "finite": "NaN or infinity" if not r.finite else "another shape" if r.relative_l2 is None else "finite",
            "max_abs": r.max_abs,
            "cosine_min": r.cosine_min,
            "largest": r.largest,
        }
        for r in report.layers
    ]
    heading = one_line(f"{report.variant} ({report.precision})")
    return Figure(
        f"{heading}: {one_line(report.reason)}.", drawn("layer_errors", rows, culprit=report.culprit), heading
    )


def _accuracy(results: Results, cast: Cast) -> Section:
    if results.evaluations:
        return Section("accuracy", "Accuracy", grids=(grids.evaluations(results.evaluations, cast),))
    known = any(s.accuracies for s in cast.subjects)
    text = "From the images that parity ran on; see the summary." if known else ""
    return Section("accuracy", "Accuracy", text, missing="with intervals and classes, vggdeploy evaluate BUNDLE --json")


def _searches(results: Results) -> list[Section]:
    """A section for the searches, where there are any: most reports have none, and miss nothing."""
    if not results.searches:
        return []
    figures, tables = [], []
    for report in results.searches:
        rows = findings.search_points(report)
        if rows:
            names = {str(row["label"]): str(row["backend"]) for row in rows}
            draw = drawn("front", rows, names=names, measured=report.measured, limit=-100 * report.goal.accuracy_drop)
            figures.append(Figure(findings.search_words(report), draw, one_line(report.bundle)))
        tables.append(grids.candidates(report))
    return [Section("search", "The search for the fastest", "", tuple(figures), tuple(tables))]


def _shadows(results: Results) -> list[Section]:
    """Whether each shadow may take over, and why."""
    return [
        Section(
            "shadow", "The shadow", shadow_words(s), grids=(grids.shadows(s),), notes=tuple(map(one_line, s.reasons))
        )
        for s in results.shadows
    ]


def _commands(results: Results) -> Section:
    lines = [str(getattr(d.result, "command", "")) for d in results.documents]
    commands = tuple(dict.fromkeys(one_line(line) for line in lines if line))
    without = [one_line(d.path.name) for d, line in zip(results.documents, lines, strict=True) if not line]
    missing = f"Made before commands were recorded: {', '.join(without)}." if without else ""
    text = "From the directory that they were run in, these make the results again." if commands else ""
    return Section("repeat", "Repeat it", text, commands=commands, missing=missing)
