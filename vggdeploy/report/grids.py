"""The tables of a report. What has no value is a dash, and sorts last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, BenchRow, LayerReport, SearchReport
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.report.documents import GpuDetail, Results
from vggdeploy.report.findings import smallest_batch
from vggdeploy.report.page import Cell, Grid
from vggdeploy.report.subjects import Cast
from vggdeploy.types import Verdict

Row = list[str | Cell]
NONE = Cell("–")


def number(value: float | None, form: str = ".3f") -> Cell:
    return NONE if value is None else Cell(format(value, form), float(value))


def verdict_cell(verdict: Verdict) -> Cell:
    return Cell(str(verdict), light=str(verdict))


def run_cell(valid: bool) -> Cell:
    return Cell("valid" if valid else "invalid", light=str(Verdict.PASS if valid else Verdict.INCONCLUSIVE))


def reasons(told: Iterable[tuple[str, Iterable[str]]]) -> tuple[str, ...]:
    """Each reason once, with those it holds for. ``told``: (who, reasons)."""
    found: dict[str, list[str]] = {}
    for who, why in told:
        for reason in why:
            found.setdefault(one_line(reason), []).append(who)
    return tuple(f"{', '.join(dict.fromkeys(who))}: {reason}" for reason, who in found.items())


def summary(results: Results, cast: Cast) -> Grid:
    """A row for each variant: its verdict, its accuracy, and what each bench measured at its smallest batch."""
    several = len([b for b in results.bench if b.rows]) > 1
    rows: list[Row] = []
    for subject in cast.subjects:
        found = [
            (bench, row) for bench in results.bench for row in smallest_batch(bench) if cast.row(row, bench) is subject
        ]
        accuracy = subject.accuracies[0] if subject.accuracies else None
        about: Row = [subject.label, verdict_cell(subject.verdict), number(accuracy.rate if accuracy else None, ".2%")]
        for bench, row in found:
            rows.append([*about, *_times(row), *([run_name(bench)] if several else [])])
        if not found:
            rows.append([*about, *[NONE] * (7 if several else 6)])
    columns = [
        "variant",
        "parity",
        "accuracy",
        "run",
        "batch",
        "p50 ms",
        "p99 ms",
        "images/s",
        "speed × (95%)",
    ]
    words = ("measured in",) if several else ()
    return Grid("Every variant in one line", (*columns, *words), rows, left=2, words=("run", *words))


def _times(row: BenchRow) -> Row:
    return [
        run_cell(row.valid),
        number(row.batch, "d"),
        number(row.p50_ms),
        number(row.p99_ms),
        number(row.images_per_second, ",.0f"),
        Cell(f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})", row.ratio),
    ]


def latency(bench: BenchReport, cast: Cast) -> Grid:
    """All rows of a bench."""
    rows: list[Row] = []
    for r in bench.rows:
        q = r.quantiles_ms
        rows.append(
            [
                cast.row(r, bench).label,
                run_cell(r.valid),
                number(r.batch, "d"),
                number(q[0] if q else None),
                number(r.p50_ms),
                number(r.p90_ms),
                number(r.p99_ms),
                number(q[-1] if q else None),
                number(r.images_per_second, ",.0f"),
                Cell(f"{r.ratio:.2f} ({r.ratio_low:.2f}–{r.ratio_high:.2f})", r.ratio),
                number(r.calls, ",d"),
                number(r.load_ms, ",.0f"),
            ]
        )
    columns = (
        "variant", "run", "batch", "fastest ms", "p50 ms", "p90 ms", "p99 ms", "slowest ms", "images/s",
        "speed × (95%)", "calls", "load ms",
    )  # fmt: skip
    return Grid(f"Latency and throughput: {run_name(bench)}", columns, rows, left=2)


def scenarios(bench: BenchReport, cast: Cast) -> Grid:
    """LoadGen's scenarios of a bench."""
    rows: list[Row] = [
        [
            cast.row(r, bench).label,
            r.scenario,
            run_cell(r.valid),
            number(r.batch, "d"),
            number(r.queries, ",d"),
            number(r.target_qps, ",.1f"),
            number(r.latency_bound_ms, "g"),
            number(r.p50_ms),
            number(r.p90_ms),
            number(r.p99_ms),
            number(r.estimate_ms),
            number(r.queue_p50_ms),
            number(r.queue_p99_ms),
            number(r.samples_per_second, ",.0f"),
        ]
        for r in bench.scenarios
    ]
    columns = (
        "variant", "scenario", "run", "batch", "queries", "target queries/s", "bound ms", "p50 ms", "p90 ms", "p99 ms",
        "estimate ms", "queue p50 ms", "queue p99 ms", "samples/s",
    )  # fmt: skip
    return Grid(f"MLPerf LoadGen: {run_name(bench)}", columns, rows, left=3)


