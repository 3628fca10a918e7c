"""A search's result in a report: the winner first, the front in a picture and a table, nothing of it markup."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest

from vggdeploy.cli.app import run
from vggdeploy.records import AccuracyDrop, Candidate, Goal, Machine, Point, SearchReport, Trial, to_json
from vggdeploy.report import findings
from vggdeploy.types import Precision


def drop(points: float, room: float = 0.1) -> AccuracyDrop:
    return AccuracyDrop(
        lost=3,
        won=1,
        samples=1000,
        drop=points / 100,
        lower=(points - room) / 100,
        upper=(points + room) / 100,
        p_value=1,
    )


def candidate(trial: int, variant: str, ratio: float | None, points: float, misses: tuple[str, ...] = ()) -> Candidate:
    return Candidate(
        trial=trial, variant=variant, backend="openvino", precision=Precision.INT8, threads=2, bytes=250_000,
        macs=1_500_000, cost=2e6 + trial,
        drop=drop(points), latency_ms=ratio and 10 / ratio, ratio=ratio, ratio_low=ratio and ratio * 0.9,
        ratio_high=ratio and ratio * 1.1, misses=misses, test_drop=drop(0.05) if not misses else None,
    )  # fmt: skip


MACHINE = Machine(cpu="a CPU", cores=2, memory_gib=8, features=(), system="Linux", python="3.11")
POINT = Point(keep=1, hidden=1, lr=0.01, teacher=0.5)
FOUND = SearchReport(
    source="ckpt",
    source_sha256="0" * 64,
    bundle="out/<b>fast</b>",
    created="2026-11-24T12:00:00Z",
    machine=MACHINE,
    goal=Goal(accuracy_drop=0.005, size_mb=1),
    seed=7,
    epochs=3,
    measured=True,
    original_latency_ms=10.0,
    original_bytes=10_000_000,
    trials=(
        Trial(number=0, point=POINT, widths={}, macs=9_000_000, parameters=9, cost=9e6, drop=drop(0)),
        Trial(number=1, point=POINT, widths={}, macs=9_000_000, parameters=9, cost=9e6, skipped="beaten"),
    ),
    front=(
        candidate(1, "openvino-int8", 42.5, 0.2),
        candidate(0, "onnx-<script>", 3.0, 0.9, ("accuracy may have fallen by 1.00 points, the limit is 0.5",)),
    ),
    winner=1,
    chosen="openvino-int8",
    reason="openvino-int8 of trial 2 is the fastest that holds the goal",
)


def test_the_picture_has_every_candidate_and_marks_the_winner() -> None:
    rows = findings.search_points(FOUND)
    assert [(r["label"], r["speed"], r["chosen"]) for r in rows] == [
        ("openvino-int8, trial 2", 42.5, True),
        ("onnx-<script>, trial 1", 3.0, False),
    ]
    assert rows[0]["points"] == pytest.approx(-0.2)
    assert rows[0]["worst"] == pytest.approx(-0.3)
    assert [r["holds"] for r in rows] == ["holds the goal", "misses it"]


def test_what_was_not_measured_is_drawn_by_its_cost_and_told() -> None:
    front = (candidate(0, "onnx-fp16", None, 0.1),)
    gpu = msgspec.structs.replace(
        FOUND, measured=False, front=front, goal=Goal(accuracy_drop=0.005, target="tensorrt-rtx:sm89")
    )
    assert [r["speed"] for r in findings.search_points(gpu)] == [2.0]
    assert "tensorrt-rtx:sm89 was not measured: candidates are ranked by what they compute" in findings.search_words(
        gpu
    )
    assert "not measured" not in findings.search_words(FOUND)


@pytest.mark.parametrize("suffix", ["html", "md", "csv"])
def test_a_report_of_a_search_alone(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_bytes(to_json(FOUND))
    target = tmp_path / f"r.{suffix}"
    assert run(["report", str(tmp_path / "search.json"), "-o", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    if suffix == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        (speed,) = [r for r in rows if r["metric"] == "ratio" and r["variant"] == "openvino-int8"]
        assert (speed["kind"], float(speed["value"]), speed["output"]) == ("search", 42.5, "trial 2")
        return
    assert "The search's winner" in text.replace("&#x27;", "'")
    assert "1 of 2 networks were fine-tuned, seed 7" in text
    assert "at most 0.5 points of accuracy lost, 1 MB" in text
    assert "<script>, trial" not in text
    assert "<b>fast" not in text
    for empty in (
        "Every variant",
        "No latency was measured",
        "still compute what was trained",
        "| variant | verdict |",
    ):
        assert empty not in text
