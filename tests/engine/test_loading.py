"""Loading an engine where it can run: it has to fit, to be proven there once, and can be rebuilt when it does not fit.

The GPU is not there: its backend is replaced by one that answers with ONNX Runtime. Everything before it is real: builds
with TensorRT for RTX, bundles, the preflight, the cache, the proofs.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
from attacks.foreign_cache import ATTACKS
from fakes.machine import ADA, Machine, machine_with_gpu
from fakes.worker import InlineWorker
from fixtures.small import write_bundle

import vggdeploy
from vggdeploy.bench import crew
from vggdeploy.build import engines
from vggdeploy.build.engines import build_into
from vggdeploy.build.options import BuildOptions
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import Bundle
from vggdeploy.bundle.sign import sign_bundle
from vggdeploy.bundle.signature import new_key
from vggdeploy.bundle.trust import Trust, signer_rules
from vggdeploy.cli.app import run
from vggdeploy.engine.loading import VERIFY, rebuild_unfit
from vggdeploy.errors import IncompatibleError, ParityError, UsageError
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.types import Precision, Verdict

BLACKWELL = Gpu(0, "NVIDIA GeForce RTX 5090", "sm120", "13.0")
NAME = "tensorrt-rtx-fp16-sm89"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, onnx_files: dict[Precision, Path]) -> Path:
    """A bundle with an engine for Ada."""
    path = tmp_path_factory.mktemp("built") / "bundle"
    bundle = write_bundle(path, {p: onnx_files[p] for p in (Precision.FP32, Precision.FP16)})
    return build_into(bundle, BuildPlan(engine="rtx", targets=["ada"])).bundle.root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, onnx_files: dict[Precision, Path]) -> Machine:
    return machine_with_gpu(monkeypatch, onnx_files[Precision.FP32])


def test_a_first_load_runs_the_golden_pair_and_the_second_remembers_it(
    root: Path, machine: Machine, cache: Path
) -> None:
    for proven in (True, False):
        before = machine.runs
        with vggdeploy.load(root) as engine:
            assert engine.variant.name == NAME
        assert (machine.runs > before) is proven
    assert len(list((cache / "proofs").iterdir())) == 1
    assert Bundle.open(root).manifest.variant(NAME).verdict is Verdict.UNPROVEN  # a proof here is none elsewhere


@pytest.mark.parametrize("change", ["gpu", "driver", "version", "engine", "proof damaged", "proof of another"])
def test_whatever_changes_the_machine_or_the_bytes_is_proven_again(
    root: Path, machine: Machine, cache: Path, change: str
) -> None:
    vggdeploy.load(root, variant=NAME).close()
    before = machine.runs
    [proof] = (cache / "proofs").iterdir()
    if change == "gpu":
        machine.gpu = Gpu(0, "NVIDIA L4", "sm89", "13.0")
    if change == "driver":
        machine.gpu = Gpu(0, ADA.name, "sm89", "13.3")
    if change == "version":
        machine.version += ".post1"  # the same release: it loads, and is proven again
    if change == "engine":
        build_into(Bundle.open(root), BuildPlan(engine="rtx", targets=["ada"], options=BuildOptions(workspace=2**31)))
    if change == "proof damaged":
        proof.write_bytes(proof.read_bytes()[:-9])
    if change == "proof of another":
        sha256 = Bundle.open(root).sha256(f"variants/{NAME}/model.engine")
        proof.write_text(proof.read_text().replace(sha256, "0" * 64))
    vggdeploy.load(root, variant=NAME).close()
    assert machine.runs > before


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_proof_that_another_user_could_have_written_is_none(
    root: Path, machine: Machine, cache: Path, attack: str, what: str
) -> None:
    vggdeploy.load(root, variant=NAME).close()
    before = machine.runs
    [proof] = (cache / "proofs").iterdir()
    ATTACKS[attack](proof.parent if what == "directory" else proof)
    vggdeploy.load(root, variant=NAME).close()
    assert machine.runs > before


@pytest.mark.parametrize("change", ["key", "sha256"])
def test_a_proof_of_other_bytes_or_of_another_key_is_none(
    root: Path, machine: Machine, cache: Path, change: str
) -> None:
    vggdeploy.load(root, variant=NAME).close()
    [proof] = (cache / "proofs").iterdir()
    sha256 = Bundle.open(root).sha256(f"variants/{NAME}/model.engine")
    proof.write_text(proof.read_text().replace(proof.stem if change == "key" else sha256, "0" * 64))
    before = machine.runs
    vggdeploy.load(root, variant=NAME).close()
    assert machine.runs > before


def test_always_and_never(root: Path, machine: Machine) -> None:
    vggdeploy.load(root, variant=NAME, verify="never").close()
    assert machine.runs == 0
    for _ in range(2):
        before = machine.runs
        vggdeploy.load(root, variant=NAME, verify="always").close()
        assert machine.runs > before
    with pytest.raises(UsageError, match="did you mean 'always'"):
        vggdeploy.load(root, verify="allways")
    assert VERIFY == ("first-load", "always", "never")


def test_an_engine_that_answers_wrong_is_refused_closed_and_not_remembered(
    root: Path, machine: Machine, cache: Path
) -> None:
    machine.off = 1.0
    with pytest.raises(ParityError, match=f"{NAME} misses the golden pair on this machine") as caught:
        vggdeploy.load(root, variant=NAME)
    assert caught.value.exit_code == 3
    assert not (cache / "proofs").exists()
    with vggdeploy.load(root, verify="first-load") as engine:  # 'auto' goes on to the next
        assert engine.variant.format == "onnx"


def test_a_cache_that_cannot_be_written_only_forgets(root: Path, machine: Machine, cache: Path) -> None:
    cache.write_bytes(b"")
    for _ in range(2):
        before = machine.runs
        vggdeploy.load(root, variant=NAME).close()
        assert machine.runs > before


def test_an_engine_for_another_gpu_never_reaches_the_library(root: Path, machine: Machine) -> None:
    machine.gpu = BLACKWELL
    with pytest.raises(IncompatibleError, match=r"built by TensorRT for RTX .* for sm89; here: .*sm120") as caught:
        vggdeploy.load(root, backend="tensorrt-rtx")
    assert caught.value.exit_code == 5 and "--rebuild" in caught.value.hint
    assert machine.loads == []


# Rebuild


def test_rebuild_builds_for_this_gpu_proves_and_adds(root: Path, machine: Machine) -> None:
    machine.gpu = BLACKWELL
    told: list[str] = []
    with vggdeploy.load(root, rebuild=lambda share, phase: told.append(phase)) as engine:
        assert engine.variant.name == "tensorrt-rtx-fp16-sm120"
        assert engine.run({"image": np.zeros((1, 32, 32, 3), np.uint8)})["logits"].shape == (1, 10)
    assert told
    opened = Bundle.open(root)
    added = opened.manifest.variant("tensorrt-rtx-fp16-sm120")
    assert added.verdict is Verdict.PASS
    assert added.parity is not None and added.parity.sha256 == opened.sha256(added.path)
    assert added.build is not None and added.build.targets == ("sm120",)
    assert NAME in {v.name for v in opened.manifest.variants}  # the other GPU's engine stays
    before = len(machine.loads), machine.runs
    vggdeploy.load(root, rebuild=True).close()  # now it fits: nothing is built, nothing proven again
    assert (len(machine.loads), machine.runs) == (before[0] + 1, before[1])


def test_an_engine_that_fits_is_not_rebuilt(root: Path, machine: Machine) -> None:
    before = (root / "manifest.json").read_bytes()
    vggdeploy.load(root, rebuild=True).close()
    assert (root / "manifest.json").read_bytes() == before


def test_the_library_s_own_refusal_is_mended_by_a_rebuild_too(root: Path, machine: Machine) -> None:
    machine.refuses = str(root)  # the bundle's file; the new one is loaded from the cache
    with pytest.raises(IncompatibleError, match="the library cannot load it"):
        vggdeploy.load(root, variant=NAME)
    with vggdeploy.load(root, variant=NAME, rebuild=True) as engine:
        assert engine.variant.verdict is Verdict.PASS


def test_a_rebuilt_engine_that_answers_wrong_is_not_added(root: Path, machine: Machine) -> None:
    machine.gpu, machine.off = BLACKWELL, 1.0
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(ParityError, match="tensorrt-rtx-fp16-sm120 misses the golden pair"):
        vggdeploy.load(root, rebuild=True)
    assert (root / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "read-only"), OSError(errno.EACCES, "no"), UsageError("a mount")]
)
def test_of_a_bundle_that_cannot_be_written_the_engine_is_kept_in_the_cache(
    root: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(bundle: Bundle) -> None:
        raise error

    monkeypatch.setattr(engines, "update_bundle", refuse)
    machine.gpu = BLACKWELL
    before = (root / "manifest.json").read_bytes()
    phases: list[str] = []
    for _ in range(2):
        with vggdeploy.load(root, rebuild=lambda share, phase: phases.append(phase)) as engine:
            assert engine.variant.build is not None and engine.variant.build.targets == ("sm120",)
            assert engine.variant.verdict is Verdict.PASS
    assert phases[-1] == "copied from the cache"
    assert (root / "manifest.json").read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written"):
        rebuild_unfit(Bundle.open(root))


def test_a_bundle_that_has_to_be_signed_stays_as_it_was_signed(root: Path, machine: Machine, tmp_path: Path) -> None:
    public = new_key(tmp_path / "release.pem")
    sign_bundle(root, tmp_path / "release.pem")
    machine.gpu = BLACKWELL
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with vggdeploy.load(root, rebuild=True, trust=Trust([public])) as engine:
        assert engine.variant.build is not None and engine.variant.build.targets == ("sm120",)
        assert engine.variant.verdict is Verdict.PASS
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    with pytest.raises(UsageError, match="has to stay as it was signed"):
        rebuild_unfit(Bundle.open(root, trust=signer_rules(Trust([public]))))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_signed_bundle_gets_no_cached_engine_that_another_user_could_have_written(
    root: Path, machine: Machine, cache: Path, tmp_path: Path, attack: str
) -> None:
    public = new_key(tmp_path / "release.pem")
    sign_bundle(root, tmp_path / "release.pem")
    machine.gpu = BLACKWELL
    vggdeploy.load(root, rebuild=True, trust=Trust([public])).close()
    [engine] = (cache / "engines").glob("*/model.engine")
    built = engine.read_bytes()
    altered = bytearray(built)
    altered[len(altered) // 2] ^= 1
    entry = engine.with_name("entry.json")
    hashes = [hashlib.sha256(data).hexdigest() for data in (built, altered)]
    engine.write_bytes(altered)
    entry.write_text(entry.read_text().replace(*hashes))
    ATTACKS[attack](engine.parent)
    vggdeploy.load(root, rebuild=True, trust=Trust([public])).close()
    assert bytes(altered) not in machine.loads
    assert machine.loads[-1] == built


def test_a_full_disk_is_still_an_error(root: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(bundle: Bundle) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(engines, "update_bundle", full)
    machine.gpu = BLACKWELL
    with pytest.raises(OSError, match="full"):
        vggdeploy.load(root, rebuild=True)


def test_without_a_gpu_rebuild_changes_nothing(root: Path) -> None:
    with vggdeploy.load(root, backend="onnxruntime", rebuild=True) as engine:
        assert engine.variant.format == "onnx"


# The commands


def test_bench_rebuild_measures_the_new_engine(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpu = BLACKWELL
    monkeypatch.setattr(crew, "Worker", InlineWorker)  # in a process of its own the backend would not be replaced
    # This bundle has no reference: the golden pair is the proof.
    assert run(["bench", str(root), "--rebuild", "--seconds", "0.02", "--rounds", "3", "--batch", "1"]) == 0
    assert "tensorrt-rtx-fp16-sm120" in capsys.readouterr().out
    assert "tensorrt-rtx-fp16-sm120" in {v.name for v in Bundle.open(root).manifest.variants}


def test_inspect_explains_the_choice_and_each_refusal(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    build_into(Bundle.open(root), BuildPlan(engine="rtx", targets=["sm120"]))
    assert run(["inspect", str(root)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{NAME} taken not run yet" in shown
    assert "tensorrt-rtx-fp16-sm120 cannot built by" in shown and "no code for sm89" in shown
    assert "convolutions and matrix products: 11 in fp16" in shown
    assert f"TensorRT for RTX {tensorrt_rtx.__version__}" in shown


def test_predict_without_a_fitting_engine_is_exit_code_5(
    root: Path, machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    machine.gpu = BLACKWELL
    call = ["predict", str(root), str(tmp_path / "x.png"), "--backend", "tensorrt-rtx"]
    assert run(call) == 5
    assert "for sm89; here:" in capsys.readouterr().err
    assert run([*call, "--rebuild"]) == 0
