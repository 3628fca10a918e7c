"""The harness measures what it says: interleaved, on distinct inputs, with checked outputs."""

from __future__ import annotations

import sys
import time
from math import gcd
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.bench.candidates import Candidate, starts
from vggdeploy.bench.run import BenchPlan, Rounds, bench_bundle
from vggdeploy.bench.stats import by_process
from vggdeploy.bundle import Bundle
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.records.gpu import GpuSamples
from vggdeploy.runtime import CheckedSession
from vggdeploy.types import BatchRange, Device, TensorSpec, Verdict


class Recorder:
    """A session that keeps what it was given."""

    inputs = (TensorSpec("image", "uint8", ("N", 1)),)
    outputs = (TensorSpec("logits", "float32", ("N", 1)),)

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        pass

    def run(self, feeds):
        self.seen.append(feeds["image"][:, 0].tolist())
        return {"logits": np.zeros((len(feeds["image"]), 1), np.float32)}


def candidate_of(recorder: Recorder, images: int = 10, batch: int = 4, **how) -> Candidate:
    pool = np.arange(images, dtype=np.uint8)[:, None]
    return Candidate(CheckedSession(recorder, name="x", batch=BatchRange(1, 4, 4)).__enter__(), pool, batch, **how)


def test_batches_walk_through_distinct_images() -> None:
    recorder = Recorder()
    candidate = candidate_of(recorder)
    first = recorder.seen.pop()  # the answer that `repeat` compares with
    for _ in range(8):
        assert candidate.call() > 0
    assert recorder.seen[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 2, 3, 4]]
    assert recorder.seen[7] == first == recorder.seen[0]
    assert all(len(set(batch)) == 4 for batch in recorder.seen)
    assert len({tuple(batch) for batch in recorder.seen}) == 7


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_walk_visits_every_image_and_stays_in_the_pool(images: int, batch: int) -> None:
    batch = min(batch, images)
    places = starts(images, batch)
    assert len(set(places)) == len(places)
    assert min(places) == 0 and max(places) <= images - batch
    if gcd(batch, images - batch + 1) == 1:
        assert {p + offset for p in places for offset in range(batch)} == set(range(images))


def test_the_harness_does_little_between_two_calls() -> None:
    """What is timed is the session's call: beside it the clock is read, the walk goes on, and the list grows."""

    class Nothing:
        inputs = Recorder.inputs

        def run(self, feeds):
            return feeds

    candidate = Candidate(Nothing(), np.zeros((512, 4), np.uint8), 1)
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    candidate.turn(0.0)
    sys.setprofile(count)
    try:
        for _ in range(1000):
            candidate.call()
    finally:
        sys.setprofile(None)
    assert counted / 1000 < 8  # two of them are the clock, one is the session


def test_a_turn_lasts_as_long_as_asked_and_has_five_calls_at_least() -> None:
    recorder = Recorder()
    assert len(candidate_of(recorder).turn(0.0).nanoseconds) == 5
    start = time.monotonic()
    turned = candidate_of(recorder).turn(0.1)
    assert time.monotonic() - start > 0.1
    assert len(turned.nanoseconds) > 5
    assert turned.cpu_seconds > 0


def test_the_last_measured_batch_is_run_again_and_must_have_the_same_answer() -> None:
    class Stale(Recorder):
        """Like a graph that is replayed on yesterday's buffer: each answer is the one of the call before."""

        def run(self, feeds):
            super().run(feeds)
            before = self.seen[-2] if len(self.seen) > 1 else self.seen[-1]
            return {"logits": np.array(before, np.float32)[:, None]}

    for kind, wrong in ((Recorder, False), (Stale, True)):
        candidate = candidate_of(kind())
        candidate.turn(0.0)
        assert any("last measured batch" in reason for reason in candidate.repeat()) is wrong


def test_an_answer_that_changed_during_the_measurement_is_found() -> None:
    class Drifting(Recorder):
        def run(self, feeds):
            return {"logits": super().run(feeds)["logits"] + 1 + len(self.seen) * 1e-3}

    candidate = candidate_of(Drifting(), tolerance=1e-6)
    candidate.turn(0.0)
    assert any("after the measurement" in reason for reason in candidate.repeat())
    loose = candidate_of(Drifting(), tolerance=0.1)
    loose.turn(0.0)
    assert loose.repeat() == ()


def test_every_variant_is_measured_at_every_batch(bundle: Bundle) -> None:
    report = bench_bundle(
        bundle, plan=BenchPlan(backends=["onnxruntime", "torchscript"], batches=[1, 4], seconds=0.05), method=Rounds(3)
    )
    assert [(r.variant, r.batch) for r in report.rows] == [
        (name, batch) for batch in (1, 4) for name in ("onnx-fp32", "onnx-fp16", "torchscript-fp32")
    ]
    for row in report.rows:
        assert row.rounds in range(3, 10)  # more than were asked for, where they were unstable
        assert row.calls >= 15
        assert 0 < row.p50_ms <= (row.p90_ms or np.inf)
        assert row.images_per_second > 0
        assert row.verdict is Verdict.PASS
        assert row.sha256 == bundle.sha256(bundle.manifest.variant(row.variant).path)
    assert report.data.startswith("digits test")
    base = report.rows[0]
    assert (base.ratio, base.ratio_low, base.ratio_high) == (1, 1, 1)
    assert base.comparison == "baseline"
    assert {row.comparison for row in report.rows[1:3]} <= {"faster", "slower", "no difference shown"}
    assert all(row.cpu_seconds_per_image > 0 for row in report.rows)
    assert [f.variant for f in report.fresh] == ["onnx-fp32", "onnx-fp16", "torchscript-fp32"]
    for fresh in report.fresh:
        assert fresh.cold_start_ms > fresh.load_ms + fresh.first_ms > 0
    ort, _, script = report.fresh
    assert ort.peak_rss_bytes < 0.5 * script.peak_rss_bytes  # no torch in it
    assert len(report.summary) == 2
    assert 0 <= report.harness_cpu_share < 0.5


