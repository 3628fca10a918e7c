"""Has it become slower? Two benches of the same variants, taken apart from each other, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from vggdeploy.bench.stats import compared, unpaired_ratio_interval
from vggdeploy.errors import InputError, UsageError, one_line
from vggdeploy.records import BenchReport, BenchRow, ScenarioRow
from vggdeploy.records.conclusions import ComparedRow, ComparisonReport
from vggdeploy.report.documents import read_document
from vggdeploy.types import SpeedOutcome, Verdict

MIN_ROUNDS = 3
_SAME_MACHINE = "measure both on one machine with the same threads, or compare without --fail-if-slower"
NOT_INTERLEAVED = (
    "the two benches were not interleaved: what the machine did otherwise on the other day is in the ratios, and not in "
    "their intervals"
)

Key = tuple[str, str, str, int, str, float | None]
Row = BenchRow | ScenarioRow


def compare_files(old: Path, new: Path, *, limit: float | None = None) -> ComparisonReport:
    """Compare two results of ``bench --json``.

    Args:
        limit: how much longer a batch may take than before, as a fraction.

    Raises:
        UsageError: a limit is given, and the two were taken on different machines or with different threads; or the two
            have no row in common.
        InputError, BundleError: a file is no result of ``bench``.
    """
    before, after = _read(old), _read(new)
    differences = list(_machine_differences(before, after))
    if differences and limit is not None:
        raise UsageError(f"the two benches cannot be held against a limit: {differences[0]}", _SAME_MACHINE)
    ours, theirs = _by_key(before), _by_key(after)
    if not ours.keys() & theirs.keys():
        raise UsageError(
            f"{old} and {new} have no variant, backend, device and batch in common", "compare two benches of one bundle"
        )
    rows = tuple(_compared(key, ours.get(key), theirs.get(key), limit) for key in dict.fromkeys([*ours, *theirs]))
    wrong = any(row.too_slow or (row.outcome is SpeedOutcome.NOT_JUDGED and _counts(row)) for row in rows)
    return ComparisonReport(
        old=str(old),
        new=str(new),
        old_created=before.created,
        new_created=after.created,
        limit=limit,
        rows=rows,
        warnings=(*differences, *_other_differences(before, after), NOT_INTERLEAVED),
        passed=limit is None or not wrong,
    )


def _counts(row: ComparedRow) -> bool:
    """A variant that only the new bench has cannot have become slower."""
    return row.old_ms is not None


def failed_outputs(new: Path) -> bool:
    """Whether the new bench has a variant that computes something else than the reference."""
    report = _read(new)
    return any(row.verdict is Verdict.FAIL for row in _rows(report))


def _read(path: Path) -> BenchReport:
    document = read_document(path)
    if not isinstance(document, BenchReport):
        raise InputError(f"{path} is not a result of bench", "make one: vggdeploy bench BUNDLE --json > bench.json")
    return document


def _by_key(report: BenchReport) -> dict[Key, Row]:
    return {_key(row): row for row in _rows(report)}


def _rows(report: BenchReport) -> list[Row]:
    return [*report.rows, *report.scenarios]


def _key(row: Row) -> Key:
    if isinstance(row, ScenarioRow):
        # A rate that was searched for is the result, not the question.
        asked = None if row.search is not None else row.target_qps
        return row.variant, row.backend, row.device, row.batch, row.scenario, asked
    return row.variant, row.backend, row.device, row.batch, "", None


def _compared(key: Key, old: Row | None, new: Row | None, limit: float | None) -> ComparedRow:
    variant, backend, device, batch, scenario, _ = key
    row = ComparedRow(
        variant=variant,
        backend=backend,
        device=device,
        batch=batch,
        scenario=scenario,
        old_ms=old.p50_ms if old else None,
        new_ms=new.p50_ms if new else None,
        ratio=None,
        ratio_low=None,
        ratio_high=None,
        outcome=SpeedOutcome.NOT_JUDGED,
    )
    if old is None or new is None:
        return msgspec.structs.replace(row, reasons=(f"only the {'new' if old is None else 'old'} bench has it",))
    if old.sha256 and new.sha256:
        row = msgspec.structs.replace(row, same_bytes=old.sha256 == new.sha256)
    reasons = [
        f"{side}: {one_line(reason)}"
        for side, measured in (("old", old), ("new", new))
        if not measured.valid
        for reason in measured.reasons or ("invalid",)
    ]
    interval = _interval(old, new)
    if interval is None:
        if old.p50_ms and new.p50_ms:
            row = msgspec.structs.replace(row, ratio=old.p50_ms / new.p50_ms)
        return msgspec.structs.replace(row, reasons=(*reasons, _no_rounds(scenario)))
    ratio, low, high = interval
    row = msgspec.structs.replace(row, ratio=ratio, ratio_low=low, ratio_high=high)
    if reasons:
        return msgspec.structs.replace(row, reasons=tuple(reasons))
    allowed = None if limit is None else 1 / (1 + limit)
    too_slow = allowed is not None and high < allowed
    cannot_rule_out = allowed is not None and low < allowed <= high
    return msgspec.structs.replace(row, outcome=compared(low, high), too_slow=too_slow, cannot_rule_out=cannot_rule_out)


def _interval(old: Row, new: Row) -> tuple[float, float, float] | None:
    if not isinstance(old, BenchRow) or not isinstance(new, BenchRow):
        return None
    if min(len(old.round_medians_ms), len(new.round_medians_ms)) < MIN_ROUNDS:
        return None
    return unpaired_ratio_interval(old.round_medians_ms, new.round_medians_ms)


def _no_rounds(scenario: str) -> str:
    if scenario:
        return "a scenario of LoadGen is one run without rounds: there is no interval"
    return f"fewer than {MIN_ROUNDS} rounds are recorded, as before schema version 2: there is no interval"


def _machine_differences(old: BenchReport, new: BenchReport) -> Iterator[str]:
    """What makes a latency mean something else."""
    told = None not in (old.machine.affinity, new.machine.affinity)  # older documents leave these out
    for name in ("cpu", "cores", "gpu", *(("features", "caches", "affinity", "quota") if told else ())):
        before, after = getattr(old.machine, name), getattr(new.machine, name)
        if before != after:
            yield one_line(f"another machine: {name} {before or 'none'}, then {after or 'none'}")
    if old.threads != new.threads:
        yield f"other threads: {old.threads}, then {new.threads}"


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
