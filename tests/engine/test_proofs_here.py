"""A proof is bound to the bytes and to the machine: what depends on the CPU is proven again where it is loaded, once."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from attacks.planting import rewrite_manifest, rewrite_weight

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.engine import loading
from vggdeploy.errors import ParityError
from vggdeploy.runtime import sessions
from vggdeploy.runtime.sessions import conditions, depends_on_machine
from vggdeploy.system import machine as machines
from vggdeploy.types import Device

CPU = Device()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The variants whose golden pair was run at load."""
    run: list[str] = []
    real = loading.prove_at_load

    def counted(session, bundle, variant, device):
        run.append(variant.name)
        return real(session, bundle, variant, device)

    monkeypatch.setattr(loading, "prove_at_load", counted)
    return run


def from_another_machine(manifest):
    def moved(variant):
        host = {**variant.parity.host, "machine": "another CPU"}
        return msgspec.structs.replace(variant, parity=msgspec.structs.replace(variant.parity, host=host))

    return manifest.with_variants(*(moved(v) for v in manifest.candidates()))


def load(root: Path, variant: str) -> None:
    vggdeploy.load(root, variant=variant).close()


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-fp16", "torchscript-fp32"])
def test_on_the_machine_of_the_export_nothing_is_proven_again(
    bundle_dir: Path, variant: str, proofs: list[str]
) -> None:
    load(bundle_dir, variant)
    assert proofs == []


@pytest.mark.parametrize("variant", ["onnx-fp16", "torchscript-fp32"])
def test_on_another_machine_the_golden_pair_runs_once_and_is_remembered(
    own_bundle: Path, variant: str, proofs: list[str]
) -> None:
    rewrite_manifest(own_bundle, from_another_machine)
    load(own_bundle, variant)
    load(own_bundle, variant)
    assert proofs == [variant]


def test_fp32_of_a_graph_holds_on_every_machine(own_bundle: Path, proofs: list[str]) -> None:
    rewrite_manifest(own_bundle, from_another_machine)
    load(own_bundle, "onnx-fp32")
    assert proofs == []


def test_another_library_or_fewer_instructions_are_another_machine(
    own_bundle: Path, proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(own_bundle, "onnx-fp16")
    other = "AVX2" if os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2" else "AVX512_CORE"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", other)
    load(own_bundle, "onnx-fp16")
    assert proofs == ["onnx-fp16"]
    monkeypatch.setattr(sessions, "fingerprint", lambda: "a CPU without AVX2")
    load(own_bundle, "onnx-fp16")
    load(own_bundle, "onnx-fp16")
    assert proofs == ["onnx-fp16"] * 2


def test_what_is_wrong_on_this_machine_is_refused_and_auto_takes_another(own_bundle: Path) -> None:
    """The proof of the export is of other bytes here, as a kernel of another CPU would answer."""
    rewrite_weight(own_bundle, "onnx-fp16", "classifier.6.bias", lambda b: b + 1)
    with pytest.raises(ParityError, match="misses the golden pair on this machine"):
        vggdeploy.load(own_bundle, variant="onnx-fp16")
    rewrite_manifest(own_bundle, lambda m: msgspec.structs.replace(m, variants=tuple(sorted(m.variants, key=_fp16))))
    with vggdeploy.load(own_bundle) as engine:
        assert engine.variant.name != "onnx-fp16"


def _fp16(variant) -> bool:
    return variant.name != "onnx-fp16"


def test_a_bundle_without_conditions_on_record_is_proven_at_load(own_bundle: Path, proofs: list[str]) -> None:
    def older(manifest):
        bare = [
            msgspec.structs.replace(v, parity=msgspec.structs.replace(v.parity, host={})) for v in manifest.candidates()
        ]
        return manifest.with_variants(*bare)

    rewrite_manifest(own_bundle, older)
    load(own_bundle, "onnx-fp16")
    assert proofs == ["onnx-fp16"]


def test_the_conditions_name_instructions_caches_cores_and_quota(bundle: Bundle) -> None:
    variant = bundle.manifest.variant("onnx-fp16")
    told = conditions(variant, CPU)
    here = machines.machine()
    assert told["machine"] == machines.fingerprint()
    assert all(feature in told["machine"] for feature in here.features)
    assert f"{here.affinity} cores" in told["machine"]
    assert ("quota" in told["machine"]) and ("no quota" in told["machine"]) == (here.quota is None)
    assert told["version"]
    assert [depends_on_machine(bundle.manifest.variant(n), CPU) for n in ("onnx-fp32", "onnx-fp16")] == [False, True]
    assert depends_on_machine(bundle.manifest.variant("onnx-fp32"), Device("cuda"))
