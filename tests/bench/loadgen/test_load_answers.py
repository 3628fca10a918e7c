"""LoadGen's accuracy mode: the answers under load are right, and belong to the queries that were asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes.worker import InlineWorker

from vggdeploy.bench.loadgen.answers import check_answers
from vggdeploy.bench.loadgen.scenarios import Load
from vggdeploy.bench.loadgen.sut import SystemUnderTest
from vggdeploy.bench.run import BenchPlan, Scenarios, bench_bundle
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.parity.reference import golden_reference
from vggdeploy.records import LoadAnswers
from vggdeploy.runtime import open_session
from vggdeploy.types import Verdict
from vggdeploy.verify.samples import measuring_pool

LOADS = [
    Load("single_stream", seconds=0.5),
    Load("multi_stream", seconds=0.5),
    Load("server", seconds=0.5, target_qps=200.0, latency_bound_ms=50.0),
    Load("offline", seconds=0.5),
]


def answers_of(bundle: Bundle, load: Load, name: str = "onnx-fp32") -> LoadAnswers:
    variant = bundle.manifest.variant(name)
    pool = measuring_pool(bundle, "", 64, None)
    with open_session(bundle, variant) as session:
        thresholds = bundle.manifest.thresholds[variant.precision]
        return check_answers(session, golden_reference(bundle), pool.images, load, thresholds)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.scenario)
@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp16"])
def test_every_image_is_answered_as_without_load(bundle: Bundle, load: Load, name: str) -> None:
    found = answers_of(bundle, load, name)
    assert (found.verdict, found.misplaced, found.changed) == (Verdict.PASS, 0, 0), found.reasons
    assert found.images > len(golden_reference(bundle).images)
    assert found.outputs[0].samples == len(golden_reference(bundle).images)


def swap_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the system under test: once, two queries get each other's answers."""
    run = SystemUnderTest._run
    done: list[bool] = []

    def swapped(self: SystemUnderTest, rows: list[int]):
        packed = run(self, rows)
        if self._hand_over and len(rows) > 1 and not done:
            done.append(True)
            packed[[0, 1]] = packed[[1, 0]]
        return packed

    monkeypatch.setattr(SystemUnderTest, "_run", swapped)


@pytest.mark.parametrize("load", LOADS[1:], ids=lambda load: load.scenario)
def test_two_answers_swapped_under_load_are_found(bundle: Bundle, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_two(monkeypatch)
    found = answers_of(bundle, load)
    assert found.verdict is Verdict.FAIL
    assert found.misplaced == 2
    assert "answers belong to other images" in found.reasons[0]


def test_a_swap_makes_the_row_invalid_and_the_command_end_with_3(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from vggdeploy.cli.app import run

    swap_two(monkeypatch)
    monkeypatch.setattr("vggdeploy.bench.loadgen.run.Worker", InlineWorker)  # the fault is in this process
    line = ["bench", str(bundle_dir), "--variant", "onnx-fp32", "--scenario", "offline", "--seconds", "0.2"]
    assert run(line) == 3
    shown = capsys.readouterr().out
    assert "fail" in shown
    assert "belong to other images" in shown


def test_an_answer_that_changes_under_load_is_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SystemUnderTest._run
    monkeypatch.setattr(SystemUnderTest, "_run", lambda self, rows: run(self, rows) * np.float32(1.01))
    found = answers_of(bundle, LOADS[3])
    assert found.changed > 32
    assert found.misplaced == 0
    assert any("than without load" in reason for reason in found.reasons)
    assert any("relative L2" in reason for reason in found.reasons)


def test_an_image_without_an_answer_is_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from vggdeploy.bench.loadgen import answers

    log = answers.answer_log
    monkeypatch.setattr(answers, "answer_log", lambda *args: tuple(part[1:] for part in log(*args)))
    assert "1 of " in answers_of(bundle, LOADS[3]).reasons[0]


def test_a_wrong_golden_answer_is_a_fail(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    with update_bundle(opened) as draft:
        draft.save_arrays("golden/outputs", {"logits": opened.golden()[1]["logits"] + 9})
    (row,) = bench_bundle(
        Bundle.open(own_bundle),
        plan=BenchPlan(variants=["onnx-fp32"], batches=[8], seconds=0.2),
        method=Scenarios(["offline"]),
    ).scenarios
    assert row.verdict is Verdict.FAIL
    assert not row.valid
    assert any("wrong output under load" in reason for reason in row.reasons)
