"""The tables of a report, from the columns of `vggdeploy.report.tables`: which rows they have, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vggdeploy.bundle import REFERENCE, Bundle, Variant
from vggdeploy.errors import counted, one_line
from vggdeploy.records import BenchReport, LayerReport, ParityRecord, ParityReport, SearchReport
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.fit import FitReport
from vggdeploy.records.gpu import GpuReport
from vggdeploy.records.gpu_day import GpuDay
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.report import gpu_tables, tables
from vggdeploy.report.documents import Results
from vggdeploy.report.findings import smallest_batch
from vggdeploy.report.server_tables import SERVER
from vggdeploy.report.subjects import Cast, Named
from vggdeploy.report.tables import Cell, Column, Facts, Grid, Row, grid
from vggdeploy.system.machine import fingerprint


def reasons(told: Iterable[tuple[str, Iterable[str]]]) -> tuple[str, ...]:
    """Each reason once, with those it holds for. ``told``: (who, reasons)."""
    holders: dict[str, list[str]] = {}
    for who, why in told:
        for reason in why:
            holders.setdefault(one_line(reason), []).append(who)
    return tuple(f"{', '.join(dict.fromkeys(who))}: {reason}" for reason, who in holders.items())


def variants(bundle: Bundle) -> Grid:
    """What a bundle holds: a row for each variant."""
    return grid(tables.VARIANTS, [_variant(bundle, variant) for variant in bundle.manifest.variants])


def _variant(bundle: Bundle, variant: Variant) -> Row:
    """With the median that was measured on this kind of machine at the smallest batch, if any was."""
    here = [m for m in variant.measured if m.machine == fingerprint()]
    smallest = min(here, key=lambda m: m.batch, default=None)
    outputs = variant.parity.outputs if variant.parity else ()
    facts = Facts(
        verdict="reference" if variant.name == REFERENCE else variant.verdict,
        numerical=variant.parity.numerical if variant.parity and variant.name != REFERENCE else None,
        bounds=variant.parity.bounds if variant.parity and variant.name != REFERENCE else None,
        size=bundle.size(variant),
        relative_l2=max((o.relative_l2 for o in outputs), default=None),
        p50_ms=smallest.p50_ms if smallest else None,
        p50_batch=smallest.batch if smallest else None,
    )
    return facts, variant


def summary(results: Results, cast: Cast) -> Grid:
    """A row for each variant: its verdict, its accuracy, and what each bench measured at its smallest batch."""
    several = len([b for b in results.bench if b.rows]) > 1
    rows: list[Row] = []
    for subject in cast.subjects:
        accuracy = subject.accuracies[0].rate if subject.accuracies else None
        about = {"variant": subject.label, "verdict": subject.verdict, "accuracy": accuracy}
        measured: list[Row] = [
            (Facts(**about, measured_in=run_name(bench)), row)
            for bench in results.bench
            for row in smallest_batch(bench)
            if cast.row(row, bench) is subject
        ]
        rows += measured or [(Facts(**about),)]
    return grid(tables.SUMMARY if several else tables.SUMMARY[:-1], rows, "Every variant in one line")


def of_bench(title: str, columns: Sequence[Column], bench: BenchReport, cast: Cast, records: Iterable[Named]) -> Grid:
    """A row for each of ``records`` of a bench, with the names and the verdicts that the report has for its variants."""
    subjects = ((cast.row(record, bench), record) for record in records)
    rows = [(Facts(variant=subject.label, verdict=subject.verdict), record) for subject, record in subjects]
    return grid(columns, rows, f"{title}: {run_name(bench)}")


def latency(bench: BenchReport, cast: Cast) -> Grid:
    return of_bench("Latency and throughput", tables.BENCH, bench, cast, bench.rows)


def scenarios(bench: BenchReport, cast: Cast) -> Grid:
    if bench.server is not None:
        return of_bench(f"The server at {bench.server.url}", SERVER, bench, cast, bench.scenarios)
    return of_bench("MLPerf LoadGen", tables.SCENARIOS, bench, cast, bench.scenarios)


def under_roof(bench: BenchReport, cast: Cast) -> Grid:
    rows = [r for r in bench.rows if r.tera_ops is not None]
    return of_bench("Under the roof", tables.UNDER_ROOF, bench, cast, rows)


def roofs(bench: BenchReport) -> Grid:
    """The fastest matrix product measured of each precision."""
    return grid(tables.ROOFS, [(roof,) for roof in bench.roofs], f"The roofs: {run_name(bench)}")


def costs(results: Results, cast: Cast) -> tuple[Grid, ...]:
    """The fresh processes of each bench, then where the time and the energy of an image go."""
    starts = [
        of_bench("Size, memory and start", tables.STARTS, bench, cast, bench.fresh)
        for bench in results.bench
        if bench.fresh
    ]
    shares = [
        of_bench("An image through classify", tables.SHARES, bench, cast, bench.rows)
        for bench in results.bench
        if tables.has_shares(bench)
    ]
    return (*starts, *shares)


def tries(bench: BenchReport, cast: Cast) -> Grid:
    """Every run of the searches for the highest rate."""
    rows = [
        (Facts(variant=cast.row(r, bench).label, batch=r.batch), t, r.search)
        for r in bench.scenarios
        if r.search is not None
        for t in r.search.tries
    ]
    return grid(tables.TRIES, rows, f"The search for the highest rate: {run_name(bench)}")


def gpu_times(detail: GpuReport) -> Grid:
    return grid(gpu_tables.TIMES, [(t,) for t in detail.times], f"{detail.variant} on {detail.gpu}")


# A page's width holds no more: what is of an output, and what is of all of them.
_OF_AN_OUTPUT = ("output", "max_abs", "mean_abs", "relative_l2", "cosine_min", "snr_db", "tolerance")
_OF_ALL = ("flips.upper", "drop.drop", "candidate_accuracy", "batches", "stress", "repeats.calls", "backend")


def parity(results: Results, cast: Cast) -> tuple[Grid, Grid]:
    """A row for each variant, data set and output with its distances; then one for each variant and data set."""
    records = [
        (Facts(variant=cast.label(r.variant, r.sha256, report.bundle)), r)
        for report in results.parity
        for r in report.variants
    ]
    outputs = [(about, r, output) for about, r in records for output in r.outputs or (None,)]
    return (
        grid([c for c in tables.PARITY if c.key not in _OF_ALL], outputs, "Parity of every output"),
        grid([c for c in tables.PARITY if c.key not in _OF_AN_OUTPUT], records, "What else was asked of each variant"),
    )


def checks(results: Results) -> Grid:
    """What was compared of each bundle as a whole."""
    rows = [(Facts(bundle=report.bundle), check) for report in results.parity for check in report.checks]
    return grid(tables.CHECKS, rows, "What the manifest says")


def fleet(report: ParityReport) -> Grid:
    """A row for each target, a column for each variant: its verdict, and its distance where it answered."""
    first, *others = tables.FLEET
    names = [record.variant for record in report.fleet[0].variants]
    rows = []
    for found in report.fleet:
        about = Facts(
            target=found.target,
            isa=" ".join(found.isa),
            tools=", ".join(f"{name} {text}" for name, text in found.tools.items()),
        )
        told = [column.cell((about,)) for column in tables.FLEET]
        rows.append([told[0], *map(_fleet_cell, found.variants), *told[1:]])
    columns = (first, *(Column("", one_line(name), left=True) for name in names), *others)
    return Grid("The golden pair on other machines, relative L2", columns, rows)


def fleet_reasons(report: ParityReport) -> tuple[str, ...]:
    """Why a variant failed or could not run on a target, each reason once."""
    return reasons((f"{r.variant} on {t.target}", r.reasons) for t in report.fleet for r in t.variants)


def _fleet_cell(record: ParityRecord) -> Cell:
    farthest = max((output.relative_l2 for output in record.outputs), default=None)
    told = f"{record.verdict} {farthest:.1e}" if farthest is not None else str(record.verdict)
    return Cell(told, farthest, record.verdict)


def layers(report: LayerReport) -> Grid:
    """Every layer in order, with the culprit named."""
    return grid(tables.LAYERS, tables.layer_rows(report), f"The layers of {report.variant}")


def evaluations(found: Sequence[EvaluationReport], cast: Cast) -> Grid:
    rows = [(Facts(variant=cast.label(e.variant, e.sha256, e.target)), e) for e in found]
    return grid(tables.EVALUATIONS, rows, "Accuracy")


def shadows(report: ShadowReport) -> Grid:
    """The two that were compared. Their times are taken under other conditions: each is its own."""
    sides = (("served", report.served), ("shadow", report.shadow))
    return grid(tables.SHADOWS, [(Facts(label=name), side) for name, side in sides], "Served and shadow")


def classes(report: EvaluationReport) -> Grid:
    """Each class in numbers, and what it was most often taken for."""
    names = distinct([c.label for c in report.classes])
    pairs = {pair.label: f"{names[pair.predicted]} ({pair.images:,})" for pair in reversed(report.confused)}
    rows = [(Facts(label=names[c.index], taken=pairs.get(c.index)), c) for c in report.classes]
    return grid(tables.CLASSES, rows, "Each class in numbers")


def candidates(report: SearchReport) -> Grid:
    """The front of a search."""
    rows = [(Facts(chosen=report.chose(c)), c) for c in report.front]
    return grid(tables.CANDIDATES, rows, f"The front of {report.bundle}")


def machines(results: Results) -> Grid:
    """Where and with which versions each result was taken."""
    rows: list[Row] = []
    for document in results.documents:
        result = document.result
        machine, threads = "", ""
        if isinstance(result, BenchReport):
            m = result.machine
            gpu = f", {m.gpu}" if m.gpu else ", no GPU"
            machine = f"{m.cpu}, {m.cores} cores, {m.memory_gib:g} GiB{gpu}; {m.system}; Python {m.python}"
            machine += f"; {' '.join(m.features)}" if m.features else ""
            threads = str(result.threads)
            if (c := result.conditions) is not None:
                told = {"commit": c.commit, "governor": c.governor, "pinned": "yes" if c.pinned else None}
                machine += "".join(f"; {name} {text}" for name, text in told.items() if text)
        elif isinstance(result, (SearchReport, FitReport)):
            machine = f"{result.machine.cpu}, {result.machine.cores} cores"
        elif isinstance(result, (GpuReport, GpuDay)):
            machine = result.gpu
        tools = getattr(result, "tools", {}) or getattr(result, "packages", {}) or _tools(result)
        versions = ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
        about = Facts(path=str(document.path), machine=machine, threads=threads, versions=versions)
        rows.append((about, result))
    return grid(tables.MACHINES, rows, "Machine and versions")


def _tools(result: object) -> dict[str, str]:
    """A parity report has its versions in its variants."""
    if not isinstance(result, ParityReport):
        return {}
    return {name: text for r in result.variants for name, text in r.tools.items()}


def run_name(bench: BenchReport) -> str:
    """A bench in a few words."""
    where = bench.machine.gpu or bench.machine.cpu
    return one_line(f"{where}, {counted(bench.threads, 'thread')}, {bench.created}")


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels as one line each; those that occur more than once (ImageNet has two cranes) are followed by their index."""
    lines = [one_line(label) for label in labels]
    seen = Counter(lines)
    return [line if seen[line] == 1 else f"{line} ({index})" for index, line in enumerate(lines)]
