"""Each kind of result in a terminal: the verdict first, then the numbers. Every string that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.bundle.trust import SIGNATURE_NAME
from vggdeploy.cli.render import LIGHTS, LOG_WIDTH, escape, notice, out, sentence, table, with_path
from vggdeploy.doctor.doctor import Diagnosis
from vggdeploy.engine.engine import Prediction
from vggdeploy.engine.selection import Choice
from vggdeploy.errors import counted, one_line
from vggdeploy.records import (
    BenchReport,
    BenchRow,
    Check,
    ParityRecord,
    ParityReport,
    ScenarioRow,
    SearchReport,
    Thresholds,
)
from vggdeploy.records.bench import ServerAbout
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.fit import FitReport
from vggdeploy.report import grids, tables
from vggdeploy.report.answers import answers
from vggdeploy.report.answers import lines as answer_lines
from vggdeploy.report.documents import Document, Results
from vggdeploy.report.server_tables import SERVER, scenario_name
from vggdeploy.report.subjects import gather
from vggdeploy.report.tables import Cell, Column, Facts, Grid, Row, grid
from vggdeploy.types import Verdict

MATRIX_CLASSES = 20
_LISTED = 50  # classes in the table; of more, those with the lowest F1
_NAME = 24  # letters of a class name beside a matrix


def bundle_table(bundle: Bundle) -> None:
    """What a bundle holds."""
    manifest = bundle.manifest
    out.print(f"[bold]{escape(str(bundle.root))}[/]  {escape(manifest.spec.title)}")
    table(grids.variants(bundle))
    for v in manifest.variants:
        for reason in (*v.parity.reasons, *_own_limits(v.parity, manifest.limits(v.precision))) if v.parity else ():
            print_reason(v.name, with_path(reason, bundle.root))


def signature_line(bundle: Bundle) -> None:
    """Who signed a bundle, as far as it is known: a name in a signature that nobody checked is only a claim."""
    if bundle.signer:
        out.print(f"[green]signed[/] by the key {bundle.signer[:16]}…, as the policy asks")
    elif (bundle.root / SIGNATURE_NAME).is_file():
        text = with_path("vggdeploy verify-signature BUNDLE --key PUBLIC_KEY", bundle.root)
        out.print(f"[yellow]signed, and not checked here[/]: {escape(text)}")
    else:
        out.print("[dim]not signed[/]")


def _own_limits(record: ParityRecord, usual: Thresholds) -> Iterator[str]:
    """A verdict is never shown without the limits it was reached by, where they are not the manifest's."""
    used = record.limits or usual
    changed = [
        f"{name.replace('_', ' ')} {value:g} (the manifest's is {other if other is None else format(other, 'g')})"
        for name, value, other in ((n, getattr(used, n), getattr(usual, n)) for n in usual.__struct_fields__)
        if value != other and value is not None
    ]
    if changed:
        yield f"judged by limits of its own: {', '.join(changed)}"


def choice_table(found: Sequence[Choice]) -> None:
    """Which variant ``auto`` takes here, and why not the others. Lines, not cells: a reason can be a long sentence."""
    out.print("\n[bold]backend 'auto' on this machine[/]")
    width = max((len(choice.variant.name) for choice in found), default=0)
    for index, choice in enumerate(found):
        mark = (
            "[green]taken [/]" if index == 0 and choice.usable else "usable" if choice.usable else "[yellow]cannot[/]"
        )
        why = f"{choice.reason}; {choice.fix}" if choice.fix else choice.reason
        sentence(escape(why), f"{escape(choice.variant.name):<{width}}  {mark}  ")


def parity_table(report: ParityReport) -> None:
    """Each variant's worst output against the reference, with the reason for every verdict that is not a pass."""
    rows = [(r, max(r.outputs, key=lambda o: o.relative_l2, default=None)) for r in report.variants]
    table(grid(tables.PARITY, rows))
    _print_asked(report.variants)
    for r in report.variants:
        for reason in r.reasons:
            print_reason(r.variant, with_path(reason, report.bundle))
    _print_checks(report.checks)
    for text in report.notes:
        print_reason("note", text)
    if report.fleet:
        table(grids.fleet(report))
        for reason in grids.fleet_reasons(report):
            sentence(f"[dim]{escape(reason)}[/]", "  ")
    for layers in report.layers:
        sentence(escape(layers.reason), f"\n[bold]{escape(layers.variant)}:[/] ")
        table(grid(tables.LAYERS, tables.layer_rows(layers)))


def _print_asked(records: Sequence[ParityRecord]) -> None:
    """What the golden pair was asked beside: a line for all variants that were asked the same."""
    told: dict[str, list[str]] = {}
    for r in records:
        if r.batches and r.repeats:
            sizes = ", ".join(str(b.batch) for b in r.batches)
            stress = f", {r.stress[0].samples} stress images" if r.stress else ""
            same = f"{r.repeats.calls - r.repeats.differing} of {r.repeats.calls} repeated calls the same"
            text = f"golden images in batches of {sizes}{stress}; {same}"
            told.setdefault(text, []).append(r.variant)
    for text, names in told.items():
        sentence(f"[dim]{escape(', '.join(names))}: {escape(text)}[/]")


