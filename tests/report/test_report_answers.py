"""What a result answers at first sight, on the page and in the terminal: the same words, and never more than was shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from report_samples import bench, parity, proof, row, scenario, whole, write
from test_report_search import FOUND

from vggdeploy.cli.app import run
from vggdeploy.records import AccuracyDrop, FreshStart, RateSearch, Thresholds
from vggdeploy.report.answers import Answer, answers, lines
from vggdeploy.report.digits import figures
from vggdeploy.report.documents import read_results
from vggdeploy.report.findings import tail
from vggdeploy.report.looks import looks
from vggdeploy.report.main_picture import main_figures
from vggdeploy.report.subjects import gather
from vggdeploy.types import Verdict

ROOT = Path(__file__).parents[2]
BASE = row("torch-fp32", 2.0, (1, 1, 1))
FAST = row("b", 0.5, (4, 3.5, 4.5))
BUSY = {"valid": False, "reasons": ("busy machine: x",)}


def first(tmp_path: Path, *results: Any) -> Answer:
    found = read_results(write(tmp_path, *results))
    return answers(found, gather(found))[0]


def facts(answer: Answer) -> dict[str, str]:
    return {fact.name: fact.text for fact in answer.facts}


def test_three_lines_answer(tmp_path: Path) -> None:
    start = FreshStart(
        variant="b", backend="onnxruntime", batch=1, cold_start_ms=9, load_ms=1, first_ms=1, peak_rss_bytes=81_400_000,
        sha256=FAST.sha256, size_bytes=3_650_000,
    )  # fmt: skip
    drop = AccuracyDrop(lost=3, won=1, samples=1000, drop=0.002, lower=-0.001, upper=0.0061, p_value=0.6)
    found = first(tmp_path, bench(BASE, FAST, fresh=(start,)), parity(proof(BASE), proof(FAST, drop=drop)))
    assert lines(found) == (
        "Take: b; 4.00 × as fast as torch-fp32 at batch 1 (95% interval 3.50–4.50), proven, and its run is valid",
        "p50 0.500 ms (batch 1) · p99 1.00 ms · throughput 2,000 images/s · accuracy drop 0.20 points (≤ 0.61) · "
        "size 3.65 MB · memory 81.4 MB",
        "runner-up: torch-fp32, 2.00 ms at batch 1: 4.00 × the time; "
        "use it: vggdeploy predict artifacts/demo/bundle IMAGE --variant b",
    )


def test_what_was_not_measured_is_said_and_never_made_up(tmp_path: Path) -> None:
    told = facts(first(tmp_path, bench(BASE, msgspec.structs.replace(FAST, p99_ms=None))))
    assert told["p99"] == "not measured (too few calls)"
    assert told["accuracy drop"] == told["size"] == told["memory"] == "not measured"


def test_without_labels_the_bound_of_changed_classes_bounds_the_loss(tmp_path: Path) -> None:
    assert facts(first(tmp_path, bench(BASE, FAST), parity(proof(FAST))))["accuracy drop"] == "≤ 0.83 points"


@pytest.mark.parametrize(
    ("faster", "why"),
    [
        (BUSY, "its run is not valid: busy machine: x"),
        ({"verdict": Verdict.FAIL, "valid": False, "reasons": ("wrong output",)}, "its proof says fail: wrong output"),
        ({"ratio_low": 0.9}, "not shown to be faster than torch-fp32"),
    ],
    ids=["invalid", "wrong", "not shown"],
)
def test_what_is_faster_and_was_not_taken_is_the_runner_up_with_the_reason(
    tmp_path: Path, faster: dict[str, Any], why: str
) -> None:
    found = first(tmp_path, bench(BASE, FAST, row("c", 0.2, (10, 9, 11), **faster)))
    assert (found.name, found.runner_up) == ("b", f"c, 0.200 ms at batch 1: {why}")


def test_without_a_valid_run_there_is_a_provisional_leader_and_what_would_settle_it(tmp_path: Path) -> None:
    rows = [msgspec.structs.replace(r, **BUSY) for r in (BASE, FAST)]
    found = first(tmp_path, bench(*rows))
    assert (found.heading, found.name, found.settled) == ("Provisional leader", "b", False)
    assert found.mend == "measure it again (vggdeploy bench artifacts/demo/bundle --json) without this: busy machine: x"
    assert "use it" not in lines(found)[2]
    unproven = first(tmp_path, bench(*(msgspec.structs.replace(r, verdict=Verdict.UNPROVEN) for r in (BASE, FAST))))
    assert unproven.mend == "prove it: vggdeploy verify artifacts/demo/bundle"


def test_what_failed_is_no_provisional_leader(tmp_path: Path) -> None:
    wrong = [msgspec.structs.replace(r, verdict=Verdict.FAIL, **BUSY) for r in (BASE, FAST)]
    assert first(tmp_path, bench(*wrong)).name == "None"


def test_load_answers_with_the_highest_rate_that_counts(tmp_path: Path) -> None:
    kept, missed = scenario("a", 400, 8.0), scenario("b", 800, 31.0)
    found = first(tmp_path, bench(scenarios=(kept, missed)))
    assert (found.name, found.settled) == ("a", True)
    assert facts(found)["rate"] == "400 images/s"
    assert found.runner_up == "b in server, 800 images/s: the bound was missed"
    none = RateSearch(bound_ms=10, qps=None, tries=(), seconds=1)
    assert not first(tmp_path, bench(scenarios=(msgspec.structs.replace(kept, search=none),))).settled


def test_a_search_answers_with_its_winner_and_the_loss_on_the_test_split(tmp_path: Path) -> None:
    found = first(tmp_path, FOUND)
    assert (found.name, facts(found)["accuracy drop"]) == ("openvino-int8, trial 2", "0.05 points (≤ 0.15, test split)")
    assert found.runner_up.startswith("onnx-<script>, trial 1: it misses the goal")
    assert not first(tmp_path, msgspec.structs.replace(FOUND, winner=None, chosen=None)).settled


def test_a_gpu_day_answers_from_its_own_readings(tmp_path: Path) -> None:
    file = ROOT / "benchmarks/results/gpu_day.json"
    readings = [r for step in json.loads(file.read_text())["steps"] for r in step["readings"]]
    rates = [r for r in readings if r["type"] == "NetworkRate" and r["network"] == "vgg16" and r["precision"] == "fp16"]
    best = max((r for r in rates if "compile" not in r["by"]), key=lambda r: float(r["images_per_second"]))
    found = read_results([file])
    (answer,) = answers(found, gather(found))
    assert facts(answer)["throughput"] == f"{figures(best['images_per_second'])} images/s"
    assert answer.settled


def test_proofs_alone_answer_how_many_passed(tmp_path: Path) -> None:
    found = first(tmp_path, parity(proof(BASE), proof(FAST, Verdict.FAIL)))
    assert (found.name, found.settled) == ("1 of 2 comparisons pass", False)
    assert found.mend == "b on cpu says fail: a reason to fail"


@pytest.mark.parametrize(
    "sources",
    [
        [bench(scenarios=(scenario("a", 400, 8.0),))],
        [bench(BASE, FAST)],
        [FOUND],
        [parity(proof(BASE), proof(FAST))],
        list(whole()),
    ],
    ids=["scenarios", "batches", "search", "proofs", "all"],
)
def test_no_part_of_a_report_is_empty(tmp_path: Path, sources: list[Any]) -> None:
    files = write(tmp_path, *sources)
    assert run(["report", *map(str, files), "-o", str(tmp_path / "r.md")]) == 0
    parts = (tmp_path / "r.md").read_text().split("\n## ")[1:]
    for part in parts:
        title, _, body = part.partition("\n")
        assert "|--" in body or "```" in body or title == "Not in these results"


def test_a_gpu_day_makes_every_format(tmp_path: Path) -> None:
    for suffix in ("html", "md", "csv"):
        target = tmp_path / f"day.{suffix}"
        assert run(["report", str(ROOT / "benchmarks/results/gpu_day.json"), "-o", str(target)]) == 0
        assert "vgg16" in target.read_text()


def drawn_rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows that a chart is drawn from."""
    held = list(spec.get("datasets", {}).values()) + [
        layer["data"]["values"] for layer in (spec, *spec["layer"]) if "values" in layer.get("data", {})
    ]
    return [row for rows in held for row in rows]


