"""An engine in a bundle: what is recorded, what is refused, and that a failure leaves the bundle as it was."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import msgspec
import pytest
from fixtures.small import BATCH, CONVOLUTIONS, PRODUCTS, write_bundle

from vggdeploy.build import request
from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import Bundle
from vggdeploy.errors import (
    BundleError,
    ForeignModelError,
    IntegrityError,
    MissingDependencyError,
    ParityError,
    UsageError,
    VggdeployError,
)
from vggdeploy.system.optional import installed
from vggdeploy.types import Precision, TensorSpec, Verdict

NAME = "tensorrt-rtx-fp16-sm89"  # for Ada; the plain name is that of the default targets
ENGINE = f"variants/{NAME}/model.engine"


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def test_the_engine_and_its_whole_history_are_in_the_bundle(bundle, library):
    build_into(bundle, BuildPlan(engine="tensorrt-rtx", targets=["ada"]))
    opened = Bundle.open(bundle.root)  # every hash is checked
    variant = opened.manifest.variant(NAME)
    source = bundle.manifest.variant("onnx-fp16")
    assert (variant.format, variant.precision, variant.path, variant.batch) == ("tensorrt-rtx", "fp16", ENGINE, BATCH)
    assert variant.proof.layers == {"fp16": CONVOLUTIONS + PRODUCTS}
    assert variant.build.library == "tensorrt_rtx"
    assert variant.build.version == library.__version__
    assert variant.build.source == "onnx-fp16"
    assert variant.build.source_sha256 == bundle.sha256(source.path)
    assert variant.build.targets == ("sm89",)
    assert variant.build.options == {"batch": "1:1:1,2:4:4,5:8:8,9:16:16"}
    assert variant.build.seconds > 0
    log = opened.path(f"variants/{NAME}/build.log").read_text()
    assert "ONNX IR version" in log and "[INFO]" in log


def test_nothing_was_run_so_nothing_is_proven(bundle):
    variant = build_into(bundle, BuildPlan(engine="tensorrt-rtx")).variant
    assert variant.name == "tensorrt-rtx-fp16"
    assert variant.verdict is Verdict.UNPROVEN
    assert "vggdeploy verify" in " ".join(variant.parity.reasons)
    assert variant.parity.outputs == ()


def test_the_returned_bundle_is_the_one_on_disk(bundle):
    built = build_into(bundle, BuildPlan(engine="rtx", targets=["ada"]))
    assert built.bundle.manifest == Bundle.open(bundle.root).manifest
    result = built.report()
    data = (bundle.root / ENGINE).read_bytes()
    assert (result.size, result.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_other_variants_and_the_golden_pair_stay_untouched(bundle):
    before = snapshot(bundle.root)
    build_into(bundle, BuildPlan(engine="tensorrt-rtx", targets=["ada"]))
    after = snapshot(bundle.root)
    assert {k: v for k, v in after.items() if k in before and k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }


def test_building_again_replaces_the_engine_and_gives_the_same_bytes(bundle):
    first = build_into(bundle, BuildPlan(engine="tensorrt-rtx", targets=["ada"])).bundle
    again = build_into(first, BuildPlan(engine="tensorrt-rtx", targets=["sm89"])).bundle
    assert again.sha256(ENGINE) == first.sha256(ENGINE)
    assert [v.name for v in again.manifest.variants].count(NAME) == 1
    other = build_into(again, BuildPlan(engine="tensorrt-rtx", targets=["ada"], precision=Precision.FP32)).bundle
    assert other.sha256(ENGINE) == first.sha256(ENGINE)


def test_fp32_and_fp16_engines_stand_side_by_side(bundle):
    half = build_into(bundle, BuildPlan(engine="rtx", targets=["ada"])).bundle
    both = build_into(half, BuildPlan(engine="rtx", precision=Precision.FP32, targets=["ada"])).bundle
    assert {NAME, "tensorrt-rtx-fp32-sm89"} <= {v.name for v in both.manifest.variants}
    assert both.manifest.variant("tensorrt-rtx-fp32-sm89").proof.layers == {"fp32": CONVOLUTIONS + PRODUCTS}


def test_an_fp32_onnx_that_calls_itself_fp16_is_a_parity_failure_and_changes_nothing(tmp_path, onnx_files):
    bundle = write_bundle(tmp_path / "false", {Precision.FP16: onnx_files[Precision.FP32]})
    unchanged(bundle, ParityError, "11 in fp32", engine="tensorrt-rtx")


def test_a_damaged_onnx_with_a_matching_hash_is_refused_and_changes_nothing(tmp_path, onnx_files):
    (tmp_path / "cut.onnx").write_bytes(onnx_files[Precision.FP16].read_bytes()[:5000])
    bundle = write_bundle(tmp_path / "cut", {Precision.FP16: tmp_path / "cut.onnx"})
    unchanged(bundle, ForeignModelError, "is not ONNX: it is damaged or cut short", engine="tensorrt-rtx")


def test_an_onnx_altered_after_its_export_never_reaches_the_parser(bundle, monkeypatch):
    file = bundle.root / "variants/onnx-fp16/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(request, "build_engine", lambda *a, **k: pytest.fail("the parser saw it"))
    with pytest.raises(IntegrityError, match="altered"):
        build_into(Bundle.open(bundle.root, only=()), BuildPlan(engine="tensorrt-rtx"))


def test_an_onnx_of_another_model_is_refused(bundle):
    other = (TensorSpec("logits", "float32", ("N", 7)),)
    bundle.manifest = msgspec.structs.replace(bundle.manifest, outputs=other)
    unchanged(bundle, ForeignModelError, "which the network does not have", engine="tensorrt-rtx", targets=["ada"])


def test_a_precision_without_onnx_names_those_that_are_there(bundle):
    unchanged(bundle, BundleError, r"no ONNX in int8 .*fp32, fp16", engine="tensorrt-rtx", precision=Precision.INT8)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"engine": "tensort"}, "engine 'tensort' is unknown"),
        ({"engine": "tensorrt-rtx", "targets": ["pascal"]}, "the GPU target 'pascal' is unknown"),
        ({"engine": "tensorrt-rtx", "targets": []}, "no GPU target"),
        ({"engine": "tensorrt", "targets": ["ada"]}, "builds for the GPU of this machine"),
    ],
)
def test_a_call_that_means_nothing_is_exit_code_2_and_changes_nothing(bundle, options, match):
    assert unchanged(bundle, UsageError, match, **options).exit_code == 2


@pytest.mark.skipif(installed("tensorrt"), reason="tensorrt is installed here")
def test_tensorrt_that_is_not_installed_is_exit_code_5_with_its_extra_and_its_gpu(bundle):
    error = unchanged(bundle, MissingDependencyError, "'tensorrt' is needed", engine="tensorrt")
    assert error.exit_code == 5
    assert "pip install 'vggdeploy[gpu]'" in error.hint
    assert "NVIDIA GPU" in error.hint


def test_ctrl_c_leaves_the_bundle_as_it_was(bundle):
    sent = []

    def interrupt(share: float, phase: str) -> None:
        if not sent:
            sent.append(phase)
            signal.raise_signal(signal.SIGINT)

    before = snapshot(bundle.root)
    with pytest.raises(KeyboardInterrupt):
        build_into(bundle, BuildPlan(engine="tensorrt-rtx"), on_progress=interrupt)
    assert snapshot(bundle.root) == before
    assert not list(bundle.root.parent.glob(".*.tmp-*"))


def unchanged(bundle: Bundle, kind: type[VggdeployError], match: str, **options: object) -> VggdeployError:
    """The build fails with that error, on one line each, and no file of the bundle is another or new."""
    before = snapshot(bundle.root)
    with pytest.raises(kind, match=match) as caught:
        build_into(bundle, BuildPlan(**options))
    assert "\n" not in caught.value.cause + caught.value.hint
    assert snapshot(bundle.root) == before
    assert not list(bundle.root.parent.glob(".*.tmp-*"))
    return caught.value
