"""A fit's result in a report: the network to take first, all that were tried in a picture and a table, nothing of it markup."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest

from vggdeploy.cli.app import run
from vggdeploy.records import Machine, to_json
from vggdeploy.records.evaluation import Rate
from vggdeploy.records.fit import (
    FitGoal,
    FitOpponent,
    FitReport,
    FitRoof,
    FitTrial,
    FitVariant,
    MeasuredLatency,
    Rung,
    Shape,
)
from vggdeploy.report import fits
from vggdeploy.report.documents import read_document
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Precision, Verdict

SHAPE = Shape(image_size=32, blocks=2, first=1, convs=1, growth=2.0, head="avg", augment="crop", lr=0.1)
SPEC = ModelSpec(
    arch="custom", blocks=((8,), (16,)), batch_norm=True, in_channels=1, classes=10, image_size=32, hidden=(),
    head_pool="avg",
)  # fmt: skip


def rate(hits: int) -> Rate:
    return Rate(hits=hits, samples=1000, rate=hits / 1000, lower=hits / 1000 - 0.02, upper=hits / 1000 + 0.01)


def trial(number: int, ms: float, hits: int) -> FitTrial:
    return FitTrial(
        number=number, band=2, shape=SHAPE, spec=SPEC, macs=500_000, parameters=1500,
        latency=MeasuredLatency(variant="onnx-int8", threads=1, ms=ms),
        rungs=(Rung(epochs=3, hits=hits, samples=1000, seconds=20.0),) if hits else (),
    )  # fmt: skip


WINNER = FitVariant(
    trial=0, variant="onnx-int8", backend="onnxruntime", precision=Precision.INT8, threads=1, latency_ms=0.125,
    bytes=21_500, validation=rate(930), verdict=Verdict.PASS,
)  # fmt: skip
FITTED = FitReport(
    source="<b>photos</b>",
    bundle="out/<b>fast</b>",
    created="2026-11-30T12:00:00Z",
    machine=Machine(cpu="a CPU", cores=2, memory_gib=8, features=(), system="Linux", python="3.11"),
    goal=FitGoal(accuracy=0.92),
    seed=0,
    recipe="fast",
    budget_seconds=1200,
    seconds=1170,
    images={"train": 5000, "validation": 1000, "test": 1000, "duplicates": 3},
    classes=("<script>", "b"),
    folds=1,
    trials=(trial(0, 0.125, 930), trial(1, 0.5, 950), trial(2, 0.6, 900), trial(3, 0.1, 0)),
    frontier=(0, 1),
    variants=(
        WINNER,
        msgspec.structs.replace(WINNER, variant="onnx-fp32", latency_ms=0.2, misses=("0.2 ms, the limit is 0.1",)),
    ),
    winner=WINNER,
    test=rate(925),
    reached=True,
    reason="onnx-int8 of trial 1 is the fastest that holds the goal (at least 92% accuracy)",
    more_time="An estimate: three times the training would bring the winner about 0.4 points",
    advice=("Collect about 40 more images of <script>: 5 of its 10 validation images are wrong",),
)


def test_the_picture_has_every_network_that_was_trained() -> None:
    rows = fits.points(FITTED)
    assert [(r["label"], r["ms"], r["kind"]) for r in rows] == [
        ("trial 1", 0.125, "winner"),
        ("trial 2", 0.5, "frontier"),
        ("trial 3", 0.6, "beaten"),
    ]
    assert rows[0]["network"] == "8 · 16 at 32 px"


@pytest.mark.parametrize("suffix", ["html", "md", "csv"])
def test_a_report_of_a_fit_alone(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_bytes(to_json(FITTED))
    assert read_document(tmp_path / "fit.json") == FITTED
    target = tmp_path / f"r.{suffix}"
    assert run(["report", str(tmp_path / "fit.json"), "-o", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    if suffix == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        (speed,) = [r for r in rows if r["metric"] == "latency_ms" and r["variant"] == "onnx-int8"]
        assert (speed["kind"], float(speed["value"]), speed["output"]) == ("fit", 0.125, "trial 1")
        return
    assert "The network to take" in text
    assert "92.50%" in text
    assert "19.5 min of a budget of 20 min" in text
    assert "about 0.4 points" in text
    assert "<script>: 5" not in text
    assert "<b>" not in text.replace("<b>Runner-up:</b>", "").replace("<b>To settle it:</b>", "")


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_opponents_and_the_roof_stand_on_the_page(suffix: str, tmp_path: Path) -> None:
    mine = FitOpponent(
        name="vggdeploy fit", latency_ms=0.125, threads=1, ratio=1.0, ratio_low=1.0, ratio_high=1.0, test=rate(925),
        bytes=21_500, seconds=1170, ours=True,
    )  # fmt: skip
    other = msgspec.structs.replace(mine, name="<i>theirs</i>", latency_ms=0.5, ratio=4.0, ours=False, bytes=None)
    roof = FitRoof(tera_ops=0.012, threads=1, int8_share=0.0625, limits=("61% of a call is outside of its <kernels>.",))
    report = msgspec.structs.replace(FITTED, opponents=(mine, other), roof=roof)
    (tmp_path / "fit.json").write_bytes(to_json(report))
    target = tmp_path / f"r.{suffix}"
    assert run(["report", str(tmp_path / "fit.json"), "-o", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    assert "Beside what others make" in text
    assert "4.00 × as fast" in text
    assert "6.2% of what these CPUs can in INT8" in text
    assert "61% of a call is outside of its" in text
    assert "<kernels>" not in text
    assert "<i>" not in text
    assert [row["ours"] for row in fits.rivals(report)] == [True, False]


def test_no_share_is_told_where_none_is_known() -> None:
    over = msgspec.structs.replace(FITTED, roof=FitRoof(tera_ops=99.0, threads=1, limits=("It reached more.",)))
    assert fits.roof_words(over) == ("It multiplies 99 TOP/s.", "It reached more.")
    assert fits.roof_words(FITTED) == ()


def test_a_goal_that_was_missed_is_told_first(tmp_path: Path) -> None:
    missed = msgspec.structs.replace(FITTED, reached=False)
    (tmp_path / "fit.json").write_bytes(to_json(missed))
    assert run(["report", str(tmp_path / "fit.json"), "-o", str(tmp_path / "r.md")]) == 0
    assert "The goal was not reached; the closest" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize("odd", [0, -1])
def test_a_hostile_result_is_drawn_or_refused(odd: int, tmp_path: Path) -> None:
    """No division by 0 and no logarithm of less."""
    rung = Rung(epochs=1, hits=1, samples=odd, seconds=0.0)
    bad = msgspec.structs.replace(trial(0, float(odd), 1), rungs=(rung,))
    (tmp_path / "fit.json").write_bytes(to_json(msgspec.structs.replace(FITTED, trials=(bad,))))
    assert run(["report", str(tmp_path / "fit.json"), "-o", str(tmp_path / "r.html")]) in (0, 1)
