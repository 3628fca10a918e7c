"""The targets themselves: real qemu, real Node.js, real Chromium; what they need is fetched first, as ``--prepare`` does."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks.planting import rewrite_onnx
from fixtures.small import write_bundle
from verify.fleet.conftest import add_variant, wrong_alone

from vggdeploy.bundle import Bundle
from vggdeploy.records import FleetTarget
from vggdeploy.types import Precision, Verdict, silent
from vggdeploy.verify.fleet.fleet import FleetOptions, prove_fleet
from vggdeploy.verify.fleet.targets import TARGETS, find_targets

pytestmark = pytest.mark.late
# Instruction sets, as NumPy names them, that a target has and has not: what the machine of the test has decides nothing.
ISA = {
    "nehalem": ("X86_V2", "X86_V3"),
    "haswell": ("X86_V3", "X86_V4"),
    "skylake-server": ("X86_V3", "AVX512_ICL"),
    "cortex-a72": ("ASIMD", "ASIMDDP"),
    "node-wasm": ("WebAssembly", ""),
    "chromium-wasm": ("WebAssembly", ""),
    "chromium-webgpu": ("swiftshader", "shader-f16"),
}


@pytest.fixture(scope="module", params=[target.name for target in TARGETS])
def proven(request: pytest.FixtureRequest, fleet_dir: Path) -> FleetTarget:
    """Every variant of the bundle on one target."""
    (target,) = find_targets([request.param])
    target.prepare(silent)
    bundle = Bundle.open(fleet_dir)
    (found,) = prove_fleet(bundle, list(bundle.manifest.candidates()), FleetOptions((target,)))
    return found


def test_what_was_trained_passes_and_what_was_altered_fails(proven: FleetTarget) -> None:
    found = {record.variant: record for record in proven.variants}
    assert found["onnx-fp32"].verdict is Verdict.PASS, found["onnx-fp32"].reasons
    assert found["altered"].verdict is Verdict.FAIL, found["altered"].reasons
    assert found["altered"].outputs[0].relative_l2 > 1e-3
    assert found["overflowing"].verdict is Verdict.FAIL, found["overflowing"].reasons


def test_fp16_passes_wherever_it_can_run(proven: FleetTarget) -> None:
    (record,) = (record for record in proven.variants if record.variant == "onnx-fp16")
    if proven.target == "chromium-webgpu":  # SwiftShader has no shader-f16
        assert record.verdict is Verdict.UNPROVEN
        assert "requires f16" in record.reasons[0]
    else:
        assert record.verdict is Verdict.PASS, record.reasons


def test_a_target_names_its_own_instruction_sets_and_versions(proven: FleetTarget) -> None:
    has, has_not = ISA[proven.target]
    assert has in proven.isa
    assert has_not not in proven.isa
    assert proven.tools


def test_int8_passes_on_every_processor(onnx_files: dict[Precision, Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", {Precision.INT8: onnx_files[Precision.INT8]})
    targets = find_targets(["nehalem", "haswell", "cortex-a72", "node-wasm"])
    for target in targets:
        target.prepare(silent)
    for found in prove_fleet(bundle, list(bundle.manifest.candidates()), FleetOptions(targets)):
        assert [record.verdict for record in found.variants] == [Verdict.PASS], found


@pytest.mark.usefixtures("any_graph")
def test_a_page_answers_batch_by_batch(own_fleet_dir: Path) -> None:
    add_variant(own_fleet_dir, "onnx-fp32", "alone")
    rewrite_onnx(own_fleet_dir, "alone", wrong_alone)
    bundle = Bundle.open(own_fleet_dir)
    targets = find_targets(["node-wasm"])
    targets[0].prepare(silent)
    (found,) = prove_fleet(bundle, [bundle.manifest.variant("alone")], FleetOptions(targets))
    (record,) = found.variants
    assert record.verdict is Verdict.FAIL
    assert record.data.endswith("in batches of 1")
