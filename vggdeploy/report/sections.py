"""The parts of a report below its first screen: text, pictures and tables, or what is missing and how to get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, LayerReport, ScenarioRow
from vggdeploy.report import findings, grids, layer_times
from vggdeploy.report.documents import Results
from vggdeploy.report.findings import pareto
from vggdeploy.report.subjects import Cast
from vggdeploy.report.tables import Grid, row_notes
from vggdeploy.types import Verdict

if TYPE_CHECKING:
    from vggdeploy.report.plots import Chart


@dataclass(frozen=True)
class Figure:
    """A picture: ``text`` says what is in it to who cannot see it; ``draw`` makes it, and imports Altair."""

    text: str
    draw: Callable[[], Chart]
    heading: str = ""


@dataclass(frozen=True)
class Section:
    """``missing`` says what was not measured, and the command that measures it; ``notes`` why something does not count."""

    anchor: str
    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    grids: tuple[Grid, ...] = ()
    commands: tuple[str, ...] = ()
    missing: str = ""
    notes: tuple[str, ...] = ()

    @property
    def holds_anything(self) -> bool:
        """More than a sentence on what is missing."""
        return bool(self.figures or self.commands or any(grid.rows for grid in self.grids))


def sections(results: Results, cast: Cast) -> list[Section]:
    """All of them, in the order in which they are read. Of a search alone, no more than it can tell."""
    parts = [
        Section("summary", "Every variant", grids=(grids.summary(results, cast),)),
        _distributions(results, cast),
        _throughput(results, cast),
        _load(results, cast),
        _cost(results, cast),
        _roofline(results, cast),
        *_layer_times(results, cast),
        _parity(results, cast),
        _fleet(results),
        _layers(results),
        _accuracy(results, cast),
        *_searches(results),
        Section("machine", "Machine and versions", grids=(grids.machines(results),)),
        _commands(results),
    ]
    return [part for part in parts if cast.subjects or part.holds_anything]


def pareto_figure(bench: BenchReport, cast: Cast) -> Figure | None:
    """Accuracy against latency; None where no accuracy is known."""
    points, data = pareto(bench, cast)
    if not points:
        return None
    rows: list[dict[str, Any]] = [
        {
            "label": p.label,
            "p50_ms": p.row.p50_ms,
            "accuracy": p.accuracy.rate,
            "lower": p.accuracy.lower,
            "upper": p.accuracy.upper,
            "data": one_line(p.accuracy.data),
            "verdict": str(p.verdict),
            "run": "valid" if p.row.valid else "invalid",
            "counts": p.counts,
            "front": p.front,
            "throughput": p.row.images_per_second,
        }
        for p in points
    ]
    best = ", ".join(p.label for p in points if p.front) or "none, since no run counts"
    text = (
        f"Accuracy on {one_line(data)} against p50 latency at batch {points[0].row.batch}. Not beaten in both: {best}. "
        "Filled: proven, and its run is valid; hollow: not."
    )
    return Figure(text, _drawn("pareto", rows, names=_labels(cast)))


def _distributions(results: Results, cast: Cast) -> Section:
    figures = []
    for bench in results.bench:
        for batch in sorted({r.batch for r in bench.rows if r.quantiles_ms}):
            chosen = [r for r in bench.rows if r.batch == batch and r.quantiles_ms]
            names = [cast.row(r, bench).label for r in chosen]
            rows = [
                {"label": name, "ms": ms, "share": index / max(1, len(r.quantiles_ms) - 1)}
                for name, r in zip(names, chosen, strict=True)
                for index, ms in enumerate(r.quantiles_ms)
                if ms > 0
            ]
            medians = ", ".join(f"{name} {r.p50_ms:.3f}" for name, r in zip(names, chosen, strict=True))
            text = f"The share of calls that took at most so long, at batch {batch}. Medians in ms: {medians}."
            figures.append(
                Figure(text, _drawn("ecdf", rows, names=_labels(cast)), _heading(results, bench, f"Batch {batch}"))
            )
    tables = tuple(grids.latency(bench, cast) for bench in results.bench if bench.rows)
    missing = "" if tables else "No latency was measured: vggdeploy bench BUNDLE --json"
    if tables and not figures:
        missing = "The distributions are not in these results, which an older vggdeploy made: measure again."
    text = "A steep line is a steady variant; the upper end of a line is its tail."
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
            most = f"the most: {cast.row(best, bench).label}, {best.images_per_second:,.0f} at {best.batch}"
        text = f"Images a second over the batch size; {most}."
        figures.append(Figure(text, _drawn("throughput", rows, names=_labels(cast)), _heading(results, bench)))
    missing = "" if figures else "Two batch sizes or more are needed: vggdeploy bench BUNDLE --batch 1,8,32 --json"
    text = "The numbers are in the latency table." if figures else ""
    return Section("throughput", "Throughput against batch", text, tuple(figures), missing=missing)


def _load(results: Results, cast: Cast) -> Section:
    servers = [(r, bench) for bench in results.bench for r in bench.scenarios if r.scenario == "server"]
    rows = [
        {
            "label": cast.row(r, bench).label,
            "batch": r.batch,
            "qps": qps,
            "p99_ms": p99,
            "bound_ms": r.latency_bound_ms,
            "run": "valid" if valid else "invalid",
        }
        for r, bench in servers
        for qps, p99, valid in sorted(_tries(r))
    ]
    text = "p99 latency of the server scenario over the rate of its queries, and the bound that was asked for."
    figures = (Figure(text, _drawn("server", rows, names=_labels(cast))),) if rows else ()
    tables = tuple(grids.scenarios(bench, cast) for bench in results.bench if bench.scenarios)
    searched = [b for b in results.bench if any(r.search for r in b.scenarios)]
    tables += tuple(grids.tries(bench, cast) for bench in searched)
    ask = "vggdeploy bench BUNDLE --scenario server --target-qps Q --latency-bound MS --json"
    missing = "" if rows else f"The server scenario was not run: {ask}"
    notes = grids.reasons(
        (f"{cast.row(r, b).label}, {r.scenario} at {r.batch}", row_notes(r)) for b in results.bench for r in b.scenarios
    )
    return Section("load", "Latency under load", "", figures, tables, missing=missing, notes=notes)


def _cost(results: Results, cast: Cast) -> Section:
    figures = []
    for bench in results.bench:
        for field, title, unit, form in (
            ("peak_rss_bytes", "peak memory of a fresh process (MB)", 1e6, ",.1f"),
            ("cold_start_ms", "cold start: process start to first answer (ms)", 1.0, ",.0f"),
        ):
            rows = [
                {"label": cast.row(start, bench).label, "value": value / unit}
                for start in bench.fresh
                if (value := getattr(start, field)) is not None
            ]
            if rows:
                least = min(rows, key=lambda row: float(row["value"]))
                text = f"{title[0].upper()}{title[1:]}; the least: {least['label']}, {format(least['value'], form)}."
                figures.append(Figure(text, _drawn("bars", rows, title=title, unit=form), _heading(results, bench)))
    tables = grids.costs(results, cast)
    missing = "" if figures else "Memory and cold start come from a bench: vggdeploy bench BUNDLE --json"
    return Section("cost", "Size, memory and start", "", tuple(figures), tables, missing=missing)


def _tries(row: ScenarioRow) -> set[tuple[float, float, bool]]:
    """(rate, p99, valid) of a server's row, and of every run of the search that led to it."""
    tries = [(row.target_qps, row.p99_ms, row.valid)]
    tries += [(t.qps, t.p99_ms, t.valid) for t in (row.search.tries if row.search else ())]
    return {(qps, p99, valid) for qps, p99, valid in tries if qps and p99}


