"""What a result answers at first sight: what to take, what it costs, what was not taken and why. For the page's first screen
and the terminal's first lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vggdeploy.bundle import REFERENCE
from vggdeploy.errors import one_line
from vggdeploy.records import BenchReport, BenchRow, Candidate, ParityRecord, ParityReport, ScenarioRow, SearchReport
from vggdeploy.records.fit import FitReport
from vggdeploy.records.gpu_day import GpuDay
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.report import findings, gpu_days
from vggdeploy.report.digits import figures
from vggdeploy.report.documents import Results
from vggdeploy.report.subjects import Cast, Subject, origin
from vggdeploy.types import Verdict

NOT_MEASURED = "not measured"
_SERVER = "server"
_DROP = "accuracy drop"


@dataclass(frozen=True)
class Fact:
    """One number of the answer, with its unit, and what it is bounded by or holds for. ``value`` is empty where it is not
    known."""

    name: str
    value: str
    note: str = ""

    @property
    def text(self) -> str:
        """The value and its note in plain text."""
        return f"{self.value or NOT_MEASURED}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Answer:
    """What one result says to take.

    ``settled`` is False where the name is only the provisional leader, or there is none: then ``mend`` says what would settle
    it. ``runner_up`` names the best other one, and why it was not taken.
    """

    heading: str
    name: str
    why: str
    backend: str = ""
    settled: bool = True
    facts: tuple[Fact, ...] = ()
    command: str = ""
    runner_up: str = ""
    mend: str = ""


def answers(results: Results, cast: Cast) -> list[Answer]:
    """Of every result that answers something, those of the newest bench first. Of proofs alone, what they prove."""
    benches = sorted(results.bench, key=lambda b: b.created, reverse=True)
    found = [of_bench(b, cast) for b in benches if b.rows]
    found += [of_load(b, cast) for b in benches if b.scenarios]
    found += map(of_search, results.searches)
    found += map(of_fit, results.fits)
    found += map(of_gpu_day, results.gpu_days)
    found += map(of_shadow, results.shadows)
    return (
        found
        or [of_parity(p) for p in results.parity]
        or [Answer("Take", "None", "nothing was measured", settled=False)]
    )


def of_shadow(report: ShadowReport) -> Answer:
    """Whether it may take over."""
    may = report.may_take_over
    return Answer(
        heading="May take over" if may else "May not take over",
        name=one_line(f"{report.shadow.variant} of {report.shadow.model}"),
        why=findings.shadow_counts(report),
        settled=may,
        mend="" if may else one_line("; ".join(report.reasons)),
    )


def lines(answer: Answer) -> tuple[str, str, str]:
    """The same in three lines of plain text: what and why, what it costs, and what else."""
    told = " · ".join(f"{fact.name} {fact.text}" for fact in answer.facts)
    after = [
        f"runner-up: {answer.runner_up}" if answer.runner_up else "",
        answer.mend and f"to settle it: {answer.mend}",
    ]
    after += [f"use it: {answer.command}" if answer.command and answer.settled else ""]
    return f"{answer.heading}: {answer.name}; {answer.why}", told, "; ".join(filter(None, after))


def of_bench(bench: BenchReport, cast: Cast) -> Answer:
    """By `findings.RULE`, or the provisional leader and what would make it count."""
    found = findings.recommend(bench, cast)
    row = found.row or found.leader
    if row is None:
        return Answer("Take", "None", found.reason, settled=False, mend=_verify(bench.bundle))
    subject = cast.row(row, bench)
    rival = next(iter(found.rivals), None)
    settled = found.row is not None
    return Answer(
        heading="Take" if settled else "Provisional leader",
        name=subject.label,
        why=one_line(found.reason),
        backend=row.backend,
        settled=settled,
        facts=_facts(row, bench, subject),
        command=_predict(row, bench),
        runner_up=one_line(f"{rival.label}, {figures(rival.row.p50_ms)} ms at batch {rival.row.batch}: {rival.why_not}")
        if rival
        else "",
        mend="" if settled else _mend(row, bench, cast),
    )


def _mend(row: BenchRow, bench: BenchReport, cast: Cast) -> str:
    """What a leader lacks until it counts."""
    lacks = []
    if not findings.is_proven(row, bench, cast):
        lacks.append(f"prove it: {_verify(bench.bundle)}")
    if not row.valid:
        again = bench.command or _line("bench", bench.bundle)
        lacks.append(f"measure it again ({again}) without this: {'; '.join(row.reasons)}")
    base = next((r for r in findings.smallest_batch(bench) if r.variant == bench.baseline), row)
    if not lacks and not base.valid:
        lacks.append(f"measure {base.variant}, the baseline of speed, again without this: {'; '.join(base.reasons)}")
    return one_line("; ".join(lacks) or f"prove the baseline: {_verify(bench.bundle)}")


def _facts(row: BenchRow, bench: BenchReport, subject: Subject) -> tuple[Fact, ...]:
    best = max((r for r in bench.rows if r.variant == row.variant), key=lambda r: r.images_per_second)
    start = next((f for f in bench.fresh if f.variant == row.variant), None)
    return (
        Fact("p50", _ms(row.p50_ms), f"batch {row.batch}"),
        Fact("p99", _ms(row.p99_ms), "" if row.p99_ms is not None else "too few calls"),
        Fact(
            "throughput",
            f"{figures(row.images_per_second)} images/s",
            "" if best is row else f"{figures(best.images_per_second)} at batch {best.batch}",
        ),
        _drop_fact(subject),
        Fact("size", _megabytes(start.size_bytes if start else None)),
        Fact("memory", _megabytes(start.peak_rss_bytes if start else None)),
    )


def _drop_fact(subject: Subject) -> Fact:
    """The accuracy lost in percentage points, with its one-sided 95% bound."""
    loss = subject.loss
    if subject.variant == REFERENCE:
        return Fact(_DROP, "0", "the reference itself")
    if loss is None:
        return Fact(_DROP, "")
    bound = f"≤ {points(loss.upper)}"
    return Fact(_DROP, f"{bound} points") if loss.drop is None else Fact(_DROP, f"{points(loss.drop)} points", bound)


def points(fraction: float) -> str:
    """A fraction in percentage points, to two digits: 0.35, -0.02; 0.00 has no sign."""
    return f"{100 * fraction:z.2f}"


def of_load(bench: BenchReport, cast: Cast) -> Answer:
    """The highest rate that a proven variant kept up, where a server was asked; else the most samples a second."""
    cases = [r for r in bench.scenarios if r.scenario == _SERVER] or list(bench.scenarios)
    good = [r for r in cases if _counts(r, bench, cast)]
    best = max(good or cases, key=lambda r: r.samples_per_second)
    others = sorted((r for r in cases if r.variant != best.variant), key=lambda r: -r.samples_per_second)
    subject = cast.row(best, bench)
    rival = next(iter(others), None)
    return Answer(
        heading=_load_heading(bench, settled=bool(good)),
        name=subject.label,
        why=one_line(_load_reason(best, settled=bool(good))),
        backend=best.backend,
        settled=bool(good),
        facts=(
            Fact("rate", f"{figures(best.samples_per_second)} images/s"),
            Fact("p50", _ms(best.p50_ms)),
            Fact("p99", _ms(best.p99_ms)),
            Fact("batches", f"up to {best.batch}"),
            _drop_fact(subject),
        ),
        command=_serve(best, bench),
        runner_up=one_line(_load_rival(rival, bench, cast)) if rival else "",
        mend="" if good else one_line("; ".join(best.reasons) or _prove(bench)),
    )


def _load_heading(bench: BenchReport, *, settled: bool) -> str:
    if bench.server is None:
        return "Under load, take" if settled else "Under load, provisional leader"
    return "The server holds" if settled else "Not settled"


def _prove(bench: BenchReport) -> str:
    """What proves the best of a load."""
    if bench.server is None:
        return _verify(bench.bundle)
    return f"give the bundle that is served there: {_line('bench', 'BUNDLE', '--url', bench.server.url)} …"


def _counts(row: ScenarioRow, bench: BenchReport, cast: Cast) -> bool:
    confirmed = row.search is None or row.search.qps is not None
    return row.valid and row.verdict is Verdict.PASS and cast.row(row, bench).verdict is Verdict.PASS and confirmed


def _load_reason(row: ScenarioRow, *, settled: bool) -> str:
    if not settled:
        return f"no run of {row.scenario} counts"
    if row.scenario != _SERVER:
        return f"the most images a second in {row.scenario}, proven, and its run is valid"
    bound = f" with p99 at most {row.latency_bound_ms:g} ms" if row.latency_bound_ms is not None else ""
    found = "the highest rate found" if row.search is not None else "the highest rate asked for that it kept up"
    return f"{found}{bound}, proven, and its run is valid"


def _load_rival(row: ScenarioRow, bench: BenchReport, cast: Cast) -> str:
    why = "fewer a second" if _counts(row, bench, cast) else next(iter(row.reasons), "it is not proven")
    return f"{cast.row(row, bench).label} in {row.scenario}, {figures(row.samples_per_second)} images/s: {why}"


def of_search(report: SearchReport) -> Answer:
    """The search's winner, or that nothing holds its goal."""
    won = next((c for c in report.front if report.chose(c)), None)
    rival = next((c for c in report.front if c is not won), None)
    second = f"{findings.candidate_name(rival)}: {_candidate_why(rival, won)}" if rival else ""
    if won is None:
        return Answer(
            "The search's winner", "None", _clause(findings.search_words(report)), settled=False, runner_up=one_line(second),
            mend="allow more with --max-accuracy-drop, or give it more time with --budget and --resume",
        )  # fmt: skip
    drop = won.test_drop or won.drop
    split = "test" if won.test_drop else "validation"
    speed = f"{figures(won.ratio)} × as fast as the original" if won.ratio else "not measured on its target"
    return Answer(
        heading="The search's winner",
        name=findings.candidate_name(won),
        why=_clause(f"{speed}. {findings.asked_words(report)}"),
        backend=won.backend,
        facts=(
            Fact("p50", _ms(won.latency_ms), "one image"),
            Fact("p99", ""),
            Fact(_DROP, f"{points(drop.drop)} points", f"≤ {points(drop.upper)}, {split} split"),
            Fact("size", _megabytes(won.bytes)),
        ),
        command=_line("predict", report.bundle, "IMAGE", "--variant", won.variant),
        runner_up=one_line(second),
    )