def tries(bench: BenchReport, cast: Cast) -> Grid:
    """Every run of the searches for the highest rate."""
    rows: list[Row] = [
        [
            cast.row(r, bench).label,
            run_cell(t.valid),
            "confirms" if t.confirms else "searches",
            number(r.batch, "d"),
            number(t.qps, ",.1f"),
            number(t.p99_ms),
            number(r.search.bound_ms, "g"),
            number(t.p50_ms),
            number(t.queries, ",d"),
        ]
        for r in bench.scenarios
        if r.search is not None
        for t in r.search.tries
    ]
    columns = ("variant", "run", "to", "batches up to", "queries/s", "p99 ms", "bound ms", "p50 ms", "queries")
    return Grid(f"The search for the highest rate: {run_name(bench)}", columns, rows, left=3)


def gpu_times(detail: GpuDetail) -> Grid:
    rows: list[Row] = [
        [
            number(t.batch, "d"),
            number(t.h2d_ms),
            number(t.compute_ms),
            number(t.d2h_ms),
            number(t.host_ms),
            number(t.tera_ops, ",.1f"),
            number(t.roof_share, ".0%"),
        ]
        for t in detail.times
    ]
    columns = ("batch", "H2D ms", "compute ms", "D2H ms", "host ms", "TOP/s", "of the roof")
    return Grid(f"{detail.variant} on {detail.gpu}", columns, rows, left=0)


def under_roof(bench: BenchReport, cast: Cast) -> Grid:
    rows: list[Row] = [
        [
            cast.row(r, bench).label,
            run_cell(r.valid),
            number(r.batch, "d"),
            number(r.tera_ops, ",.3f"),
            number(r.roof_share, ".0%"),
        ]
        for r in bench.rows
        if r.tera_ops is not None
    ]
    return Grid(f"Under the roof: {run_name(bench)}", ("variant", "run", "batch", "TOP/s", "of the roof"), rows, left=2)


def parity(results: Results, cast: Cast) -> Grid:
    """A row for each variant, data set and output."""
    rows: list[Row] = []
    for report in results.parity:
        for r in report.variants:
            about: Row = [cast.label(r.variant, r.sha256, report.bundle), verdict_cell(r.verdict), r.data or "–"]
            flips = NONE
            if r.flips:
                flips = Cell(f"{r.flips.flips}/{r.flips.samples} (≤ {r.flips.upper:.2%})", r.flips.upper)
            drop = Cell(f"{r.drop.drop:.2%} (≤ {r.drop.upper:.2%})", r.drop.drop) if r.drop else NONE
            end: Row = [flips, drop, number(r.candidate_accuracy, ".2%"), f"{r.backend}, {r.device}"]
            for o in r.outputs:
                distances: Row = [
                    number(o.max_abs, ".1e"),
                    number(o.mean_abs, ".1e"),
                    number(o.relative_l2, ".1e"),
                    number(o.cosine_min, ".6f"),
                    number(o.snr_db, ".1f"),
                    number(o.tolerance, ".1e"),
                ]
                rows.append([*about, o.output, *distances, *end])
            if not r.outputs:
                rows.append([*about, "–", *[NONE] * 6, *end])
    columns = (
        "variant", "parity", "on", "output", "max |Δ|", "mean |Δ|", "relative L2", "min cosine", "SNR dB",
        "smallest tolerance", "top-1 flips (95%)", "accuracy drop (95%)", "accuracy", "ran on",
    )  # fmt: skip
    return Grid("Parity of every output", columns, rows, left=4, words=("ran on",))


