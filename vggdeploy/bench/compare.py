"""Has it become slower? Two benches of the same variants, row by row: of different days, or of one run of two bundles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import msgspec

from vggdeploy.bench.stats import (
    MIN_RUNS,
    RUN_SPREAD,
    Interval,
    by_process,
    compared,
    ratio_interval,
    unpaired_ratio_interval,
)
from vggdeploy.errors import InputError, UsageError, one_line
from vggdeploy.records import BenchReport, BenchRow, Conditions, ScenarioRow
from vggdeploy.records.conclusions import ComparedRow, ComparisonReport
from vggdeploy.report.documents import read_document
from vggdeploy.types import SpeedOutcome, Verdict

MIN_ROUNDS = 3
_SHORTEST, _LONGEST = 1e-6, 1e9  # ms: what a round's median can be, of a call
_SAME_MACHINE = "measure both on one machine with the same threads, or compare without --fail-if-slower"
INTERLEAVE = "measure both in one run: vggdeploy bench OLD_BUNDLE NEW_BUNDLE --fail-if-slower PERCENT"
NOT_INTERLEAVED = (
    f"the benches were not interleaved, and fewer than {MIN_RUNS} of a side do not show how much runs differ: the intervals "
    f"assume {RUN_SPREAD:.0%}. {INTERLEAVE[0].upper()}{INTERLEAVE[1:]}"
)

Key = tuple[str, str, str, int, str, float | None]
Row = BenchRow | ScenarioRow


def compare_files(old: Sequence[Path], new: Sequence[Path], *, limit: float | None = None) -> ComparisonReport:
    """Compare results of ``bench --json``: one a side, or several runs of each.

    Args:
        limit: how much longer a batch may take than before, as a fraction.

    Raises:
        UsageError: a limit is given, and the benches were taken on different machines or with different threads; or the
            two sides have no row in common.
        InputError, BundleError: a file is no result of ``bench``.
    """
    before, after = _read_all(old), _read_all(new)
    everything = [*before, *after]
    differences = list(dict.fromkeys(d for other in everything[1:] for d in _machine_differences(before[0], other)))
    if differences and limit is not None:
        raise UsageError(f"the benches cannot be held against a limit: {differences[0]}", _SAME_MACHINE)
    ours, theirs = _by_key(before), _by_key(after)
    if not ours.keys() & theirs.keys():
        raise UsageError(
            f"{_names(old)} and {_names(new)} have no variant, backend, device and batch in common",
            "compare benches of one bundle",
        )
    rows = tuple(
        _compared(key, ours.get(key, []), theirs.get(key, []), limit) for key in dict.fromkeys([*ours, *theirs])
    )
    others = dict.fromkeys(d for other in everything[1:] for d in _other_differences(before[0], other))
    few = () if min(len(old), len(new)) >= MIN_RUNS else (NOT_INTERLEAVED,)
    return ComparisonReport(
        old=_names(old),
        new=_names(new),
        old_created=before[0].created,
        new_created=after[0].created,
        limit=limit,
        rows=rows,
        warnings=(*differences, *others, *few),
        passed=limit is None or not any(map(_misses, rows)),
    )


def compare_bundles(report: BenchReport, names: tuple[str, str], *, limit: float) -> ComparisonReport:
    """Hold the second bundle of one interleaved run against the first: no run, day or machine lies between them.

    Args:
        names: how the rows of each bundle begin, before the colon.

    Raises:
        UsageError: the two have no variant in common.
    """
    ours, theirs = (
        {
            (row.variant.removeprefix(f"{name}:"), row.backend, row.device, row.batch): row
            for row in report.rows
            if row.variant.startswith(f"{name}:")
        }
        for name in names
    )
    if not ours.keys() & theirs.keys():
        raise UsageError(
            f"{names[0]} and {names[1]} have no variant in common", "measure what both have: --variant NAME"
        )
    rows = tuple(_together(key, ours.get(key), theirs.get(key), limit) for key in dict.fromkeys([*ours, *theirs]))
    return ComparisonReport(
        old=report.bundles[0],
        new=report.bundles[1],
        old_created=report.created,
        new_created=report.created,
        limit=limit,
        rows=rows,
        passed=not any(map(_misses, rows)),
    )


def _misses(row: ComparedRow) -> bool:
    """Of a limit. A variant that only the new bench has cannot have become slower."""
    unjudged = row.outcome is SpeedOutcome.NOT_JUDGED and row.old_ms is not None
    return row.too_slow or row.cannot_rule_out or unjudged


def failed_outputs(new: Sequence[Path]) -> bool:
    """Whether the new benches have a variant that computes something else than the reference."""
    return any(row.verdict is Verdict.FAIL for path in new for row in _rows(_read(path)))


def _names(paths: Sequence[Path]) -> str:
    return ",".join(map(str, paths))


def _read_all(paths: Sequence[Path]) -> list[BenchReport]:
    """Raises UsageError for the same run twice: two that are equal would show that runs do not differ."""
    reports = [_read(path) for path in paths]
    for index, report in enumerate(reports):
        if report in reports[:index]:
            raise UsageError(
                f"{paths[index]} is the same run as {paths[reports.index(report)]}", "give each run of a side once"
            )
    return reports


def _read(path: Path) -> BenchReport:
    document = read_document(path)
    if not isinstance(document, BenchReport):
        raise InputError(f"{path} is not a result of bench", "make one: vggdeploy bench BUNDLE --json > bench.json")
    return document


def _by_key(reports: Sequence[BenchReport]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for report in reports:
        for row in _rows(report):
            found.setdefault(_key(row), []).append(row)
    return {key: rows for key, rows in found.items() if len(rows) == len(reports)}


def _rows(report: BenchReport) -> list[Row]:
    return [*report.rows, *report.scenarios]


def _key(row: Row) -> Key:
    if isinstance(row, ScenarioRow):
        # A rate that was searched for is the result, not the question.
        asked = None if row.search is not None else row.target_qps
        return row.variant, row.backend, row.device, row.batch, row.scenario, asked
    return row.variant, row.backend, row.device, row.batch, "", None


def _compared(key: Key, old: Sequence[Row], new: Sequence[Row], limit: float | None) -> ComparedRow:
    variant, backend, device, batch, scenario, _ = key
    row = _unjudged((variant, backend, device, batch), _middle(old), _middle(new), scenario)
    if not old or not new:
        return msgspec.structs.replace(row, reasons=(f"only the {'new' if not old else 'old'} bench has it",))
    hashes = [{one.sha256 for one in side} for side in (old, new)]
    if "" not in hashes[0] | hashes[1]:
        row = msgspec.structs.replace(row, same_bytes=hashes[0] == hashes[1])
    runs = [_runs(side) for side in (old, new)]
    if runs[0] is None or runs[1] is None:
        if row.old_ms and row.new_ms:
            row = msgspec.structs.replace(row, ratio=row.old_ms / row.new_ms)
        return msgspec.structs.replace(row, reasons=(*_invalid(old, new), _no_rounds(scenario)))
    return _judged(row, unpaired_ratio_interval(runs[0], runs[1]), _invalid(old, new), limit)


def _together(key: tuple[str, str, str, int], old: BenchRow | None, new: BenchRow | None, limit: float) -> ComparedRow:
    row = _unjudged(key, old.p50_ms if old else None, new.p50_ms if new else None)
    if old is None or new is None:
        return msgspec.structs.replace(row, reasons=(f"only the {'new' if old is None else 'old'} bundle has it",))
    row = msgspec.structs.replace(row, same_bytes=old.sha256 == new.sha256)
    interval = ratio_interval(old.round_medians_ms, new.round_medians_ms, old.processes)
    return _judged(row, interval, _invalid([old], [new]), limit)


def _unjudged(
    key: tuple[str, str, str, int], old_ms: float | None, new_ms: float | None, scenario: str = ""
) -> ComparedRow:
    variant, backend, device, batch = key
    return ComparedRow(
        variant=variant,
        backend=backend,
        device=device,
        batch=batch,
        scenario=scenario,
        old_ms=old_ms,
        new_ms=new_ms,
        ratio=None,
        ratio_low=None,
        ratio_high=None,
        outcome=SpeedOutcome.NOT_JUDGED,
    )


def _judged(row: ComparedRow, interval: Interval, reasons: tuple[str, ...], limit: float | None) -> ComparedRow:
    ratio, low, high = interval
    row = msgspec.structs.replace(row, ratio=ratio, ratio_low=low, ratio_high=high)
    if reasons:
        return msgspec.structs.replace(row, reasons=reasons)
    allowed = None if limit is None else 1 / (1 + limit)
    too_slow = allowed is not None and high < allowed
    cannot_rule_out = allowed is not None and low < allowed <= high
    more = None
    if cannot_rule_out and limit:  # an interval shrinks with the square root of what is measured
        more = (math.log(high / low) / 2 / math.log1p(limit)) ** 2
    return msgspec.structs.replace(
        row, outcome=compared(low, high), too_slow=too_slow, cannot_rule_out=cannot_rule_out, more=more
    )


def _invalid(old: Sequence[Row], new: Sequence[Row]) -> tuple[str, ...]:
    reasons = (
        f"{side}: {one_line(reason)}"
        for side, rows in (("old", old), ("new", new))
        for measured in rows
        if not measured.valid
        for reason in measured.reasons or ("invalid",)
    )
    return tuple(dict.fromkeys(reasons))


def _middle(rows: Sequence[Row]) -> float | None:
    times = [row.p50_ms for row in rows if row.p50_ms is not None]
    return median(times) if times else None


def _runs(rows: Sequence[Row]) -> list[list[float]] | None:
    """Of each run the medians of its processes; of one process, those of its rounds."""
    runs = []
    for row in rows:
        if not isinstance(row, BenchRow) or len(row.round_medians_ms) < MIN_ROUNDS:
            return None
        if not all(_SHORTEST <= ms <= _LONGEST for ms in row.round_medians_ms):
            return None
        rounds = len(row.round_medians_ms)  # the file may say anything of its processes
        processes = row.processes if 1 < row.processes <= rounds else rounds
        runs.append([median(part) for part in by_process(row.round_medians_ms, processes)])
    return runs


def _no_rounds(scenario: str) -> str:
    if scenario:
        return "a scenario of LoadGen is one run without rounds: there is no interval"
    return f"fewer than {MIN_ROUNDS} rounds with a time are recorded, as before schema version 2: there is no interval"


def _machine_differences(old: BenchReport, new: BenchReport) -> Iterator[str]:
    """What makes a latency mean something else."""
    told = None not in (old.machine.affinity, new.machine.affinity)  # older documents leave these out
    for name in ("cpu", "cores", "gpu", *(("features", "caches", "affinity", "quota") if told else ())):
        before, after = getattr(old.machine, name), getattr(new.machine, name)
        if before != after:
            yield one_line(f"another machine: {name} {before or 'none'}, then {after or 'none'}")
    before, after = old.conditions, new.conditions
    if before and after and before.pinned != after.pinned:
        yield f"another pinning: {_pinning(before)}, then {_pinning(after)}"
    if before and after and before.governor != after.governor:
        yield one_line(f"another frequency governor: {before.governor or 'none'}, then {after.governor or 'none'}")
    if old.threads != new.threads:
        yield f"other threads: {old.threads}, then {new.threads}"


def _pinning(conditions: Conditions) -> str:
    return "pinned" if conditions.pinned else "not pinned"


def _other_differences(old: BenchReport, new: BenchReport) -> Iterator[str]:
    """What may well be what is asked about: versions, the system, the images."""
    for name in sorted({*old.tools, *new.tools}):
        before, after = old.tools.get(name, "none"), new.tools.get(name, "none")
        if before != after:
            yield one_line(f"another {name}: {before}, then {after}")
    for name in ("system", "python"):
        before, after = getattr(old.machine, name), getattr(new.machine, name)
        if before != after:
            yield one_line(f"another {name}: {before}, then {after}")
    if old.data != new.data:
        yield one_line(f"other images: {old.data}, then {new.data}")
