"""The JSON Schemas of the results, for programs in other languages that read them.

python -m vggdeploy.report.schemas docs/reference
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vggdeploy.evaluation import EvaluationReport
from vggdeploy.files import atomic_write
from vggdeploy.records import RESULT_VERSION, BenchReport, ParityReport
from vggdeploy.records.comparison import ComparisonReport
from vggdeploy.records.report import ReportSummary
from vggdeploy.records.schema import json_schema, schema_text

RESULTS: dict[str, tuple[type[Any], str]] = {
    "parity": (ParityReport, "vggdeploy verify --json"),
    "bench": (BenchReport, "vggdeploy bench --json"),
    "evaluation": (EvaluationReport, "vggdeploy evaluate --json"),
    "comparison": (ComparisonReport, "vggdeploy compare --json"),
    "report": (ReportSummary, "vggdeploy report --json"),
}


def result_schema(name: str) -> dict[str, Any]:
    """The schema of one of `RESULTS`."""
    kind, command = RESULTS[name]
    return json_schema(kind, f"what {command} prints, schema version {RESULT_VERSION}")


def main() -> None:
    for name in RESULTS:
        atomic_write(Path(sys.argv[1]) / f"{name}.schema.json", schema_text(result_schema(name)))


if __name__ == "__main__":
    main()
