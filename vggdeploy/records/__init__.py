"""What was measured and what was concluded, as frozen records with JSON both ways."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, SCHEMA_VERSION, Record, from_json, to_json
from vggdeploy.records.bench import (
    BenchReport,
    BenchRow,
    Conditions,
    CpuRoof,
    FreshStart,
    HostTimes,
    LoadAnswers,
    Machine,
    RateSearch,
    RateTry,
    ScenarioRow,
)
from vggdeploy.records.parity import (
    DEFAULT_THRESHOLDS,
    AccuracyDrop,
    Check,
    FlipCount,
    LayerParity,
    LayerReport,
    OutputParity,
    ParityRecord,
    ParityReport,
    Thresholds,
)
from vggdeploy.records.search import Candidate, Goal, OriginalNetwork, Point, SearchReport, Size, StepRecord, Trial

__all__ = [
    "DEFAULT_THRESHOLDS",
    "RESULT_VERSION",
    "SCHEMA_VERSION",
    "AccuracyDrop",
    "BenchReport",
    "BenchRow",
    "Candidate",
    "Check",
    "Conditions",
    "CpuRoof",
    "FlipCount",
    "FreshStart",
    "Goal",
    "HostTimes",
    "LayerParity",
    "LayerReport",
    "LoadAnswers",
    "Machine",
    "OriginalNetwork",
    "OutputParity",
    "ParityRecord",
    "ParityReport",
    "Point",
    "RateSearch",
    "RateTry",
    "Record",
    "ScenarioRow",
    "SearchReport",
    "Size",
    "StepRecord",
    "Thresholds",
    "Trial",
    "from_json",
    "to_json",
]
