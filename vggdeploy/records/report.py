"""What a report concluded, for programs."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.types import Verdict


class VariantLight(Record, frozen=True, kw_only=True):
    """A variant's verdict over all results: the worst of those that ran. ``label`` tells it from others of its name."""

    label: str
    variant: str
    sha256: str
    verdict: Verdict
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