def test_the_picture_has_the_interval_the_bound_and_the_limit_that_were_recorded(tmp_path: Path) -> None:
    limits = Thresholds(relative_l2=1, cosine=0, flip_rate=0.01)
    found = read_results(write(tmp_path, bench(BASE, FAST), parity(proof(FAST, limits=limits))))
    latency, loss = (drawn_rows(figure.draw().to_dict()) for figure in main_figures(found, gather(found)))
    one = next(r for r in latency if r["label"] == "b")
    assert (one["p50_ms"], one["p99_ms"]) == (0.5, 1.0)
    assert (one["low_ms"], one["high_ms"]) == pytest.approx((0.5 * 4 / 4.5, 0.5 * 4 / 3.5))
    lost = next(r for r in loss if r["label"] == "b")
    assert (lost["points"], lost["upper"], lost["limit"]) == (None, pytest.approx(0.83), 1.0)


def test_a_tail_ends_where_its_calls_do() -> None:
    few = tail(msgspec.structs.replace(BASE, calls=20), "x")
    assert max(point["nines"] for point in few) == pytest.approx(
        1.30103
    )  # the slowest of 20 is p95, and no p99 is drawn
    assert few[-1]["told"] == "the slowest of 20 calls"


def test_a_backend_has_one_look_in_every_report() -> None:
    alone, among = looks(["openvino"]), looks(["torch", "onnxruntime", "openvino", "x"])
    assert alone["openvino"] == among["openvino"]
    every = looks(
        ["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torchscript", "torch-export", "torch", "aoti"]
    )
    for part in ("mark", "light", "dark"):
        assert len({getattr(look, part) for look in every.values()}) == 8


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9.996, "10.0"),
        (0.0123456, "0.0123"),
        (148.3, "148"),
        (1234.5, "1,230"),
        (1e-7, "1.00e-07"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert figures(value) == text


def test_a_file_with_more_percentiles_than_there_are_has_a_tail_all_the_same() -> None:
    """The fuzzer's find: the hundredth of a hundred and two was rarer than anything, and the report ended as a bug."""
    long = msgspec.structs.replace(
        row("onnx-fp32", 1.0, (1, 1, 1)), quantiles_ms=tuple(float(i + 1) for i in range(150))
    )
    points = tail(long, "onnx-fp32")
    assert all(math.isfinite(point["nines"]) for point in points)
    assert points[-1]["ms"] == 150.0