def checks(results: Results) -> Grid:
    """What was compared of each bundle as a whole."""
    rows: list[Row] = [
        [one_line(report.bundle), c.what, verdict_cell(c.verdict), c.against, one_line("; ".join(c.reasons)) or "–"]
        for report in results.parity
        for c in report.checks
    ]
    columns = ("bundle", "what", "verdict", "against", "what differs")
    return Grid("What the manifest says", columns, rows, left=5, words=("against", "what differs"))


def layers(report: LayerReport) -> Grid:
    """Every layer in order, with the culprit named."""
    rows: list[Row] = [
        [
            number(index, "d"),
            r.layer,
            number(r.relative_l2, ".1e") if r.finite else Cell("not finite", float("1e999")),
            number(r.max_abs, ".1e"),
            number(r.cosine_min, ".6f"),
            number(r.largest, ".3g"),
            "◀ first jump" if r.layer == report.culprit else "",
        ]
        for index, r in enumerate(report.layers, 1)
    ]
    columns = ("#", "layer", "relative L2", "max |Δ|", "min cosine", "reference's largest", "culprit")
    return Grid(f"The layers of {one_line(report.variant)}", columns, rows, left=0, words=("layer", "culprit"))


def evaluations(found: Sequence[EvaluationReport], cast: Cast) -> Grid:
    rows: list[Row] = [
        [
            cast.label(e.variant, e.sha256, e.target),
            e.data,
            Cell(f"{e.accuracy.rate:.2%} ({e.accuracy.lower:.2%}–{e.accuracy.upper:.2%})", e.accuracy.rate),
            number(e.top5.rate if e.top5 else None, ".2%"),
            number(e.loss, ".4f"),
            number(e.calibration_error, ".2%"),
            number(e.balanced_accuracy, ".2%"),
            number(e.macro_f1, ".2%"),
            f"{e.backend}, {e.device}",
        ]
        for e in found
    ]
    columns = (
        "variant", "on", "accuracy (95%)", "top-5", "loss (nats)", "calibration error", "balanced accuracy", "macro F1",
        "ran on",
    )  # fmt: skip
    return Grid("Accuracy", columns, rows, left=2, words=("ran on",))


def machines(results: Results) -> Grid:
    """Where and with which versions each result was taken."""
    rows: list[Row] = []
    for document in results.documents:
        result = document.result
        machine = threads = "–"
        if isinstance(result, BenchReport):
            m = result.machine
            gpu = f", {m.gpu}" if m.gpu else ", no GPU"
            machine = f"{m.cpu}, {m.cores} cores, {m.memory_gib:g} GiB{gpu}; {m.system}; Python {m.python}"
            machine += f"; {' '.join(m.features)}" if m.features else ""
            threads = str(result.threads)
            if (c := result.conditions) is not None:
                told = {"commit": c.commit, "governor": c.governor, "pinned": "yes" if c.pinned else None}
                machine += "".join(f"; {name} {text}" for name, text in told.items() if text)
        elif isinstance(result, SearchReport):
            machine = f"{result.machine.cpu}, {result.machine.cores} cores"
        elif isinstance(result, GpuDetail):
            machine = result.gpu
        found = getattr(result, "tools", {}) or _tools(result)
        tools = ", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "–"
        rows.append([one_line(str(document.path)), result.created, *map(one_line, (machine, threads, tools))])
    return Grid("Machine and versions", ("result", "taken", "machine", "threads", "versions"), rows, left=5, long=_LONG)


_LONG = ("machine", "versions")


def _tools(result: object) -> dict[str, str]:
    """A parity report has its versions in its variants."""
    return {name: text for r in getattr(result, "variants", ()) for name, text in r.tools.items()}


def run_name(bench: BenchReport) -> str:
    """A bench in a few words."""
    where = bench.machine.gpu or bench.machine.cpu
    return one_line(f"{where}, {bench.threads} threads, {bench.created}")
