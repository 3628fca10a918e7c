"""`vggdeploy bench --profile-layers`: what it measures, prints, refuses, and never mixes with a bench."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from vggdeploy.bench.profile import kernel_rows, profile_layers
from vggdeploy.bench.run import BenchPlan
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, UsageError, VggdeployError
from vggdeploy.records import from_json
from vggdeploy.records.profile import ProfileReport
from vggdeploy.runtime.base import Kernel
from vggdeploy.runtime.kernels import LayerMap
from vggdeploy.types import Device, Verdict

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "profile.schema.json"
QUICK = ("--batch", "1", "--duration", "0.02")


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> ProfileReport:
    return profile_layers(bundle, BenchPlan(variants=["onnx-fp32"], batches=[1, 4], seconds=0.02), threads=1)


def test_the_kernels_and_the_overhead_come_to_the_whole_call(report: ProfileReport) -> None:
    assert [p.batch for p in report.profiles] == [1, 4]
    for profile in report.profiles:
        assert profile.calls >= 10
        assert profile.verdict is Verdict.PASS
        assert profile.overhead_ms > 0  # no library explains the whole of a call
        assert profile.kernels_ms < profile.call_ms
        # Medians do not add up exactly; each call's parts do.
        assert profile.kernels_ms + profile.overhead_ms == pytest.approx(profile.call_ms, rel=0.5)
        assert sum(k.ms for k in profile.kernels) == pytest.approx(profile.kernels_ms, rel=0.5)
        named = {layer for kernel in profile.kernels for layer in kernel.layers}
        assert {"preprocess", "conv1_1", "relu1_1", "pool5", "fc6", "fc8"} <= named


def test_the_document_reads_back_and_fits_its_schema(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["bench", str(bundle_dir), "--profile-layers", "--variant", "onnx-fp32", *QUICK, "--json"]) == 0
    text = capsys.readouterr().out
    found = from_json(text.encode(), ProfileReport, what="it")
    assert found.command.startswith("vggdeploy bench ")
    jsonschema.validate(json.loads(text), json.loads(SCHEMA.read_bytes()))
    result = tmp_path / "profile.json"
    result.write_text(text)
    for suffix in ("md", "csv", "html"):
        target = tmp_path / f"report.{suffix}"
        assert run(["report", str(result), "-o", str(target)]) == 0
        shown = target.read_text()
        assert all(word in shown for word in ("conv1", "fc8", "onnx-fp32"))
    assert "The time of each layer" in (tmp_path / "report.html").read_text()
    assert "layer times,onnx-fp32,onnxruntime,cpu,1," in (tmp_path / "report.csv").read_text()


def test_the_table_says_what_is_not_the_kernels_time(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(bundle_dir), "--profile-layers", "--variant", "onnx-fp32", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "conv1_1 + relu1_1" in shown
    assert "overhead" in shown
    assert "without the timing a call takes" in shown


def test_nothing_of_it_reaches_the_manifest_or_a_bench(report: ProfileReport, bundle: Bundle) -> None:
    assert all(not v.measured for v in Bundle.open(bundle.root).manifest.variants)
    assert not hasattr(report, "rows")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "3"], "--rounds does not go with --profile-layers"),
        (["--scenario", "offline"], "--scenario does not go with --profile-layers"),
        (["--record"], "--record does not go with --profile-layers"),
        (["--gpu-detail"], "--gpu-detail does not go with --profile-layers"),
        (["--require-valid"], "--require-valid does not go with --profile-layers"),
        (["--variant", "torchscript-fp32"], "torchscript does not time its layers on cpu"),
        (["--variant", "onnx-fp32", "--batch", "9999"], "it takes 1 to"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["bench", str(bundle_dir), "--profile-layers", "--duration", "0.02", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_two_bundles_are_refused(bundle_dir: Path, own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(bundle_dir), str(own_bundle), "--profile-layers"]) == 2
    assert "--profile-layers looks into one bundle" in capsys.readouterr().err


def test_where_nothing_can_be_timed_it_says_so(bundle: Bundle) -> None:
    with pytest.raises(IncompatibleError, match=r"no variant of .* whose library times its layers runs here"):
        profile_layers(bundle, BenchPlan(device=Device("cuda")))
    with pytest.raises(UsageError, match="does not time its layers"):
        profile_layers(bundle, BenchPlan(backends=["torch"], batches=[1], seconds=0.01))


def test_a_wrong_output_is_told_with_exit_code_3(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.bench.profile.judge_golden", lambda *a: (Verdict.FAIL, ("wrong output: planted",)))
    assert run(["bench", str(bundle_dir), "--profile-layers", "--variant", "onnx-fp32", *QUICK]) == 3
    assert "wrong output: planted" in capsys.readouterr().out


def test_the_median_of_each_kernel_counts_and_kernels_that_differ_are_refused() -> None:
    def call(*times: float) -> tuple[Kernel, ...]:
        return tuple(Kernel(f"k{i}", "Conv", (), ms) for i, ms in enumerate(times))

    rows = kernel_rows([call(1, 5), call(9, 4), call(2, 6)], LayerMap())
    assert [(r.kernel, r.ms, r.layers) for r in rows] == [("k0", 2, ()), ("k1", 5, ())]
    for calls in ([], [()], [call(1, 5), call(1)]):
        with pytest.raises(VggdeployError, match="did not time the same kernels"):
            kernel_rows(calls, LayerMap())
