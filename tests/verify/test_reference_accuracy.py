"""What the reference had right at export has to come out again, or `verify` says that something changed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from attacks.planting import rewrite_checkpoint, rewrite_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vggdeploy.bundle import Bundle, ReferenceAccuracy, update_bundle
from vggdeploy.parity.bounds import drawn_p_value
from vggdeploy.records import Check, ParityReport
from vggdeploy.types import Verdict
from vggdeploy.verify.verify import VerifyOptions, exit_code, verify_bundle

WHAT = "the reference's accuracy"


def verify(root: Path, samples: int | None = 359) -> ParityReport:
    return verify_bundle(Bundle.open(root), VerifyOptions(variants=["onnx-fp32"], samples=samples))


def the_check(report: ParityReport) -> Check:
    (found,) = [check for check in report.checks if check.what == WHAT]
    return found


def recorded(**changes: object):
    def change(manifest):
        then = msgspec.structs.replace(manifest.reference_accuracy, **changes)
        return msgspec.structs.replace(manifest, reference_accuracy=then)

    return change


def test_export_records_what_the_reference_has_right(bundle: Bundle) -> None:
    found = bundle.manifest.reference_accuracy
    assert found is not None
    assert (found.dataset, found.samples) == ("digits", 359)
    parity = bundle.manifest.variant("onnx-fp32").parity
    assert parity is not None
    assert found.hits / found.samples == parity.reference_accuracy


@pytest.mark.parametrize("samples", [359, 100])
def test_it_comes_out_again(bundle_dir: Path, samples: int) -> None:
    assert the_check(verify(bundle_dir, samples)).verdict is Verdict.PASS


@pytest.mark.parametrize(("fewer", "verdict"), [(1, Verdict.PASS), (2, Verdict.FAIL)])
def test_of_the_same_images_one_may_differ(own_bundle: Path, fewer: int, verdict: Verdict) -> None:
    then = Bundle.open(own_bundle).manifest.reference_accuracy
    assert then is not None
    rewrite_manifest(own_bundle, recorded(hits=then.hits - fewer))
    report = verify(own_bundle)
    assert the_check(report).verdict is verdict
    assert exit_code(report) == (3 if verdict is Verdict.FAIL else 0)


def test_of_fewer_images_what_chance_explains_passes_and_what_it_does_not_fails(own_bundle: Path) -> None:
    rewrite_manifest(own_bundle, recorded(hits=349))  # 97.2%: of 100 images 99 or 100 right are no surprise
    assert the_check(verify(own_bundle, 100)).verdict is Verdict.PASS
    rewrite_manifest(own_bundle, recorded(hits=300))
    found = the_check(verify(own_bundle, 100))
    assert found.verdict is Verdict.FAIL
    assert "and had 300 of 359 at export" in found.reasons[0]


def test_another_data_set_proves_nothing_about_it(own_bundle: Path) -> None:
    rewrite_manifest(own_bundle, recorded(dataset="mnist"))
    found = the_check(verify(own_bundle))
    assert found.verdict is Verdict.UNPROVEN
    assert "recorded on mnist" in found.reasons[0]


def test_an_older_bundle_has_no_such_record_and_does_not_fail(own_bundle: Path) -> None:
    rewrite_manifest(own_bundle, lambda m: msgspec.structs.replace(m, reference_accuracy=None))
    report = verify(own_bundle)
    assert the_check(report).verdict is Verdict.UNPROVEN
    assert exit_code(report) == 0


@pytest.mark.parametrize("change", [{"interpolation": "nearest"}, {"resize": 40}])
def test_preprocessing_changed_everywhere_and_its_golden_files_made_anew_moves_the_accuracy(
    own_bundle: Path, change: dict[str, object]
) -> None:
    """What no comparison of files can find: the reference itself answers otherwise."""
    from vggdeploy.parity.anchor import save_anchor

    for rewrite in (rewrite_manifest, rewrite_checkpoint):
        rewrite(
            own_bundle,
            lambda m: msgspec.structs.replace(m, preprocess=msgspec.structs.replace(m.preprocess, **change)),
        )
    bundle = Bundle.open(own_bundle)
    with update_bundle(bundle) as draft:
        made = save_anchor(draft, bundle.manifest.golden, bundle.manifest.preprocess)
        draft.manifest = msgspec.structs.replace(bundle.manifest, golden=made)
    report = verify(own_bundle)
    assert [check.what for check in report.checks if check.verdict is Verdict.FAIL] == [WHAT]
    assert exit_code(report) == 3


@settings(max_examples=60)
@given(st.data())
def test_how_surprising_is_scipys_hypergeometric(data: st.DataObject) -> None:
    known = data.draw(st.integers(1, 300))
    right, samples = data.draw(st.integers(0, known)), data.draw(st.integers(1, known))
    hits = data.draw(st.integers(0, samples))
    drawn = stats.hypergeom(known, right, samples)
    expected = min(1.0, 2 * min(drawn.cdf(hits), drawn.sf(hits - 1)))
    assert drawn_p_value(hits, samples, right, known) == pytest.approx(expected, abs=1e-9)


def test_a_record_that_was_right_more_often_than_asked_is_refused(own_bundle: Path) -> None:
    from vggdeploy.errors import BundleError

    with pytest.raises(BundleError, match="right more often than asked"):
        rewrite_manifest(own_bundle, recorded(hits=360))
    assert isinstance(Bundle.open(own_bundle).manifest.reference_accuracy, ReferenceAccuracy)
