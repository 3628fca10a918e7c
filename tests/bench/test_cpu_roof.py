"""The CPUs' roof is measured by the libraries that run the variants, and rows say what they reach of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vggdeploy.bench import roof as cpu_roof
from vggdeploy.bench.roof import SIDE, measure_roofs
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, VggdeployError
from vggdeploy.model.layers import summarise
from vggdeploy.model.outputs import macs_of
from vggdeploy.records import BenchReport, from_json
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Precision

pytestmark = [pytest.mark.late, pytest.mark.alone]
# Two 512-bit multiply-adds a cycle, of 16 numbers, at 6 GHz: no core of today makes more FP32 operations.
MOST = 2 * 16 * 2 * 6e9 / 1e12


def test_the_roof_is_a_possible_speed_and_narrow_types_are_faster() -> None:
    found = {r.precision: r for r in measure_roofs(1)}
    assert {Precision.FP32, Precision.INT8} <= set(found)
    assert 0.001 < found[Precision.FP32].tera_ops < MOST
    assert found[Precision.INT8].tera_ops > found[Precision.FP32].tera_ops
    assert {(r.side, r.threads) for r in found.values()} == {(SIDE, 1)}
    assert all(r.library.split()[0] in ("ONNX", "OpenVINO") for r in found.values())


def test_a_product_is_what_it_is_called() -> None:
    """Of random factors, against NumPy: an INT8 product that is none would be a roof of nothing."""
    for precision, library, product in cpu_roof._by_onnxruntime(1):
        (answer,) = product()
        assert answer.shape == (SIDE, SIDE), (precision, library)
        assert answer.dtype == (np.int32 if precision is Precision.INT8 else np.float32)
        assert np.count_nonzero(answer) > 0.99 * answer.size
    pytest.importorskip("openvino")
    seen = []
    for precision, _, infer in cpu_roof._by_openvino(1):
        (answer,) = infer().values()
        random = np.random.default_rng(0)
        expected = random.random((SIDE, SIDE), np.float32) @ random.standard_normal((SIDE, SIDE), np.float32)
        error = np.linalg.norm(answer - expected) / np.linalg.norm(expected)
        limits = {Precision.FP32: (0, 1e-5), Precision.BF16: (1e-5, 1e-2), Precision.INT8: (1e-3, 5e-2)}
        low, high = limits[precision]
        assert low <= error < high, precision
        seen.append(precision)
    assert seen[0] is Precision.FP32
    assert Precision.INT8 in seen


def test_bench_says_what_each_row_reaches(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--variant", "onnx-fp32", "--variant", "onnx-fp16", "--batch", "8", "--duration", "0.2", "--rounds", "3"]
    assert run(["bench", str(bundle_dir), *quick, "--roof", "--json"]) == 0
    report = from_json(capsys.readouterr().out.encode(), BenchReport, what="the report")
    roofs = {r.precision: r.tera_ops for r in report.roofs}
    spec = Bundle.open(bundle_dir).manifest.spec
    for row in report.rows:
        assert row.tera_ops == pytest.approx(2 * summarise(spec).macs * row.images_per_second / 1e12)
        assert row.roof_share == pytest.approx(row.tera_ops / roofs[Precision.FP32])
        assert 0 < row.roof_share < 1
    assert run(["bench", str(bundle_dir), *quick, "--roof"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the roofs: the fastest matrix products of this machine" in shown
    assert "of the roof" in shown


def test_what_is_cut_off_is_not_counted(features_dir: Path) -> None:
    spec = ModelSpec.named("vgg11", width=0.5, image_size=32, hidden=64, classes=10)
    whole = summarise(spec)
    assert macs_of(spec, ["logits"]) == macs_of(spec, ["relu1_1", "probabilities"]) == whole.macs
    by_name = {row.name: row.macs for row in whole.layers}
    assert macs_of(spec, ["relu1_1"]) == by_name["conv1_1"] == 32 * 32 * 9 * 3 * 32
    assert macs_of(spec, ["fc7", "conv1_1"]) == whole.macs - by_name["fc8"]


def test_a_process_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_roof.sys, "executable", "/bin/false")
    with pytest.raises(VggdeployError, match="could not be measured: it said nothing"):
        measure_roofs(1)


def test_without_a_library_there_is_no_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        returncode, stdout = 0, b"[]"

    monkeypatch.setattr(cpu_roof.subprocess, "run", lambda *a, **k: Done())
    with pytest.raises(IncompatibleError, match="no library here"):
        measure_roofs(1)
