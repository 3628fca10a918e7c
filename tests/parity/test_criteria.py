"""A variant is judged by the strictest of the manifest's limits, the package's ceiling and its own record."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from attacks.planting import rewrite_manifest, rewrite_weight

from vggdeploy.bundle import Bundle, Manifest, update_bundle
from vggdeploy.parity.criteria import RECORD_FACTOR, Criteria, criteria_of
from vggdeploy.records import CEILINGS, Distance, Thresholds
from vggdeploy.types import ImageSource, Precision, Verdict
from vggdeploy.verify.prove import Limits
from vggdeploy.verify.verify import VerifyOptions, verify_bundle

LOOSE = Thresholds(relative_l2=1.0, cosine=-1.0, flip_rate=1.0)


def loosened(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, thresholds=dict.fromkeys(manifest.thresholds, LOOSE))


def without_record(manifest: Manifest) -> Manifest:
    bare = [msgspec.structs.replace(v, distances=()) for v in manifest.candidates()]
    return manifest.with_variants(*bare)


def test_limits_that_were_loosened_in_the_manifest_do_not_count(own_bundle: Path) -> None:
    """Found: 359 of 359 flips and no accuracy at all were a pass."""
    rewrite_manifest(own_bundle, lambda m: without_record(loosened(m)))
    rewrite_weight(own_bundle, "onnx-fp32", "classifier.6.bias", lambda b: b[::-1].copy() * 50)
    bundle = Bundle.open(own_bundle)
    assert bundle.manifest.limits(Precision.FP32) == CEILINGS[Precision.FP32]
    report = verify_bundle(bundle, VerifyOptions(variants=["onnx-fp32"]))
    assert {r.verdict for r in report.variants} == {Verdict.FAIL}


def test_a_manifest_may_be_stricter_than_the_package(own_bundle: Path) -> None:
    strict = msgspec.structs.replace(CEILINGS[Precision.FP16], relative_l2=1e-6)
    rewrite_manifest(
        own_bundle, lambda m: msgspec.structs.replace(m, thresholds={**m.thresholds, Precision.FP16: strict})
    )
    report = verify_bundle(Bundle.open(own_bundle), VerifyOptions(variants=["onnx-fp16"], data="golden"))
    assert report.verdict is Verdict.FAIL


def test_the_distances_of_all_kinds_of_images_are_recorded_when_a_variant_is_made(bundle: Bundle) -> None:
    for variant in bundle.manifest.candidates():
        assert {d.source for d in variant.distances} == {ImageSource.GOLDEN, ImageSource.STRESS, ImageSource.REAL}
        assert all(0 < d.relative_l2 <= CEILINGS[variant.precision].relative_l2 for d in variant.distances)


def test_what_is_under_the_ceiling_and_far_above_its_record_fails_with_the_sentence(own_bundle: Path) -> None:
    before = Bundle.open(own_bundle).manifest.variant("onnx-fp16").distances
    golden = next(d.relative_l2 for d in before if d.source is ImageSource.GOLDEN)
    # Small enough for the ceiling: a shift of the class scores by a few times what rounding did.
    rewrite_weight(own_bundle, "onnx-fp16", "classifier.6.weight", lambda w: w * 1.003)
    report = verify_bundle(Bundle.open(own_bundle), VerifyOptions(variants=["onnx-fp16"], data="golden"))
    (record,) = report.variants
    assert RECORD_FACTOR * golden < record.outputs[0].relative_l2 < CEILINGS[Precision.FP16].relative_l2
    assert record.verdict is Verdict.FAIL
    assert "times what was measured when the variant was made" in record.reasons[0]


def test_a_distance_that_the_caller_allows_is_allowed_whatever_was_on_record() -> None:
    recorded = (Distance(source=ImageSource.GOLDEN, output="logits", relative_l2=1e-5),)
    criteria = Criteria(Precision.FP16, CEILINGS[Precision.FP16], recorded)
    assert criteria.allowed(ImageSource.GOLDEN) == {"logits": 1e-4}  # three times less than rounding: that decides
    own = Limits(relative_l2=0.5).over(criteria)
    assert own.thresholds.relative_l2 == 0.5
    assert own.allowed(ImageSource.GOLDEN) == {}
    assert Limits(flip_rate=0.5).over(criteria).allowed(ImageSource.GOLDEN) == {"logits": 1e-4}


def test_images_of_another_data_set_are_measured_against_the_largest_distance_on_record() -> None:
    near = Distance(source=ImageSource.REAL, output="logits", relative_l2=0.002)
    far = Distance(source=ImageSource.GOLDEN, output="logits", relative_l2=0.004)
    edge = Distance(source=ImageSource.STRESS, output="logits", relative_l2=0.3)
    criteria = Criteria(Precision.INT8, CEILINGS[Precision.INT8], (near, far, edge))
    assert criteria.allowed(ImageSource.REAL) == pytest.approx({"logits": 0.012})
    assert criteria.allowed(ImageSource.STRESS) == pytest.approx({"logits": 0.9})
    assert criteria.of(ImageSource.STRESS).relative_l2 == 1.0  # only the record knows what is usual there
    assert criteria.of(ImageSource.GOLDEN) == CEILINGS[Precision.INT8]


def test_a_proof_of_other_bytes_is_no_proof(own_bundle: Path) -> None:
    """Found: `inspect` called a replaced file proven, and `load` took it."""
    rewrite_weight(own_bundle, "onnx-fp32", "classifier.6.bias", lambda b: b + 1)
    opened = Bundle.open(own_bundle)
    variant = opened.manifest.variant("onnx-fp32")
    assert variant.verdict is Verdict.UNPROVEN
    assert variant.parity and "other bytes" in variant.parity.reasons[0]
    assert variant.measured == ()
    assert opened.manifest.variant("onnx-fp16").verdict is Verdict.PASS
    # Writing the bundle anew does not make it a proof of these bytes.
    with update_bundle(opened) as draft:
        draft.write("note.txt", b"")
    assert Bundle.open(own_bundle).manifest.variant("onnx-fp32").verdict is Verdict.UNPROVEN


def test_criteria_are_the_bundles_own(bundle: Bundle) -> None:
    variant = bundle.manifest.variant("onnx-fp16")
    criteria = criteria_of(bundle, variant)
    assert criteria.recorded == variant.distances
    assert criteria.thresholds == CEILINGS[Precision.FP16]
