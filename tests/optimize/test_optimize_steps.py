"""`vggdeploy optimize` does steps in order, proves what they add, and changes nothing where one of them fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.runtime import get_backend
from vggdeploy.types import Device, Precision, Verdict

pytest.importorskip("openvino")


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_bundle_gets_openvino_variants_that_share_the_onnx_file(own_bundle: Path) -> None:
    before = Bundle.open(own_bundle)
    assert run(["optimize", str(own_bundle), "--step", "openvino-fp32", "--samples", "64"]) == 0
    after = Bundle.open(own_bundle)
    variant = after.manifest.variant("openvino-fp32")
    assert variant.verdict is Verdict.PASS or variant.verdict is Verdict.INCONCLUSIVE
    assert variant.path == after.manifest.variant("onnx-fp32").path
    assert variant.proof is not None
    assert set(variant.proof.layers) == {"fp32"}
    assert sum(f.size for f in after.manifest.files) == sum(f.size for f in before.manifest.files)


def test_a_checkpoint_becomes_a_bundle_with_the_variants(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert (
        run(["optimize", str(checkpoint), "--step", "openvino-fp32", "-o", str(out), "--samples", "64", "--json"]) == 0
    )
    names = [v["name"] for v in json.loads(capsys.readouterr().out)["variants"]]
    assert names == ["torch-fp32", "onnx-fp32", "openvino-fp32"]
    assert Bundle.open(out).manifest.variant("openvino-fp32").verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)


def test_another_directory_leaves_the_bundle_as_it_was(bundle_dir: Path, tmp_path: Path) -> None:
    before = files(bundle_dir)
    out = tmp_path / "other"
    assert run(["optimize", str(bundle_dir), "--step", "openvino-fp32", "-o", str(out), "--samples", "8"]) == 0
    assert files(bundle_dir) == before
    assert "openvino-fp32" in {v.name for v in Bundle.open(out).manifest.variants}


def test_a_step_that_fails_takes_those_before_it_back(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_backend("openvino").load(), "_CAPABILITIES", {Precision.BF16: "none of this CPU's"})
    before = files(own_bundle)
    assert run(["optimize", str(own_bundle), "--step", "openvino-fp32,openvino-bf16", "--samples", "8"]) == 5
    assert files(own_bundle) == before
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_a_step_that_this_machine_cannot_do_names_the_line_for_the_others(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(get_backend("openvino").load(), "_CAPABILITIES", {Precision.BF16: "none of this CPU's"})
    assert run(["optimize", str(own_bundle), "--step", "openvino-bf16,openvino-fp32", "--samples", "8"]) == 5
    fix = capsys.readouterr().err.splitlines()[-1]
    assert fix.endswith("without openvino-bf16 the rest can be done: --step openvino-fp32")
    assert run(["optimize", str(own_bundle), *fix.split(": ")[-1].split(), "--samples", "8"]) == 0


def test_fp32_that_is_computed_in_bf16_is_refused(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = get_backend("openvino").load()
    if Precision.BF16 in module.probe(Device("cpu")).lacks:
        pytest.skip("this CPU has no BF16")
    monkeypatch.setattr(module, "_INFERENCE", {Precision.FP32: "bf16"})
    before = files(own_bundle)
    assert run(["optimize", str(own_bundle), "--step", "openvino-fp32", "--samples", "8"]) == 3
    assert files(own_bundle) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "openvino-fp23"], "did you mean 'openvino-fp32'"),
        (["--step", ""], "no step is named"),
        ([], "Missing option '--step'"),
        (["--step", "openvino-fp32", "--max-size-mb", "1"], "--max-size-mb belongs to vggdeploy search"),
        (["--step", "openvino-fp32,openvino-fp32"], "twice"),
    ],
)
def test_a_slip_is_answered(
    bundle_dir: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["optimize", str(bundle_dir), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_needs_an_output(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", str(checkpoint), "--step", "openvino-fp32"]) == 2
    assert "-o DIR" in capsys.readouterr().err


def test_export_writes_openvino_variants_too(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert run(["export", str(checkpoint), "-o", str(out), "--formats", "openvino-fp32", "--samples", "8"]) == 0
    found = Bundle.open(out).manifest
    assert [v.name for v in found.candidates()] == ["onnx-fp32", "openvino-fp32"]
    assert len({v.path for v in found.candidates()}) == 1
