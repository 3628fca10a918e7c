"""Variants that AOTInductor compiles where they run: proven like any other, from code that no bundle carries."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fixtures.coloured import draw

from vggdeploy.bundle import Bundle, Measurement, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.engine.loading import LoadOptions, open_best
from vggdeploy.engine.selection import choices
from vggdeploy.errors import ForeignModelError, ParityError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.runtime import open_session
from vggdeploy.runtime.aoti import package
from vggdeploy.runtime.sessions import conditions
from vggdeploy.system.machine import fingerprint
from vggdeploy.train.loop import train
from vggdeploy.train.recipe import Recipe
from vggdeploy.types import Device, Precision, Verdict
from vggdeploy.verify.fleet.targets import TARGETS, find_targets

pytestmark = [
    pytest.mark.late,  # each compiles, for half a minute
    pytest.mark.skipif(not package.compiler(), reason="there is no C++ compiler"),
]
CPU = Device("cpu")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network with three input channels, as a program and as what is compiled of it."""
    root = tmp_path_factory.mktemp("coloured")
    images = draw(root / "images")
    recipe = Recipe(
        arch="vgg11_bn", width=0.125, image_size=32, hidden=64, dropout=0.0, dataset=f"folder:{images}", epochs=6
    )
    train(recipe, output=root / "checkpoint")
    return export_bundle(root / "checkpoint", root / "bundle", ExportOptions(formats=["aoti-fp32"]))


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("it compiles")

    monkeypatch.setattr(package, "_compile", refuse)


def test_it_is_proven_and_runs_the_program_of_the_bundle(coloured: Bundle) -> None:
    variant, source = (coloured.manifest.variant(name) for name in ("aoti-fp32", "torch-export-fp32"))
    assert variant.path == source.path
    assert variant.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert variant.proof is not None and variant.proof.layers == {"fp32": 11}
    assert variant.parity is not None
    assert max(output.relative_l2 for output in variant.parity.outputs) < 1e-5


def test_a_bundle_carries_no_native_code(coloured: Bundle) -> None:
    files = [path for path in coloured.root.rglob("*") if path.is_file()]
    assert not [path for path in files if b"\x7fELF" in path.read_bytes()]
    program = coloured.path(coloured.manifest.variant("aoti-fp32").path)
    assert not [name for name in zipfile.ZipFile(program).namelist() if "aotinductor" in name]


