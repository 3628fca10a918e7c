"""A good result of every kind that `report` reads, and a search that was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from fuzz.mutations import plain
from vggdeploy.records import (
    RESULT_VERSION,
    AccuracyDrop,
    BenchReport,
    Candidate,
    Goal,
    ParityReport,
    Point,
    SearchReport,
    Trial,
)
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.gpu import GpuReport
from vggdeploy.search.state import SearchProgress, SearchRequest
from vggdeploy.types import Precision

sys.path.append(str(Path(__file__).parents[1] / "report"))
from report_samples import layers, parity, proof, row, scenario, whole  # of the report's own tests
from test_report_fit import FITTED


def results() -> list[Any]:
    """At least one of each kind, with every field filled in some of them."""
    bench, verified = whole()
    one = row("onnx-fp32", 0.5, (4, 3.9, 4.1))
    return [
        bench,
        verified,
        msgspec.structs.replace(parity(proof(one)), layers=(layers(),)),
        msgspec.structs.replace(bench, scenarios=(scenario("onnx-fp32", 100.0, 5.0),)),
        FITTED,
        *(filled(kind) for kind in (EvaluationReport, GpuReport, SearchReport, BenchReport, ParityReport)),
    ]


def filled(kind: type) -> Any:
    """A record in which no field is left out, each of the simplest value."""
    document = plain(msgspec.inspect.type_info(kind))
    return msgspec.convert({**document, "schema_version": RESULT_VERSION}, kind)


def progress() -> SearchProgress:
    drop = AccuracyDrop(lost=3, won=1, samples=1000, drop=0.002, lower=0.001, upper=0.003, p_value=1)
    point = Point(keep=1, hidden=1, lr=0.01, teacher=0.5)
    return SearchProgress(
        question=SearchRequest(
            source_sha256="0" * 64, goal=Goal(accuracy_drop=0.005), seed=0, epochs=3, dataset="digits"
        ),
        trials=(Trial(number=0, point=point, widths={"conv1_1": 8}, macs=9, parameters=9, cost=9e6, drop=drop),),
        candidates=(
            Candidate(
                trial=0, variant="onnx-fp32", backend="onnxruntime", precision=Precision.FP32, threads=1, bytes=9,
                macs=9, cost=9.0, drop=drop, latency_ms=1.0, ratio=2.0, ratio_low=1.9, ratio_high=2.1,
            ),
        ),
    )  # fmt: skip
