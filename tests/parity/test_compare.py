"""Parity finds what is wrong: faults planted in the shipped bytes, and in what runs them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.errors import ParityError
from vggdeploy.records import ParityReport
from vggdeploy.types import Verdict
from vggdeploy.verify.prove import with_parity
from vggdeploy.verify.verify import VerifyOptions, exit_code, verify_bundle


def replace_weights(root: Path, name: str, change) -> None:
    """Rewrite an ONNX variant with ``change(weight name, array)`` applied, hashes and all: only parity can tell."""
    bundle = Bundle.open(root)
    variant = bundle.manifest.variant(name)
    model = onnx.load(bundle.path(variant.path))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, numpy_helper.to_array(tensor)), tensor.name))
    with update_bundle(bundle) as draft:
        draft.write(variant.path, model.SerializeToString())


def verify(root: Path, *names: str, **options) -> ParityReport:
    return verify_bundle(Bundle.open(root), VerifyOptions(variants=names, **options))


def test_an_untouched_bundle_passes_on_the_golden_pair_and_on_real_images(bundle_dir: Path) -> None:
    report = verify(bundle_dir)
    assert report.verdict is Verdict.PASS
    assert exit_code(report) == 0
    by_data = {(r.variant, r.data.split(" (")[0]) for r in report.variants}
    assert by_data == {("torch-fp32", "golden pair")} | {
        (name, data)
        for name in ("onnx-fp32", "onnx-fp16", "torchscript-fp32")
        for data in ("golden pair", "digits test")
    }
    real = [r for r in report.variants if r.data.startswith("digits")]
    assert all(r.flips and r.flips.samples == 359 for r in real)
    assert all(r.reference_accuracy and r.reference_accuracy > 0.9 for r in real)


def test_a_transposed_weight_is_found(own_bundle: Path) -> None:
    def transpose(name: str, array: np.ndarray) -> np.ndarray:
        return array.transpose(0, 1, 3, 2).copy() if name == "features.3.weight" else array

    replace_weights(own_bundle, "onnx-fp32", transpose)
    report = verify(own_bundle, "onnx-fp32")
    assert report.verdict is Verdict.FAIL
    assert exit_code(report) == 3
    assert any("relative L2" in reason for r in report.variants for reason in r.reasons)


def test_a_wrong_mean_is_found(own_bundle: Path) -> None:
    replace_weights(own_bundle, "onnx-fp32", lambda name, a: a + 0.5 if name == "shift" else a)
    assert verify(own_bundle, "onnx-fp32").verdict is Verdict.FAIL


def test_an_overflow_to_infinity_is_a_failure_with_its_output_named(own_bundle: Path) -> None:
    replace_weights(own_bundle, "onnx-fp16", lambda name, a: a * 500 if name.endswith(".0.weight") else a)
    (golden, real) = verify(own_bundle, "onnx-fp16").variants
    assert golden.verdict is real.verdict is Verdict.FAIL


def test_a_swapped_class_is_found(own_bundle: Path) -> None:
    def swap(name: str, array: np.ndarray) -> np.ndarray:
        return array[[1, 0, *range(2, 10)]] if name.startswith("classifier.6") else array

    replace_weights(own_bundle, "onnx-fp32", swap)
    (_, real) = verify(own_bundle, "onnx-fp32").variants
    assert real.verdict is Verdict.FAIL
    assert real.flips and real.flips.flips > 30
    assert real.candidate_accuracy < real.reference_accuracy


def test_few_images_pass_numerical_parity_and_leave_the_bound_open_which_is_exit_4(bundle_dir: Path) -> None:
    report = verify(bundle_dir, "onnx-fp32", samples=40)
    (golden, real) = report.variants
    assert (golden.numerical, golden.bounds) == (Verdict.PASS, None)
    assert (real.numerical, real.bounds) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert exit_code(report) == 4


def test_wrong_numbers_on_few_images_are_exit_3(own_bundle: Path) -> None:
    """The attack: an open bound must not hide that the outputs are wrong."""
    replace_weights(own_bundle, "onnx-fp32", lambda name, a: a + 0.01 if name == "shift" else a)
    report = verify(own_bundle, "onnx-fp32", samples=40)
    assert {(r.numerical, r.verdict) for r in report.variants} == {(Verdict.FAIL, Verdict.FAIL)}
    assert exit_code(report) == 3


def test_what_only_the_golden_pair_was_asked_fails_the_variant_on_record_too(bundle_dir: Path) -> None:
    """The attack: images that agree do not wash away a batch size of the golden pair that did not."""
    manifest = Bundle.open(bundle_dir).manifest
    (golden, real) = verify(bundle_dir, "onnx-fp32", samples=40).variants
    assert (golden.verdict, real.numerical) == (Verdict.PASS, Verdict.PASS)
    written = with_parity(manifest, [golden.failed(("in batches of 3, logits: relative L2 1 is above 1e-05",)), real])
    kept = written.variant("onnx-fp32").parity
    assert kept is not None and kept.verdict is Verdict.FAIL and kept.numerical is Verdict.FAIL
    assert any("in batches of 3" in reason for reason in kept.reasons)


def test_record_writes_the_verdicts_down(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    bare = [msgspec.structs.replace(v, parity=None) for v in opened.manifest.candidates()]
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(*bare)
    verify(own_bundle, record=True)
    assert {v.verdict for v in Bundle.open(own_bundle).manifest.variants} == {Verdict.PASS}


def test_export_refuses_to_write_what_fails(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong file from the exporter: nothing is written, and the exit code is parity's."""
    from vggdeploy.export import onnx as exporter
    from vggdeploy.export.bundle import ExportOptions, export_bundle

    real = exporter.write_model

    def damaged(proto, weights, path) -> None:
        real(proto, weights, path)
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name == "features.0.bias":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(exporter, "write_model", damaged)
    with pytest.raises(ParityError, match="does not compute what was trained") as caught:
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(formats=["onnx-fp32"]))
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_without_a_data_set_synthetic_images_prove_and_the_bundle_says_so(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from vggdeploy.bundle.checkpoint import read_checkpoint
    from vggdeploy.export.bundle import export_bundle
    from vggdeploy.records import to_json

    unknown = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, unknown)
    record = msgspec.structs.replace(read_checkpoint(unknown), dataset="")
    (unknown / "checkpoint.json").write_bytes(to_json(record))
    bundle = export_bundle(unknown, tmp_path / "bundle")
    for variant in bundle.manifest.candidates():
        assert variant.verdict is Verdict.PASS
        assert variant.parity and "synthetic images only" in variant.parity.reasons[-1]