def of_fit(report: FitReport) -> Answer:
    """The network that ships, and whether it reaches what was asked for."""
    won, test = report.winner, report.test
    return Answer(
        heading="The network to take" if report.reached else "The goal was not reached; the closest",
        name=one_line(f"{won.variant}, trial {won.trial + 1}"),
        why=_clause(report.reason),
        backend=won.backend,
        settled=report.reached,
        facts=(
            Fact("p50", _ms(won.latency_ms), "one image"),
            Fact("accuracy", f"{test.rate:.2%}", f"{test.lower:.2%} to {test.upper:.2%}, {test.samples:,} test images"),
            Fact("size", _megabytes(won.bytes)),
        ),
        command=_line("predict", report.bundle, "IMAGE"),
        mend="" if report.reached else "give it more time with --resume --force and a larger --budget, or ask for less",
    )


def _clause(text: str) -> str:
    """Sentences without their last full stop, as a reason stands in an answer."""
    return one_line(text).rstrip(".")


def _candidate_why(one: Candidate, won: Candidate | None) -> str:
    if one.misses:
        return f"it misses the goal: {one.misses[0]}"
    if won is None or one.latency_ms is None or won.latency_ms is None:
        return "it costs more"
    return f"{figures(one.latency_ms / won.latency_ms)} × the time"