def _print_checks(checks: Sequence[Check]) -> None:
    """What passed in one line for each thing that it was compared with; all else with its reasons."""
    passed: dict[str, list[str]] = {}
    for check in checks:
        if check.verdict is Verdict.PASS:
            passed.setdefault(check.against, []).append(check.what)
    for against, what in passed.items():
        out.print(f"{LIGHTS[Verdict.PASS]}  {escape(', '.join(what))}: as in {escape(against)}")
    for check in checks:
        if check.verdict is not Verdict.PASS:
            out.print(f"{LIGHTS[check.verdict]}  {escape(check.what)}, against {escape(check.against)}")
            for reason in check.reasons:
                print_wrong(check.what, reason)


def answer(report: BenchReport | SearchReport | FitReport, *bundles: Bundle) -> None:
    """Three lines for each thing that a result answers, before its tables; accuracies are those that ``bundles`` recorded."""
    proofs = [ParityReport(bundle=str(b.root), created="", variants=_proofs(b)) for b in bundles]
    results = Results(tuple(Document(Path(), result) for result in (report, *proofs)))
    for found in answers(results, gather(results)):
        first, *others = answer_lines(found)
        sentence(f"[bold]{'[green]' if found.settled else '[yellow]'}{escape(first)}[/][/]")
        for line in others:
            sentence(escape(line))


def _proofs(bundle: Bundle) -> tuple[ParityRecord, ...]:
    return tuple(v.parity for v in bundle.manifest.variants if v.parity is not None)


def bench_table(report: BenchReport, *bundles: Bundle) -> None:
    """What to take, the verdict in words, latency and throughput, what a fresh process costs, and why rows are not valid."""
    answer(report, *bundles)
    for text in report.summary:
        sentence(f"[dim]{escape(text)}[/]")
    sentence(_where(report, f"speed is × {escape(report.baseline)}, with its 95% interval"))
    table(grid(tables.BENCH, _rows(report.rows)))
    if report.roofs:
        table(grid(tables.ROOFS, _rows(report.roofs), "the roofs: the fastest matrix products of this machine"))
        table(grid(tables.UNDER_ROOF, _rows(r for r in report.rows if r.tera_ops is not None), "under the roof"))
    if tables.has_shares(report):
        table(grid(tables.SHARES, _rows(report.rows), "an image through classify"))
    if report.fresh:
        table(grid(tables.STARTS, _rows(report.fresh), "in a fresh process"))
    _reasons(report.rows)
    unchecked = dict.fromkeys(text for row in report.rows for text in row.not_checked)
    if unchecked:
        sentence(f"[dim]not checked here: {escape('; '.join(unchecked))}[/]", "  ")


def scenario_table(report: BenchReport, *bundles: Bundle) -> None:
    """What to take, what LoadGen measured, whether it counts, and each rate that was tried, from the lowest to the highest."""
    answer(report, *bundles)
    sentence(_where(report, "load by MLPerf LoadGen") if report.server is None else _asked(report, report.server))
    table(grid(tables.SCENARIOS if report.server is None else SERVER, _rows(report.scenarios)))
    _reasons(report.scenarios)
    for r in report.scenarios:
        if r.search is not None:
            rate = f"{r.search.qps:,.1f} queries a second" if r.search.qps is not None else "[yellow]none[/]"
            out.print()
            sentence(
                f"[bold]{escape(r.variant)}[/] in batches of at most {r.batch}, "
                f"highest rate with p99 ≤ {r.search.bound_ms:g} ms: [bold]{rate}[/]"
            )
            tries = sorted(r.search.tries, key=lambda t: (t.qps, t.confirms))
            table(grid(tables.TRIES, [(Facts(variant=r.variant, batch=r.batch), t, r.search) for t in tries]))


def _rows(records: Iterable[object]) -> list[Row]:
    return [(record,) for record in records]


def _where(report: BenchReport, rest: str) -> str:
    machine = report.machine
    return f"[dim]{escape(machine.gpu or machine.cpu)}, {counted(report.threads, 'thread')}, {escape(report.data)}; {rest}[/]"


def _asked(report: BenchReport, server: ServerAbout) -> str:
    """Which server it was, and by what its answers were judged."""
    judged = "no bundle was given, so nothing is proven" if report.bundle == server.url else "its golden pair is missed"
    if server.judged_as is not None:
        judged = f"its golden pair is kept within the limits of {server.judged_as}"
    if server.held_against:
        judged += f", and every answer was held against that of {server.held_against} here"
    shared = "; client and server share this machine" if server.same_machine else ""
    return f"[dim]{escape(f'{server.url} ({server.server}), asked {report.data}; {judged}{shared}')}[/]"