def _roofline(results: Results, cast: Cast) -> Section:
    rows = [
        {
            "label": f"{cast.label(g.variant, g.sha256, g.bundle)} on {one_line(g.gpu)}",
            "batch": t.batch,
            "tera_ops": t.tera_ops,
            "share": t.roof_share,
        }
        for g in results.gpu
        for t in g.times
    ]
    under = [b for b in results.bench if b.roofs]
    rows += [
        {"label": cast.row(r, b).label, "batch": r.batch, "tera_ops": r.tera_ops, "share": r.roof_share}
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
    names = list(dict.fromkeys(row["label"] for row in rows))
    text = "How much of the fastest matrix product measured on that device a variant reaches."
    figures = [Figure(text, _drawn("roof", rows, names=names, roofs=roofs))] if rows and roofs else []
    missing = "; ".join(one_line(g.roof_missing) for g in results.gpu if not g.roof)
    if not results.gpu and not under:
        missing = "A measured roof comes from: vggdeploy bench BUNDLE --roof --json (CPUs), or --gpu-detail (an engine)"
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
            _drawn("bars", layer_times.bars(p), title="ms a batch", unit=",.3f"),
            f"{name}, batch {p.batch}",
        )
        for name, p in found
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
                told = f"{o.relative_l2:.1e}" if o.relative_l2 else "0: not one bit differs"
                rows.append(
                    {
                        "label": cast.label(r.variant, r.sha256, report.bundle),
                        "output": one_line(f"{o.output} | {r.data}"),
                        "relative_l2": o.relative_l2,
                        "told": told,
                        "verdict": str(r.verdict),
                    }
                )
    floor = min((row["relative_l2"] for row in rows if row["relative_l2"]), default=1e-8) / 10
    for row in rows:
        row["relative_l2"] = row["relative_l2"] or floor
    text = "Relative L2 distance of every output to the FP32 reference. What does not differ at all stands at the left end."
    figures = [Figure(text, _drawn("distances", rows, names=_labels(cast)))] if rows else []
    tables: tuple[Grid, ...] = (grids.parity(results, cast),) if results.parity else ()
    if any(report.checks for report in results.parity):
        tables += (grids.checks(results),)
    missing = "" if results.parity else "No comparison with the reference: vggdeploy verify BUNDLE --json"
    notes = grids.reasons(
        (cast.label(r.variant, r.sha256, p.bundle), r.reasons) for p in results.parity for r in p.variants
    )
    return Section("parity", "Parity per output", "", tuple(figures), tables, missing=missing, notes=notes)