def of_gpu_day(day: GpuDay) -> Answer:
    """The fastest VGG-16 of the day, and what failed on it."""
    wrong = gpu_days.failures(day)
    gpu = day.gpu.partition(",")[0]
    best = gpu_days.fastest(day, compiled=False)
    if best is None:
        return Answer(
            f"On {one_line(gpu)}",
            "None",
            "no VGG-16 ran in FP16",
            settled=False,
            mend="run it once more: vggdeploy doctor --gpu-day",
        )
    single = gpu_days.fastest(day, compiled=False, batch=1)
    roof = gpu_days.convolution_roof(day, best.precision)
    judged = (
        f"{len(wrong)} readings failed: {wrong[0]}"
        if wrong
        else "nothing failed, and every network answers as FP64 does"
    )
    return Answer(
        heading=f"Fastest VGG-16 in {best.precision.upper()} on {one_line(gpu)}",
        name=one_line(f"{best.by}, batch {best.batch}"),
        why=one_line(judged),
        settled=not wrong,
        facts=(
            Fact("throughput", f"{figures(best.images_per_second)} images/s"),
            Fact("one image", _ms(single.milliseconds if single else None)),
            Fact(
                "of the roof", f"{best.tera_ops / roof:.0%}" if roof else "", f"{figures(roof)} TOP/s" if roof else ""
            ),
            Fact("relative L2 to FP64", f"{best.relative_l2:.1e}"),
            Fact("top-1 changes", f"{best.flips} of {best.images} images"),
        ),
        command=one_line(day.command),
        runner_up=_compiled(day),
        mend=one_line("; ".join(wrong)),
    )