@pytest.mark.parametrize(("unsettled", "rounds", "processes"), [(0, 4, 3), (1, 5, 4), (99, 10, 9)])
def test_what_is_unstable_is_measured_again_in_new_processes_and_nothing_else_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, unsettled: int, rounds: int, processes: int
) -> None:
    """Four rounds in three processes are 2, 1, 1; each that is added has one. At most twice as many are added."""
    asked: list[int] = []

    def unstable(medians: list[float]) -> bool:  # the first row of the first batch size decides
        asked.append(len(medians))
        return len(asked) <= unsettled

    monkeypatch.setattr("vggdeploy.bench.run.MORE", 2)
    monkeypatch.setattr("vggdeploy.bench.rounds.unstable", unstable)
    plan = BenchPlan(variants=["onnx-fp32", "onnx-fp16"], batches=[1, 4], seconds=0.04)
    report = bench_bundle(bundle, plan=plan, method=Rounds(4, processes=3))
    found = {(row.variant, row.batch): row for row in report.rows}
    both = {(row.rounds, row.processes) for (_, batch), row in found.items() if batch == 1}
    assert both == {(rounds, processes)}
    others = {(row.rounds, row.processes) for (_, batch), row in found.items() if batch == 4}
    assert others == ({(4, 3)} if unsettled < 99 else both)
    for row in report.rows:
        assert len(row.round_medians_ms) == row.rounds
        assert [len(part) for part in by_process(row.round_medians_ms, row.processes)] == [2] + [1] * (
            row.processes - 1
        )


def test_a_wrong_output_makes_the_run_invalid(own_bundle: Path) -> None:
    from vggdeploy.bundle import update_bundle

    opened = Bundle.open(own_bundle)
    with update_bundle(opened) as draft:
        draft.save_arrays("golden/outputs", {"logits": opened.golden()[1]["logits"] + 9})
    (row,) = bench_bundle(
        Bundle.open(own_bundle), plan=BenchPlan(variants=["onnx-fp32"], batches=[1], seconds=0.03), method=Rounds(3)
    ).rows
    assert not row.valid
    assert row.verdict is Verdict.FAIL
    assert any("wrong output" in reason for reason in row.reasons)


def test_record_lets_auto_know(own_bundle: Path) -> None:
    bench_bundle(
        Bundle.open(own_bundle),
        plan=BenchPlan(variants=["onnx-fp32"], batches=[1], seconds=0.03),
        method=Rounds(3),
        record=True,
    )
    row = Bundle.open(own_bundle).manifest.variant("onnx-fp32")
    # A busy test machine may make the run invalid; then nothing may be recorded.
    assert all(m.batch == 1 and m.p50_ms > 0 for m in row.measured)


@pytest.mark.parametrize("batch", [0, 257, 100_000])
def test_a_batch_that_cannot_be_measured_is_refused(bundle: Bundle, batch: int) -> None:
    with pytest.raises(UsageError):
        bench_bundle(bundle, plan=BenchPlan(variants=["onnx-fp32"], batches=[batch], seconds=0.03), method=Rounds(3))


def test_tensorrt_without_a_gpu_is_exit_5_with_what_is_missing(bundle: Bundle) -> None:
    with pytest.raises(IncompatibleError) as caught:
        bench_bundle(bundle, plan=BenchPlan(backends=["tensorrt"], batches=[1]))
    assert caught.value.exit_code == 5
    assert "vggdeploy build" in caught.value.hint


def test_a_gpu_is_warm_before_its_watch_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The energy and the clocks of the warm-up are no part of what is measured."""
    from vggdeploy.bench.gpu import nvml

    recorder = Recorder()
    candidate = candidate_of(recorder)
    began: list[int] = []

    class Watch:
        def __init__(self, *about: object, **more: object) -> None:
            pass

        def __enter__(self) -> Watch:
            began.append(len(recorder.seen))
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def result(self) -> GpuSamples:
            return GpuSamples(missing="no GPU", seconds=0.0)

    monkeypatch.setattr(nvml, "GpuWatch", Watch)
    monkeypatch.setattr(nvml, "WARM_SECONDS", 0.02)
    before = len(recorder.seen)
    turned = nvml.gpu_turn(candidate, 0.0, Device("cuda"), ())
    assert began[0] - before >= 2  # and as many as went into the time
    assert len(recorder.seen) - began[0] == len(turned.nanoseconds) == 5
