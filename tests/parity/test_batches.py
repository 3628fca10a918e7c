"""Every batch size that a variant promises is proven, and so is that the same batch has the same answer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from attacks.faults import FAULTS, planted
from attacks.planting import rewrite_onnx
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.bundle import Bundle
from vggdeploy.parity import check_golden
from vggdeploy.parity.batches import activation_bytes, fitting, promised, repeat
from vggdeploy.parity.reference import Reference, golden_reference
from vggdeploy.runtime import open_session
from vggdeploy.types import BatchRange, Device, Verdict
from vggdeploy.verify.verify import VerifyOptions, verify_bundle


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 400))
def test_the_promised_sizes_are_in_the_range_and_hold_its_ends_its_middle_and_an_odd_one(low, more, most) -> None:
    batch = BatchRange(low, low + more, low + more + most)
    sizes = promised(batch)
    assert list(sizes) == sorted(set(sizes))
    assert {batch.min, batch.opt, batch.max} <= set(sizes)
    assert all(batch.min <= size <= batch.max for size in sizes)
    assert batch.opt + 1 in sizes or batch.opt == batch.max
    assert any(size % 2 for size in sizes) or batch.min == batch.max or (batch.min | 1) > batch.max


def test_1_8_256_is_run_at_1_5_8_9_and_256() -> None:
    assert promised(BatchRange(1, 8, 256)) == (1, 5, 8, 9, 256)
    assert promised(BatchRange(4, 4, 4)) == (4,)


def test_every_profile_of_an_engine_is_run_since_each_has_kernels_of_its_own() -> None:
    profiles = (BatchRange(1, 1, 1), BatchRange(2, 8, 8), BatchRange(9, 64, 64))
    assert promised(*profiles) == (1, 2, 5, 8, 9, 37, 64)


def test_a_batch_that_does_not_fit_into_memory_is_replaced_by_the_largest_that_does_and_named(bundle: Bundle) -> None:
    one = activation_bytes(bundle.manifest)
    assert one == 2 * 4 * 32 * 32 * (
        1 + 8
    )  # conv1_1 of a VGG-11 at an eighth of its width: 1 channel in, 8 out, 32 × 32
    assert fitting(bundle.manifest, (1, 5, 8, 9, 256), 300 * one) == ((1, 5, 8, 9, 256), "")
    sizes, note = fitting(bundle.manifest, (1, 5, 8, 9, 256), 100 * one)
    assert sizes == (1, 5, 8, 9, 100)
    assert "100, not 256" in note
    assert fitting(bundle.manifest, (4, 8, 16), 0)[0] == (4,)  # the smallest has to run


def test_the_record_names_the_batches_the_stress_set_the_repeats_and_the_machine(bundle: Bundle) -> None:
    report = verify_bundle(bundle, VerifyOptions(variants=["onnx-fp16"], data="golden"))
    (record,) = report.variants
    assert [b.batch for b in record.batches] == [1, 5, 8, 9, 256]
    assert record.batches[0].calls == 32
    assert all(0 < b.relative_l2 < 1e-3 for b in record.batches)
    assert record.stress[0].samples == 12
    assert record.repeats and record.repeats.differing == 0
    assert record.repeats.calls > 20
    assert record.host["backend"] == "onnxruntime"
    manifest = bundle.manifest.variant("onnx-fp16")
    assert manifest.parity and [b.batch for b in manifest.parity.batches] == [1, 5, 8, 9, 256]


@pytest.mark.parametrize("precision", ["onnx-fp32", "onnx-fp16"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wrong at batch 1", "in batches of 1, "),
        ("wrong above batch 8", "in batches of 9, "),
        ("right only at batches 7 and 8", "in batches of 5, "),
        ("NaN for an all-white image", "NaN"),
    ],
)
@pytest.mark.usefixtures("any_graph")
def test_what_is_wrong_only_for_some_batches_or_images_fails(
    own_bundle: Path, fault: str, said: str, precision: str
) -> None:
    spec = Bundle.open(own_bundle).manifest.spec
    rewrite_onnx(own_bundle, precision, lambda m: m.CopyFrom(planted(m, spec, FAULTS[fault], "logits")))
    report = verify_bundle(Bundle.open(own_bundle), VerifyOptions(variants=[precision], data="golden"))
    assert report.verdict is Verdict.FAIL
    assert any(said in reason for reason in report.variants[0].reasons)


@pytest.mark.usefixtures("any_graph")
def test_a_graph_that_draws_numbers_fails(own_bundle: Path) -> None:
    spec = Bundle.open(own_bundle).manifest.spec
    rewrite_onnx(own_bundle, "onnx-fp32", lambda m: m.CopyFrom(planted(m, spec, FAULTS["dropout left in"], "fc6")))
    report = verify_bundle(Bundle.open(own_bundle), VerifyOptions(variants=["onnx-fp32"], data="golden"))
    assert report.verdict is Verdict.FAIL


class Sometimes:
    """A session that answers wrongly in one call of so many."""

    def __init__(self, session, every: int) -> None:
        self._session, self._every, self.calls = session, every, 0
        self.inputs, self.outputs, self.batch = session.inputs, session.outputs, session.batch

    def run(self, feeds):
        self.calls += 1
        answers = self._session.run(feeds)
        wrong = self.calls % self._every == 0
        return {name: array[:, ::-1].copy() if wrong else array for name, array in answers.items()}


def test_a_call_in_a_hundred_that_is_wrong_is_seen(bundle: Bundle) -> None:
    with open_session(bundle, bundle.manifest.variant("onnx-fp32")) as session:
        golden = golden_reference(bundle)
        found = repeat(Sometimes(session, 100), golden, 1e-6, calls=250)  # type: ignore[arg-type]
        assert found.differing >= 2
        honest = repeat(session, golden, 1e-6, calls=250)
    assert honest.differing == 0
    # Clopper & Pearson without a fault: 1 − 0.05^(1/n).
    assert honest.upper == pytest.approx(1 - 0.05 ** (1 / honest.calls), rel=1e-6)


def test_each_image_is_compared_with_its_own_answer_in_every_size(bundle: Bundle) -> None:
    """Golden answers in another order fail at every size: rows are not compared with whatever stands beside them."""
    golden = golden_reference(bundle)
    turned = {name: np.roll(rows[:], 1, axis=0) for name, rows in golden.outputs.items()}
    from vggdeploy.parity.batches import compare_batch

    with open_session(bundle, bundle.manifest.variant("onnx-fp32")) as session:
        for size in (1, 5, 40):
            right, _ = compare_batch(session, golden, size)
            wrong, _ = compare_batch(session, Reference(golden.images, turned, "turned"), size)
            assert right.relative_l2 < 1e-5
            assert wrong.relative_l2 > 0.1


def test_a_proof_without_sizes_is_of_the_optimal_batch_alone(bundle: Bundle) -> None:
    variant = bundle.manifest.variant("onnx-fp32")
    with open_session(bundle, variant) as session:
        record = check_golden(session, bundle, variant, Device())
    assert record.batches == () and record.repeats is None and record.stress == ()
    assert msgspec.structs.replace(record, sha256="").verdict is Verdict.PASS
