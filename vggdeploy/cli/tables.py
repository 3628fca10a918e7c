"""The table of each kind of result: verdict first, then the numbers. Every string that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape

from vggdeploy.bundle import Bundle, PrecisionProof, Variant
from vggdeploy.bundle.trust import SIGNATURE_NAME
from vggdeploy.cli.render import LIGHTS, note, out, size_text, table
from vggdeploy.doctor.doctor import Diagnosis
from vggdeploy.engine.engine import Prediction
from vggdeploy.engine.selection import Choice
from vggdeploy.errors import one_line
from vggdeploy.records import (
    BenchReport,
    BenchRow,
    Check,
    LayerReport,
    ParityRecord,
    ParityReport,
    RateSearch,
    ScenarioRow,
    Thresholds,
)
from vggdeploy.system.machine import fingerprint
from vggdeploy.types import Verdict


def bundle_table(bundle: Bundle) -> None:
    """What a bundle holds."""
    manifest = bundle.manifest
    out.print(f"[bold]{escape(str(bundle.root))}[/]  {escape(manifest.spec.title)}")
    rows = [
        [
            escape(v.name),
            LIGHTS[v.verdict] if v.parity or v.verdict is Verdict.UNPROVEN else "reference",
            _proof_text(v.proof),
            size_text(bundle.size(v)),
            str(v.batch),
            _distance(v.parity),
            _latency(v),
        ]
        for v in manifest.variants
    ]
    table(["variant", "verdict", "layers by type", "size", "batch", "relative L2", "p50 ms here"], rows, left=3)
    for v in manifest.variants:
        for reason in (*v.parity.reasons, *_own_limits(v.parity, manifest.thresholds[v.precision])) if v.parity else ():
            print_reason(v.name, reason)


def signature_line(bundle: Bundle) -> None:
    """Who signed a bundle, as far as it is known: a name in a signature that nobody checked is only a claim."""
    if bundle.signer:
        out.print(f"[green]signed[/] by the key {bundle.signer[:16]}…, as the policy asks")
    elif (bundle.root / SIGNATURE_NAME).is_file():
        out.print("[yellow]signed, and not checked here[/]: vggdeploy verify-signature BUNDLE --key PUBLIC_KEY")
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


def _proof_text(proof: PrecisionProof | None) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(proof.layers.items())) if proof else "–"


def _distance(record: ParityRecord | None) -> str:
    return f"{max(o.relative_l2 for o in record.outputs):.1e}" if record and record.outputs else "–"


def _latency(variant: Variant) -> str:
    """The median that was measured on this kind of machine at the smallest batch, if any was."""
    here = [m for m in variant.measured if m.machine == fingerprint()]
    return f"{min(here, key=lambda m: m.batch).p50_ms:.3f}" if here else "–"


def choice_table(found: Sequence[Choice]) -> None:
    """Which variant ``auto`` takes here, and why not the others. Lines, not cells: a reason can be a long sentence."""
    out.print("\n[bold]backend 'auto' on this machine[/]")
    width = max((len(choice.variant.name) for choice in found), default=0)
    for index, choice in enumerate(found):
        mark = (
            "[green]taken [/]" if index == 0 and choice.usable else "usable" if choice.usable else "[yellow]cannot[/]"
        )
        why = f"{choice.reason}; {choice.fix}" if choice.fix else choice.reason
        out.print(f"{escape(choice.variant.name):<{width}}  {mark}  {escape(why)}")


def parity_table(report: ParityReport) -> None:
    """Each variant against the reference, with the reason for every verdict that is not a pass."""
    rows = []
    for r in report.variants:
        worst = max(r.outputs, key=lambda o: o.relative_l2) if r.outputs else None
        accuracy = "–"
        if r.reference_accuracy is not None and r.candidate_accuracy is not None:
            accuracy = f"{r.reference_accuracy:.2%} → {r.candidate_accuracy:.2%}"
        rows.append(
            [
                escape(r.variant),
                LIGHTS[r.verdict],
                escape(r.data),
                f"{worst.max_abs:.1e}" if worst else "–",
                f"{worst.relative_l2:.1e}" if worst else "–",
                f"{worst.cosine_min:.6f}" if worst else "–",
                f"{r.flips.flips}/{r.flips.samples} (≤ {r.flips.upper:.1%})" if r.flips else "–",
                accuracy,
            ]
        )
    columns = ["variant", "verdict", "on", "max |Δ|", "relative L2", "min cosine", "top-1 flips", "accuracy"]
    table(columns, rows, left=3)
    for r in report.variants:
        for reason in r.reasons:
            print_reason(r.variant, reason)
    _print_checks(report.checks)
    for text in report.notes:
        print_reason("note", text)
    for found in report.layers:
        layer_table(found)


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


def layer_table(report: LayerReport) -> None:
    """A variant's layers in order; the first whose error jumps is marked."""
    rows = [
        [
            escape(r.layer) if r.layer != report.culprit else f"[red]{escape(r.layer)} ◀[/]",
            f"{r.relative_l2:.1e}" if r.finite else "[red]not finite[/]",
            f"{r.max_abs:.1e}",
            f"{r.cosine_min:.6f}",
            f"{r.largest:.3g}",
        ]
        for r in report.layers
    ]
    out.print(f"\n[bold]{escape(report.variant)}:[/] {escape(report.reason)}")
    table(["layer", "relative L2", "max |Δ|", "min cosine", "largest"], rows)


