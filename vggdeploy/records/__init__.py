"""What was measured and what was concluded, as frozen records with JSON both ways."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, SCHEMA_VERSION, Record, from_json, to_json
from vggdeploy.records.bench import BenchReport, BenchRow, LoadAnswers, Machine, RateSearch, RateTry, ScenarioRow
from vggdeploy.records.parity import (
    DEFAULT_THRESHOLDS,
    AccuracyDrop,
    FlipCount,
    LayerParity,
    LayerReport,
    OutputParity,
    ParityRecord,
    ParityReport,
    Thresholds,
)

__all__ = [
    "DEFAULT_THRESHOLDS",
    "RESULT_VERSION",
    "SCHEMA_VERSION",
    "AccuracyDrop",
    "BenchReport",
    "BenchRow",
    "FlipCount",
    "LayerParity",
    "LayerReport",
    "LoadAnswers",
    "Machine",
    "OutputParity",
    "ParityRecord",
    "ParityReport",
    "RateSearch",
    "RateTry",
    "Record",
    "ScenarioRow",
    "Thresholds",
    "from_json",
    "to_json",
]
