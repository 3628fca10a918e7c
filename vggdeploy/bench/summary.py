"""What a comparison says in words: the verdict first, then the number."""

from __future__ import annotations

from collections.abc import Sequence

from vggdeploy.records import BenchRow
from vggdeploy.types import SpeedOutcome


def sentences(rows: Sequence[BenchRow]) -> tuple[str, ...]:
    """A sentence a batch size."""
    batches = dict.fromkeys(row.batch for row in rows)
    return tuple(_sentence([row for row in rows if row.batch == batch]) for batch in batches)


def _sentence(rows: Sequence[BenchRow]) -> str:
    """Of the rows at one batch size; the first is the baseline."""
    baseline, others = rows[0], rows[1:]
    where = f"batch {baseline.batch}"
    if not baseline.valid:
        return f"{where}: not decided, the baseline {baseline.variant} is invalid: {baseline.reasons[0]}"
    if not others:
        return f"{where}: valid, {baseline.variant} takes {baseline.p50_ms:.3f} ms (median)"
    counted = [row for row in others if row.valid]
    left_out = [row.variant for row in others if not row.valid]
    rest = f"; not decided, since invalid: {', '.join(left_out)}" if left_out else ""
    if not counted:
        return f"{where}: not decided, every row but the baseline {baseline.variant} is invalid"
    best = max(counted, key=lambda row: row.ratio)
    number = f"{best.ratio:.2f} × {baseline.variant} ({best.ratio_low:.2f}–{best.ratio_high:.2f})"
    if best.comparison is SpeedOutcome.FASTER:
        return f"{where}: {best.variant} is faster, {number}{rest}"
    if best.comparison is SpeedOutcome.NO_DIFFERENCE:
        return f"{where}: no difference shown between {baseline.variant} and {best.variant}, {number}{rest}"
    return f"{where}: the baseline {baseline.variant} is the fastest, {best.variant} is {number}{rest}"