def bench_table(report: BenchReport) -> None:
    """The verdict in words, latency and throughput, what a fresh process costs, and why rows are not valid."""
    for sentence in report.summary:
        out.print(f"[bold]{escape(sentence)}[/]")
    out.print(_where(report, f"speed is × {escape(report.baseline)}, with its 95% interval"))
    rows = [
        [
            escape(r.variant),
            LIGHTS[r.verdict],
            "[green]valid[/]" if r.valid else "[yellow]invalid[/]",
            r.comparison,
            str(r.batch),
            *(f"{t:.3f}" if t is not None else "–" for t in (r.p50_ms, r.p90_ms, r.p99_ms)),
            f"{r.images_per_second:,.0f}",
            f"{r.ratio:.2f} ({r.ratio_low:.2f}–{r.ratio_high:.2f})",
            "–" if r.cpu_seconds_per_image is None else f"{r.cpu_seconds_per_image * 1e3:.3f}",
            "–" if r.joules_per_image is None else f"{r.joules_per_image:.4f}",
        ]
        for r in report.rows
    ]
    columns = ["variant", "parity", "run", "shown", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed ×"]
    table([*columns, "CPU ms/image", "J/image"], rows, left=4)
    _roof_table(report)
    _fresh_table(report)
    _reasons(report.rows)
    unchecked = dict.fromkeys(text for row in report.rows for text in row.not_checked)
    if unchecked:
        out.print(f"  [dim]not checked here: {escape('; '.join(unchecked))}[/]")


def _roof_table(report: BenchReport) -> None:
    """The operations that each row reached, beside the fastest matrix product measured."""
    if not report.roofs:
        return
    roofs = ", ".join(f"{r.precision} {r.tera_ops:,.3f} ({escape(r.library)})" for r in report.roofs)
    out.print(f"the roof in TOP/s, {report.roofs[0].threads} threads: {roofs}")
    rows = [
        [escape(r.variant), str(r.batch), f"{r.tera_ops:,.3f}", "–" if r.roof_share is None else f"{r.roof_share:.0%}"]
        for r in report.rows
        if r.tera_ops is not None
    ]
    table(["variant", "batch", "TOP/s", "of the roof"], rows)


def _fresh_table(report: BenchReport) -> None:
    """A process each, and the host's time for an image at the smallest batch."""
    hosts = {row.variant: row.host for row in reversed(report.rows)}
    rows = []
    for f in report.fresh:
        host = hosts.get(f.variant)
        parts = (host.preprocess_ms, host.run_ms, host.postprocess_ms) if host else (None, None, None)
        rows.append(
            [
                escape(f.variant),
                f"{f.cold_start_ms:,.0f}",
                f"{f.load_ms:,.0f}",
                f"{f.first_ms:,.1f}",
                "–" if f.peak_rss_bytes is None else size_text(f.peak_rss_bytes),
                *(f"{t:.3f}" if t is not None else "–" for t in parts),
            ]
        )
    columns = ["in a fresh process", "cold start ms", "of it load", "first call", "peak memory"]
    table([*columns, "preprocess ms/image", "run", "postprocess"], rows)


def scenario_table(report: BenchReport) -> None:
    """What LoadGen measured, and whether it counts."""
    out.print(_where(report, "load by MLPerf LoadGen"))
    rows = [
        [
            escape(r.variant),
            LIGHTS[r.verdict],
            "[green]valid[/]" if r.valid else "[yellow]invalid[/]",
            r.scenario,
            str(r.batch),
            f"{r.queries:,}",
            *(f"{t:.3f}" if t is not None else "–" for t in (r.p50_ms, r.p90_ms, r.p99_ms, r.estimate_ms)),
            f"{r.queue_p50_ms:.3f} + {r.run_p50_ms:.3f}" if r.queue_p50_ms is not None and r.run_p50_ms else "–",
            f"{r.samples_per_second:,.0f}",
        ]
        for r in report.scenarios
    ]
    columns = ["variant", "parity", "run", "scenario", "batch", "queries", "p50 ms", "p90 ms", "p99 ms", "estimate ms"]
    table([*columns, "queue + run", "samples/s"], rows, left=4)
    _reasons(report.scenarios)
    for r in report.scenarios:
        if r.search is not None:
            _search_table(r.variant, r.batch, r.search)


def _search_table(variant: str, batch: int, search: RateSearch) -> None:
    """Each rate that was tried, from the lowest to the highest."""
    found = f"{search.qps:.4g} queries a second" if search.qps is not None else "[yellow]none[/]"
    out.print(
        f"\n[bold]{escape(variant)}[/] in batches of at most {batch}, "
        f"highest rate with p99 ≤ {search.bound_ms:g} ms: [bold]{found}[/]"
    )
    rows = [
        [
            "whole run" if t.confirms else "probe",
            "[green]valid[/]" if t.valid else "[yellow]invalid[/]",
            f"{t.qps:.4g}",
            f"{t.queries:,}",
            *(f"{ms:.3f}" if ms is not None else "–" for ms in (t.p50_ms, t.p99_ms)),
        ]
        for t in sorted(search.tries, key=lambda t: (t.qps, t.confirms))
    ]
    table(["run", "", "queries/s", "queries", "p50 ms", "p99 ms"], rows, left=2)


def _where(report: BenchReport, rest: str) -> str:
    machine = report.machine
    return f"[dim]{escape(machine.gpu or machine.cpu)}, {report.threads} threads, {escape(report.data)}; {rest}[/]"


def _reasons(rows: Sequence[BenchRow | ScenarioRow]) -> None:
    """Each reason once, with the rows it holds for."""
    told: dict[str, list[str]] = {}
    for r in rows:
        for reason in r.reasons:
            scenario = f", {r.scenario}" if isinstance(r, ScenarioRow) else ""
            told.setdefault(reason, []).append(f"{r.variant} at {r.batch}{scenario}")
    for reason, where in told.items():
        print_reason("every row" if len(where) == len(rows) else ", ".join(where), reason)


def print_reason(where: str, reason: str) -> None:
    out.print(f"  [dim]{escape(where)}: {escape(reason)}[/]")


def print_wrong(where: str, reason: str) -> None:
    out.print(f"  [red]✘ {escape(where)}: {escape(reason)}[/]")


def doctor_table(found: Diagnosis) -> None:
    """Backends on this machine."""
    machine = found.machine
    out.print(
        f"[bold]{escape(machine.cpu)}[/], {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.gpu or 'no GPU'}"
    )
    out.print(f"[dim]{' '.join(machine.features)} · {escape(machine.system)} · Python {machine.python}[/]")
    rows = [
        [
            b.backend,
            b.device,
            "[green]runs[/]" if b.runs else "[yellow]builds only[/]" if b.builds else "[red]cannot[/]",
            b.version or "–",
            escape(b.reason),
        ]
        for b in found.backends
    ]
    table(["backend", "device", "here", "version", "why"], rows, left=5)
    fixes: dict[str, list[str]] = {}
    for b in found.backends:
        if b.fix and not b.runs:
            fixes.setdefault(b.fix, []).append(f"{b.backend} on {b.device}")
    for fix, names in fixes.items():
        out.print(f"[dim]to run {', '.join(names)}:[/] {escape(fix)}")
    for warning in found.warnings:
        note(f"[yellow]warning:[/] {escape(warning)}")


def prediction_line(name: str, predictions: Sequence[Prediction]) -> None:
    """One image: its best answers."""
    answers = ", ".join(f"{escape(one_line(p.label))} {p.probability:.1%}" for p in predictions)
    out.print(f"{escape(one_line(name))}: {answers}")