def _fleet(results: Results) -> Section:
    found = [report for report in results.parity if report.fleet]
    notes = tuple(reason for report in found for reason in grids.fleet_reasons(report))
    missing = "" if found else "No other machine was asked: vggdeploy verify BUNDLE --fleet --json"
    return Section("fleet", "On other machines", grids=tuple(map(grids.fleet, found)), missing=missing, notes=notes)


def _layers(results: Results) -> Section:
    reports = [report for parity in results.parity for report in parity.layers]
    figures = tuple(layer_figure(report) for report in reports)
    missing = (
        ""
        if reports
        else "No layers were compared: vggdeploy verify BUNDLE --layers --json, for an ONNX variant that fails"
    )
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
        f"{heading}: {one_line(report.reason)}.", _drawn("layer_errors", rows, culprit=report.culprit), heading
    )


def _accuracy(results: Results, cast: Cast) -> Section:
    if results.evaluations:
        return Section("accuracy", "Accuracy", grids=(grids.evaluations(results.evaluations, cast),))
    known = any(s.accuracies for s in cast.subjects)
    text = "From the images that parity ran on; see the summary." if known else ""
    return Section("accuracy", "Accuracy", text, missing="With intervals and classes: vggdeploy evaluate BUNDLE --json")


def _searches(results: Results) -> list[Section]:
    """A section for the searches, where there are any: most reports have none, and miss nothing."""
    if not results.searches:
        return []
    figures, tables = [], []
    for report in results.searches:
        rows = findings.search_points(report)
        if rows:
            draw = _drawn("front", rows, measured=report.measured)
            figures.append(Figure(findings.search_words(report), draw, one_line(report.bundle)))
        tables.append(grids.candidates(report))
    return [Section("search", "The search for the fastest", "", tuple(figures), tuple(tables))]


def _commands(results: Results) -> Section:
    lines = [str(getattr(d.result, "command", "")) for d in results.documents]
    commands = tuple(dict.fromkeys(one_line(line) for line in lines if line))
    without = [one_line(d.path.name) for d, line in zip(results.documents, lines, strict=True) if not line]
    missing = f"Made before commands were recorded: {', '.join(without)}." if without else ""
    text = "From the directory that they were run in, these make the results again." if commands else ""
    return Section("repeat", "Repeat it", text, commands=commands, missing=missing)


def _labels(cast: Cast) -> list[str]:
    """All variants of the report: each has one colour in all of its pictures."""
    return [subject.label for subject in cast.subjects]


def _heading(results: Results, bench: BenchReport, text: str = "") -> str:
    """What a picture of one bench is called: the bench is named where there are several."""
    run = grids.run_name(bench) if len([b for b in results.bench if b.rows]) > 1 else ""
    return ": ".join(part for part in (text, run) if part)


def _drawn(chart: str, rows: list[dict[str, Any]], **more: Any) -> Callable[[], Chart]:
    """What draws one of `vggdeploy.report.charts`."""

    def draw() -> Chart:
        from vggdeploy.report import charts  # only now: it imports Altair

        drawn: Chart = getattr(charts, chart)(rows, **more)
        return drawn

    return draw
