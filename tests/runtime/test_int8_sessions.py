"""Sessions of INT8 files on CPUs that could saturate: exact kernels or none, unless the bytes are proven not to."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from fixtures.int8 import distance, saturates_here, with_wide_sums
from fixtures.small import write_bundle

from vggdeploy.bundle import Bundle, QuantisationRecord, Variant, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.engine.selection import Standing, choices, select
from vggdeploy.errors import IncompatibleError
from vggdeploy.export.openvino import openvino_variant
from vggdeploy.model.layers import layer_names
from vggdeploy.optimize.steps import quantiser
from vggdeploy.parity.integer import IntegerReference
from vggdeploy.parity.saturation import read_saturation
from vggdeploy.runtime import open_session, runnable, sessions
from vggdeploy.types import Precision
from vggdeploy.verify.readback import wrong_precisions

NAMES = ("onnx-int8", "openvino-int8")
IMAGES = np.random.default_rng(3).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


def made(root: Path, fp32: Path, *, fitted: bool, recorded: bool) -> Bundle:
    """A bundle with both INT8 variants of one file, as it is made today or as it was before."""
    fp32 = with_wide_sums(fp32, root.with_suffix(".fp32"))
    with pytest.MonkeyPatch.context() as patch:
        if not fitted:
            patch.setattr(quantiser, "fit_pairs", lambda model, exact: None)
        ranges = quantiser.calibrate(
            fp32, [{"image": IMAGES}], method="min-max", percentile=100, scratch=root.with_suffix(".scratch")
        )
        path = root.with_suffix(".onnx")
        onnx.save(quantiser.quantise(onnx.load(fp32), ranges, quantiser.CPU), path)
    bundle = write_bundle(root, {Precision.INT8: path})
    return with_record(bundle, path if recorded else None)


def with_record(bundle: Bundle, path: Path | None) -> Bundle:
    """The bundle whose INT8 variants have the record of the file at ``path``."""
    old = bundle.manifest.variant("onnx-int8")
    bounds = read_saturation(path, layer_names(bundle.manifest.spec)) if path else None
    about = QuantisationRecord(
        library="onnxruntime",
        version="",
        method="min-max",
        data="noise",
        images=8,
        activations="uint8",
        saturation=bounds,
    )
    on_openvino = openvino_variant(old, Precision.INT8)
    with update_bundle(bundle) as draft:
        draft.manifest = bundle.manifest.with_variants(
            *(msgspec.structs.replace(v, quantisation=about) for v in (old, on_openvino))
        )
    return Bundle.open(bundle.root)


@pytest.fixture(scope="module")
def safe(onnx_files: dict[Precision, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("safe") / "bundle"
    return made(root, onnx_files[Precision.FP32], fitted=True, recorded=True)


@pytest.fixture(scope="module")
def old(onnx_files: dict[Precision, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle from before: nothing was rounded anew, and nothing is recorded."""
    root = tmp_path_factory.mktemp("old") / "bundle"
    return made(root, onnx_files[Precision.FP32], fitted=False, recorded=False)


@pytest.fixture(params=[True, False], ids=["saturating CPU", "VNNI"])
def saturating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(sessions, "int8_saturates", lambda: request.param)
    return bool(request.param)


def away(bundle: Bundle, variant: Variant) -> float:
    """Relative L2 of a session's answers from what the graph says."""
    (exact,) = IntegerReference(onnx.load(bundle.path(variant.path))).run({"image": IMAGES}).values()
    with open_session(bundle, variant) as session:
        return distance(session.run({"image": IMAGES})["logits"], exact)


def takes_exact_kernels(bundle: Bundle) -> bool:
    with open_session(bundle, bundle.manifest.variant("onnx-int8")) as session:
        options = session.unchecked._session.get_session_options()  # type: ignore[attr-defined]
    try:
        return bool(options.get_session_config_entry("session.x64quantprecision") == "1")
    except RuntimeError:  # it was never set
        return False


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_cannot_saturate_runs_everywhere_and_is_what_its_graph_says(
    safe: Bundle, name: str, saturating: bool
) -> None:
    pytest.importorskip("openvino")
    variant = safe.manifest.variant(name)
    assert runnable(variant).runs
    assert away(safe, variant) < 1e-3
    assert not takes_exact_kernels(safe)


def test_an_old_file_runs_in_exact_kernels_and_not_on_openvino(old: Bundle, saturating: bool) -> None:
    pytest.importorskip("openvino")
    assert takes_exact_kernels(old)  # ONNX Runtime itself ignores it on CPUs with VNNI
    assert away(old, old.manifest.variant("onnx-int8")) < 1e-3
    on_openvino = old.manifest.variant("openvino-int8")
    assert runnable(on_openvino).runs != saturating
    assert select(old)[0].name == ("onnx-int8" if saturating else "openvino-int8")
    if saturating:
        with pytest.raises(IncompatibleError, match="nothing proves that this file's cannot") as caught:
            open_session(old, on_openvino)
        assert "--step int8" in caught.value.hint
        refused = {c.variant.name: c.standing for c in choices(old)}
        assert refused["openvino-int8"] is Standing.NOT_RUNNABLE


def test_the_old_file_is_wrong_without_that(old: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: what is refused above does go wrong where it is let through."""
    wrong = [name for name in NAMES if saturates_here("openvino" if "openvino" in name else "onnxruntime")]
    if not wrong:
        pytest.skip("this CPU has VNNI: nothing saturates")
    monkeypatch.setattr(sessions, "int8_saturates", lambda: False)
    monkeypatch.setattr(Variant, "cannot_saturate", lambda *_: True)
    for name in wrong:
        assert away(old, old.manifest.variant(name)) > 3e-3


def test_a_record_of_other_bytes_proves_nothing(
    old: Bundle, safe: Bundle, tmp_path: Path, saturating: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that can saturate, under the record of one that cannot, with all hashes mended."""
    pytest.importorskip("openvino")
    copy = Bundle.open(shutil.copytree(old.root, tmp_path / "bundle"))
    forged = with_record(copy, safe.path(safe.manifest.variant("onnx-int8").path))
    assert takes_exact_kernels(forged)
    on_openvino = forged.manifest.variant("openvino-int8")
    if saturating:
        with pytest.raises(IncompatibleError, match="nothing proves"):
            open_session(forged, on_openvino)
    assert set(wrong_precisions(forged)) == set(NAMES)
    assert run(["inspect", str(forged.root)]) == 3
    assert "is not this file's" in " ".join(capsys.readouterr().out.split())


def test_inspect_says_what_an_image_can_saturate(safe: Bundle, old: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(safe.root)]) == 0
    assert "no image can saturate its products" in capsys.readouterr().out
    assert run(["inspect", str(old.root)]) == 0  # from the file, as nothing is recorded
    told = capsys.readouterr().out
    assert re.search(r"conv2_1: 16 of 16 channels can saturate \([\d, ]+, …\), by \d{2},\d{3} at most", told)
    assert "no image" not in told
    assert run(["inspect", str(safe.root), "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["variants"]
    assert first["quantisation"]["saturation"]["products"][0]["layer"] == "conv1_1"
