"""Two benches of different days beside each other."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.types import SpeedOutcome, Verdict


class ComparedRow(Record, frozen=True, kw_only=True):
    """One variant at one batch size, or under one scenario, in both benches.

    ``ratio`` is the speed of the new one, in old ones: above 1 is faster, with a 95% interval; None where a bench recorded
    no rounds. ``outcome`` is "no difference shown" where the interval covers 1, and "not judged", with ``reasons``, where
    a side is missing, invalid, or has no rounds. Of a limit, ``too_slow``: the whole interval lies below what it allows;
    ``cannot_rule_out``: a part of it does, so that nothing is shown, and then ``more`` is how many times as much had to
    be measured until an interval about 1 would lie above it.
    """

    variant: str
    backend: str
    device: str
    batch: int
    scenario: str = ""
    old_ms: float | None
    new_ms: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    outcome: SpeedOutcome
    reasons: tuple[str, ...] = ()
    same_bytes: bool | None = None
    too_slow: bool = False
    cannot_rule_out: bool = False
    more: float | None = None


class ComparisonReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy compare OLD NEW --json`` prints.

    ``old`` and ``new`` are one file each or several, with commas. ``limit``: the slowdown that is allowed, as a fraction of
    the old time; None where none was given. ``passed`` is False when a row is too slow, when the limit lies within its
    interval, or when it could not be judged; always True without a limit. ``warnings`` name what else differs between the
    two than the variants.
    """

    schema_version: int = RESULT_VERSION
    old: str
    new: str
    old_created: str
    new_created: str
    limit: float | None
    rows: tuple[ComparedRow, ...]
    warnings: tuple[str, ...] = ()
    passed: bool
    command: str = ""


class VariantLight(Record, frozen=True, kw_only=True):
    """A variant's verdict over all results: the worst of those that ran, and so for the two that it is made of, where the
    results told them apart. ``label`` tells it from others of its name."""

    label: str
    variant: str
    sha256: str
    verdict: Verdict
    numerical: Verdict | None = None
    bounds: Verdict | None = None
    why: str


class Recommended(Record, frozen=True, kw_only=True):
    """What one bench says to take; ``label`` is None where it says nothing. ``reason`` says why."""

    bench: str
    label: str | None
    reason: str


class ReportSummary(Record, frozen=True, kw_only=True):
    """What ``vggdeploy report --json`` prints: the file written, the results it was made from, and its first screen."""

    schema_version: int = RESULT_VERSION
    file: str
    sources: tuple[str, ...]
    lights: tuple[VariantLight, ...]
    recommended: tuple[Recommended, ...]
    command: str = ""