@pytest.mark.parametrize("batch", [1, 2, 7, 256])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_batch_size_is_the_reference(coloured: Bundle, no_compiling: None, batch: int, threads: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    with (
        open_session(coloured, coloured.manifest.variant("aoti-fp32"), threads=threads) as session,
        open_session(coloured, coloured.manifest.reference()) as reference,
    ):
        found, wanted = (each.run({"image": images})["logits"] for each in (session, reference))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_no_word_of_a_bundle_spares_the_golden_pair(
    coloured: Bundle, no_compiling: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The manifest says that it was proven on this very machine; what was compiled here is proven here all the same, once."""
    asked: list[str] = []
    real = open_best.__globals__["prove_at_load"]
    monkeypatch.setitem(open_best.__globals__, "prove_at_load", lambda *a: asked.append("golden") or real(*a))
    monkeypatch.setattr("vggdeploy.engine.loading.cache_home", lambda: tmp_path / "proofs")
    variant = coloured.manifest.variant("aoti-fp32")
    assert variant.parity is not None and variant.parity.host == conditions(variant, CPU)
    for _ in range(2):
        open_best(coloured.root, LoadOptions(variant="aoti-fp32")).session.__exit__(None, None, None)
    assert asked == ["golden"]


def test_it_is_measured_beside_the_others(coloured: Bundle, no_compiling: None, capsys: pytest.CaptureFixture) -> None:
    line = ["bench", str(coloured.root), "--backend", "torch-export", "--backend", "aoti", "--seconds", "0.05"]
    assert run([*line, "--rounds", "3", "--json"]) in (0, 4)  # 4: this machine does something else, too
    rows = msgspec.json.decode(capsys.readouterr().out)["rows"]
    verdicts = {row["variant"]: row["verdict"] for row in rows}
    assert verdicts.keys() >= {"aoti-fp32", "torch-export-fp32"}
    assert set(verdicts.values()) <= {"pass", "inconclusive"}  # few images


def test_auto_takes_it_only_where_it_was_measured(coloured: Bundle) -> None:
    """A minute of compiling is for those who asked for it."""
    assert choices(coloured)[-1].variant.name == "aoti-fp32"
    fast = Measurement(machine=fingerprint(), backend="aoti", batch=1, threads=1, p50_ms=0.001)
    variant = msgspec.structs.replace(coloured.manifest.variant("aoti-fp32"), measured=(fast,))
    measured = Bundle(coloured.root, coloured.manifest.with_variants(variant))
    assert choices(measured)[0].variant.name == "aoti-fp32"


def test_without_a_compiler_it_is_one_line_of_cause_and_one_of_remedy(
    grey: Bundle, digit_png: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(package, "compiler", lambda: "")
    assert run(["predict", str(grey.root), str(digit_png), "--variant", "aoti-fp32"]) == 5
    cause, fix = capsys.readouterr().err.splitlines()[-2:]
    assert cause.startswith("error: aoti-fp32 cannot run here: AOTInductor compiles a network where it runs")
    assert "apt-get install g++" in fix and "torch-export-fp32" in fix


@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_no_emulated_processor_compiles_it(coloured: Bundle, target: str) -> None:
    [chosen] = find_targets((target,))
    assert chosen.refuses(coloured.manifest.variant("aoti-fp32"))


def test_native_code_in_the_place_of_a_program_is_refused_before_anything_runs(
    coloured: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What AOTInductor compiled elsewhere, hashed by the bundle's maker: the code would be that maker's."""
    shutil.copytree(coloured.root, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    variant = bundle.manifest.variant("aoti-fp32")
    compiled = next((package.cache_home() / "aoti").glob(f"*/{package.PACKAGE}"))
    with update_bundle(bundle) as draft:
        draft.write(variant.path, compiled.read_bytes())
    bundle = Bundle.open(tmp_path / "bundle")
    started: list[object] = []
    monkeypatch.setattr(package.subprocess, "Popen", lambda *a, **k: started.append(a))
    with pytest.raises(ForeignModelError, match="not what vggdeploy writes"), open_session(bundle, variant):
        pass
    assert run(["verify", str(bundle.root), "--variant", "aoti-fp32", "--data", "golden"]) == 3
    assert not started


@pytest.fixture(scope="module")
def grey(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network with one input channel, which PyTorch's compiler alone gets wrong."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("grey") / "bundle", ExportOptions(formats=["aoti-fp32"]))


def test_a_network_with_one_input_channel_is_right_too(grey: Bundle) -> None:
    variant = grey.manifest.variant("aoti-fp32")
    assert variant.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE) and variant.parity is not None
    assert max(output.relative_l2 for output in variant.parity.outputs) < 1e-5


@pytest.fixture
def wrong_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions with one input channel as PyTorch 2.14 compiles them by itself: their answers are wrong."""
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(package, "settings", lambda source: '{"freezing": true, "cpp.dynamic_threads": true}')


def test_code_that_answers_wrong_is_not_exported(
    wrong_code: None, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", str(checkpoint), "-o", str(tmp_path / "bundle"), "--formats", "aoti-fp32", "--samples", "50"]
    assert run(line) == 3
    [cause, _] = [text for text in capsys.readouterr().err.splitlines() if text.startswith(("error:", "  fix:"))]
    assert "aoti-fp32" in cause and "logits" in cause
    assert not (tmp_path / "bundle").exists()


def test_code_that_answers_wrong_never_answers(
    wrong_code: None, grey: Bundle, digit_png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the manifest says that it was proven on this very machine."""
    variant = grey.manifest.variant("aoti-fp32")
    assert variant.parity is not None and variant.parity.host == conditions(variant, CPU)
    for _ in range(2):  # also not where its code is in the cache
        with pytest.raises(ParityError, match="aoti-fp32 misses the golden pair on this machine: logits"):
            open_best(grey.root, LoadOptions(variant="aoti-fp32"))
    assert run(["predict", str(grey.root), str(digit_png), "--variant", "aoti-fp32"]) == 3
    assert capsys.readouterr().out == ""
    assert run(["verify", str(grey.root), "--variant", "aoti-fp32", "--data", "golden"]) == 3


def test_bf16_is_proven_where_the_cpu_multiplies_in_it_and_else_said(
    coloured: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, options = coloured.root / "checkpoint", ExportOptions(formats=["aoti-bf16"], samples=50)
    monkeypatch.setattr("vggdeploy.runtime.torch.multiplies_bf16", lambda: False)
    without = export_bundle(checkpoint, tmp_path / "without", options).manifest.variant("aoti-bf16")
    assert without.verdict is Verdict.UNPROVEN and without.parity is not None
    assert "AOTInductor has no bf16 arithmetic on this cpu" in without.parity.reasons[0]
    monkeypatch.setattr("vggdeploy.runtime.torch.multiplies_bf16", lambda: True)  # slow on others, and as right
    proven = export_bundle(checkpoint, tmp_path / "with", options).manifest.variant("aoti-bf16")
    assert proven.precision is Precision.BF16
    assert proven.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert proven.proof is not None and proven.proof.layers == {"bf16": 11}
    assert proven.parity is not None
    assert 1e-4 < max(output.relative_l2 for output in proven.parity.outputs) < 5e-2  # BF16 was computed, not FP32
