"""The harness measures what it says: interleaved, on distinct inputs, with checked outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vggdeploy.bench.compare import Candidate
from vggdeploy.bench.entries import Entry
from vggdeploy.bundle import Bundle
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.pipeline.bench import bench_bundle
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


def test_batches_walk_through_distinct_images(bundle: Bundle) -> None:
    recorder = Recorder()
    variant = bundle.manifest.variant("onnx-fp32")
    with CheckedSession(recorder, name="x", batch=BatchRange(1, 4, 4)) as session:
        candidate = Candidate(Entry(bundle, variant, Device(), variant.name), session, 4, 0.0, Verdict.PASS, [])
        for _ in range(5):
            candidate.call(np.arange(10, dtype=np.uint8)[:, None])
    assert recorder.seen[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert all(len(set(batch)) == 4 for batch in recorder.seen)


def test_every_variant_is_measured_at_every_batch(bundle: Bundle) -> None:
    report = bench_bundle(bundle, backends=["onnxruntime", "torchscript"], batches=[1, 4], seconds=0.05, rounds=3)
    assert [(r.variant, r.batch) for r in report.rows] == [
        (name, batch) for batch in (1, 4) for name in ("onnx-fp32", "onnx-fp16", "torchscript-fp32")
    ]
    for row in report.rows:
        assert row.rounds == 3
        assert row.calls >= 15
        assert 0 < row.p50_ms <= (row.p90_ms or np.inf)
        assert row.images_per_second > 0
        assert row.verdict is Verdict.PASS
        assert row.sha256 == bundle.sha256(bundle.manifest.variant(row.variant).path)
    assert report.data.startswith("digits test")
    base = report.rows[0]
    assert (base.ratio, base.ratio_low, base.ratio_high) == (1, 1, 1)


def test_a_wrong_output_makes_the_run_invalid(own_bundle: Path) -> None:
    from vggdeploy.bundle import update_bundle

    opened = Bundle.open(own_bundle)
    with update_bundle(opened) as draft:
        draft.save_arrays("golden/outputs", {"logits": opened.golden()[1]["logits"] + 9})
    (row,) = bench_bundle(Bundle.open(own_bundle), variants=["onnx-fp32"], batches=[1], seconds=0.03, rounds=3).rows
    assert not row.valid
    assert row.verdict is Verdict.FAIL
    assert any("wrong output" in reason for reason in row.reasons)


def test_record_lets_auto_know(own_bundle: Path) -> None:
    bench_bundle(Bundle.open(own_bundle), variants=["onnx-fp32"], batches=[1], seconds=0.03, rounds=3, record=True)
    row = Bundle.open(own_bundle).manifest.variant("onnx-fp32")
    # A busy test machine may make the run invalid; then nothing may be recorded.
    assert all(m.batch == 1 and m.p50_ms > 0 for m in row.measured)


@pytest.mark.parametrize("batch", [0, 257, 100_000])
def test_a_batch_that_cannot_be_measured_is_refused(bundle: Bundle, batch: int) -> None:
    with pytest.raises(UsageError):
        bench_bundle(bundle, variants=["onnx-fp32"], batches=[batch], seconds=0.03, rounds=3)


def test_tensorrt_without_a_gpu_is_exit_5_with_what_is_missing(bundle: Bundle) -> None:
    with pytest.raises(IncompatibleError) as caught:
        bench_bundle(bundle, backends=["tensorrt"], batches=[1])
    assert caught.value.exit_code == 5
    assert "vggdeploy build" in caught.value.hint