def _reasons(rows: Sequence[BenchRow | ScenarioRow]) -> None:
    """Each reason once, with the rows it holds for."""
    told: dict[str, list[str]] = {}
    for r in rows:
        for reason in tables.row_notes(r):
            scenario = f", {scenario_name(r)}" if isinstance(r, ScenarioRow) else ""
            told.setdefault(reason, []).append(f"{r.variant} at {r.batch}{scenario}")
    for reason, where in told.items():
        print_reason("every row" if len(where) == len(rows) else ", ".join(where), reason)


def print_reason(where: str, reason: str) -> None:
    sentence(f"[dim]{escape(where)}: {escape(reason)}[/]", "  ")


def print_wrong(where: str, reason: str) -> None:
    sentence(f"[red]✘ {escape(where)}: {escape(reason)}[/]", "  ")


def evaluation_table(report: EvaluationReport) -> None:
    """Accuracy first, then each class, then what was taken for what."""
    a = report.accuracy
    out.print(f"[bold]{escape(report.target)}[/]: {a.hits:,} of {a.samples:,} images right")
    table(grid(tables.EVALUATIONS, [(report,)]))
    out.print("[dim]intervals: two-sided 95%, Clopper–Pearson[/]")
    _class_table(report)
    if report.confusion is not None and len(report.classes) <= MATRIX_CLASSES:
        matrix = _matrix(report, report.confusion)
    else:
        matrix = None
    if matrix is not None and _width(matrix) <= (out.width if out.is_terminal else LOG_WIDTH):
        table(matrix)
    else:  # a matrix that is cut off would mislead
        names = [_name(c.index, c.label) for c in report.classes]
        rows = [(Facts(label=names[p.label], predicted=names[p.predicted]), p) for p in report.confused]
        table(grid(tables.CONFUSED, rows, "most frequent confusions"))
    for text in report.notes:
        notice(f"[yellow]note:[/] {escape(one_line(text))}")


def _class_table(report: EvaluationReport) -> None:
    classes = report.classes
    title = "each class"
    if len(classes) > _LISTED:
        worst = sorted(classes, key=lambda c: (c.f1 is None, c.f1 or 0.0, c.index))
        classes = tuple(worst[:_LISTED])
        title = f"the {_LISTED} of {len(report.classes)} classes with the lowest F1"
    table(grid(tables.CLASSES, _rows(classes), title))


def _matrix(report: EvaluationReport, counts: Sequence[Sequence[int]]) -> Grid:
    """Rows are true classes, columns predicted ones, by index."""
    columns = [Column("", "true ↓  predicted →", left=True), *(Column("", str(c.index)) for c in report.classes)]
    rows = [
        [Cell(_name(i, report.classes[i].label)), *(Cell(str(n) if n else "·") for n in row)]
        for i, row in enumerate(counts)
    ]
    return Grid("confusion matrix, images", tuple(columns), rows)


def _width(found: Grid) -> int:
    lines = [[column.title for column in found.columns], *([c.text for c in row] for row in found.rows)]
    return sum(3 + max(map(len, column)) for column in zip(*lines, strict=True))


def _name(index: int, label: str) -> str:
    line = one_line(label)
    if line == str(index):
        return line
    return f"{index} {line if len(line) <= _NAME else line[: _NAME - 1] + '…'}"


def steps_table(checkpoint: Checkpoint) -> None:
    """What steps did to a network's structure: a row for the original and one for each step."""
    origin = checkpoint.origin
    if origin is None:
        return
    out.print(f"[bold]{escape(checkpoint.spec.title)}[/]  [dim]from {escape(origin.title)}[/]")
    original = Facts(step="original", accuracy=origin.accuracy, before=origin.size, after=origin.size)
    rows: list[Row] = [(original,), *((Facts(before=origin.size), step) for step in checkpoint.steps)]
    table(grid(tables.STEPS, rows))
    lost = f"lost: percentage points below the original on {escape(origin.dataset)}, with paired one-sided 95% bounds"
    sentence(f"[dim]{lost}[/]")


def doctor_table(found: Diagnosis) -> None:
    """Backends on this machine."""
    machine = found.machine
    out.print(
        f"[bold]{escape(machine.cpu)}[/], {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.gpu or 'no GPU'}"
    )
    sentence(f"[dim]{' '.join(machine.features)} · {escape(machine.system)} · Python {machine.python}[/]")
    table(grid(tables.BACKENDS, _rows(found.backends)))
    fixes: dict[str, list[str]] = {}
    for b in found.backends:
        if b.fix and not b.runs:
            fixes.setdefault(b.fix, []).append(f"{b.backend} on {b.device}")
    for fix, names in fixes.items():
        sentence(f"[dim]to run {', '.join(names)}:[/]")
        out.print(f"  {escape(fix)}")
    for text in found.warnings:
        notice(f"[yellow]warning:[/] {escape(text)}")


def prediction_line(name: str, predictions: Sequence[Prediction]) -> None:
    """One image: its best answers."""
    answers = ", ".join(f"{escape(one_line(p.label))} {p.probability:.1%}" for p in predictions)
    out.print(f"{escape(one_line(name))}: {answers}")