def _compiled(day: GpuDay) -> str:
    """torch.compile at the batch size where it was fastest, beside the fastest other way at that size."""
    compiled = gpu_days.fastest(day, compiled=True)
    if compiled is None:
        return ""
    ours = gpu_days.fastest(day, compiled=False, batch=compiled.batch)
    beside = f", where {ours.by} reaches {figures(ours.images_per_second)}" if ours else ""
    return one_line(f"{compiled.by}, {figures(compiled.images_per_second)} images/s at batch {compiled.batch}{beside}")


def of_parity(report: ParityReport) -> Answer:
    """What proofs alone tell: how many comparisons passed, here and on other machines."""
    records = [*report.variants, *(r for target in report.fleet for r in target.variants)]
    counts = {verdict: sum(r.verdict is verdict for r in records) for verdict in Verdict}
    ran = len(records) - counts[Verdict.UNPROVEN]
    names = dict.fromkeys(r.variant for r in report.variants)
    others = f" and {len(report.fleet)} other machines" if report.fleet else ""
    settled = report.verdict is Verdict.PASS
    return Answer(
        heading="Proof",
        name=f"{counts[Verdict.PASS]} of {ran} comparisons pass" if ran else "nothing ran here",
        why=f"{len(names)} variants on this machine{others}; what could not run is unproven, and nothing was timed",
        settled=settled,
        facts=tuple(Fact(str(verdict), str(count)) for verdict, count in counts.items() if count),
        command=_line("bench", report.bundle),
        mend="" if settled else _undecided(report, records),
    )


def _undecided(report: ParityReport, records: Sequence[ParityRecord]) -> str:
    """The first comparison of the worst verdict, with its reason; else the first check of the bundle that failed."""
    found = [
        f"{r.variant} on {r.device} says {r.verdict}{_because(r.reasons)}"
        for r in records
        if r.verdict is report.verdict
    ]
    found += [f"{c.what}{_because(c.reasons)}" for c in report.checks if c.verdict is report.verdict]
    return one_line(next(iter(found), _verify(report.bundle)))


def _because(reasons: Sequence[str]) -> str:
    return f": {reasons[0]}" if reasons else ""


def _ms(value: float | None) -> str:
    return "" if value is None else f"{figures(value)} ms"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{figures(count / findings.MEGABYTE)} MB"


def _predict(row: BenchRow, bench: BenchReport) -> str:
    variant, _, bundle = origin(row, bench)
    return _line("predict", bundle, "IMAGE", "--variant", variant)


def _serve(row: ScenarioRow, bench: BenchReport) -> str:
    variant, _, bundle = origin(row, bench)
    return "" if bench.server else _line("serve", bundle, "--variant", variant)


def _verify(bundle: str) -> str:
    return _line("verify", bundle)


def _line(*words: str) -> str:
    return one_line(shlex.join(["vggdeploy", *words]))
