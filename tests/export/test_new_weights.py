"""`vggdeploy refit`: another checkpoint's weights for an engine without, by its own golden pair; nothing else gets through."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from vggdeploy.bundle import BuildRecord, Bundle, update_bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.errors import ParityError
from vggdeploy.export import refit
from vggdeploy.export.bundle import ExportOptions
from vggdeploy.export.refit import refit_bundle
from vggdeploy.runtime import open_session
from vggdeploy.runtime.base import Availability
from vggdeploy.system.files import sha256_of
from vggdeploy.types import Verdict

ENGINE = b"ftrt and an engine without weights"
NAME = "tensorrt-fp32"


def with_engine(root: Path, strip: str | None = "any", source: str = "onnx-fp32") -> Bundle:
    """The bundle with an engine of TensorRT in it, as ``build --strip`` leaves it."""
    opened = Bundle.open(root, only=())
    onnx = opened.manifest.variant("onnx-fp32")
    record = BuildRecord(
        library="tensorrt", version="10.13.0", source=source, source_sha256=opened.sha256(onnx.path), targets=("sm89",),
        options={"batch": str(onnx.batch), **({"strip": strip} if strip else {})}, seconds=1.0,
    )  # fmt: skip
    path = f"variants/{NAME}/model.engine"
    engine = structs.replace(onnx, name=NAME, format="tensorrt", path=path, build=record)
    with update_bundle(opened) as draft:
        draft.write(path, ENGINE)
        draft.manifest = opened.manifest.with_variants(engine)
    return Bundle.open(root)


@pytest.fixture(scope="module")
def trained_on(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after another step: every weight a little larger."""
    import torch
    from safetensors.torch import load_file, save_file

    copy = tmp_path_factory.mktemp("next") / "checkpoint"
    shutil.copytree(checkpoint, copy)
    weights = load_file(copy / "model.safetensors")
    save_file({k: v * 1.05 if v.dtype == torch.float32 else v for k, v in weights.items()}, copy / "model.safetensors")
    about = json.loads((copy / "checkpoint.json").read_text())
    about["weights_sha256"] = sha256_of(copy / "model.safetensors")
    (copy / "checkpoint.json").write_text(json.dumps(about))
    return copy


QUICK = ExportOptions(samples=20)


@pytest.mark.late
def test_the_engine_s_bytes_stay_and_its_weights_and_its_proof_are_the_new_checkpoint_s(
    own_bundle: Path, trained_on: Path, tmp_path: Path
) -> None:
    old = with_engine(own_bundle)
    assert run(["refit", str(own_bundle), str(trained_on), "-o", str(tmp_path / "new"), "--samples", "20"]) == 0
    new = Bundle.open(tmp_path / "new")
    engine = new.manifest.variant(NAME)
    assert new.path(engine.path).read_bytes() == ENGINE
    assert engine.build is not None
    assert engine.build.source_sha256 == new.sha256(new.manifest.variant("onnx-fp32").path)
    assert engine.build.source_sha256 != old.manifest.variant(NAME).build.source_sha256  # type: ignore[union-attr]
    # Without a GPU nobody ran it: it says so, and has no distances or times of the old weights.
    assert engine.verdict is Verdict.UNPROVEN
    assert (engine.distances, engine.measured) == ((), ())
    assert {v.name for v in new.manifest.variants} == {"torch-fp32", "onnx-fp32", NAME}
    assert new.golden()[1]["logits"].tolist() != old.golden()[1]["logits"].tolist()


@pytest.mark.late
@pytest.mark.parametrize("kept", [False, True])
def test_an_engine_that_kept_its_old_weights_misses_the_new_golden_pair_and_is_not_added(
    own_bundle: Path, trained_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The engine is a session of the ONNX with the new weights, or with the old ones."""
    old = with_engine(own_bundle)
    monkeypatch.setattr(refit, "runnable", lambda variant: Availability(True, "cuda:0"))

    def opened(bundle: Bundle, variant: Any, *, device: Any, file: Any) -> Any:
        assert (file.sha256, variant.name) == (old.sha256(f"variants/{NAME}/model.engine"), NAME)
        of = old if kept else bundle
        return open_session(of, of.manifest.variant("onnx-fp32"))

    monkeypatch.setattr(refit, "open_session", opened)
    monkeypatch.setattr(sys.modules["vggdeploy.parity.compare"], "conditions", lambda *a: {})  # of a machine with a GPU
    target = tmp_path / "new"
    if kept:
        with pytest.raises(ParityError, match="misses the golden pair of the new checkpoint"):
            refit_bundle(old, trained_on, target, options=QUICK)
        assert NAME not in {v.name for v in Bundle.open(target).manifest.variants}
    else:
        refit_bundle(old, trained_on, target, options=QUICK)
        assert Bundle.open(target).manifest.variant(NAME).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (Bundle.open, "has no engine that takes other weights"),
        (lambda root: with_engine(root, strip="identical"), "has no engine that takes other weights"),
        (lambda root: with_engine(root, source="onnx-int8"), "was built from onnx-int8, which no export writes"),
    ],
)
def test_a_bundle_without_such_an_engine_is_refused_before_anything_is_exported(
    own_bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], Bundle], said: str,
) -> None:  # fmt: skip
    prepare(own_bundle)
    assert run(["refit", str(own_bundle), str(checkpoint), "-o", str(tmp_path / "new")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "strip", "said"),
    [
        (NAME, "identical", "was built to get back the weights that it was built from"),
        ("onnx-fp32", "any", "onnx-fp32 is no engine"),
    ],
)
def test_a_named_variant_that_takes_no_other_weights_is_refused(
    own_bundle: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    strip: str,
    said: str,
) -> None:
    with_engine(own_bundle, strip=strip)
    line = ["refit", str(own_bundle), str(checkpoint), "-o", str(tmp_path / "new"), "--variant", name]
    assert run(line) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "said"), [("spec", "is another network than"), ("preprocess", "prepares its images otherwise")]
)
def test_another_network_or_preprocessing_is_refused(
    own_bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, field: str, said: str,
) -> None:  # fmt: skip
    with_engine(own_bundle)
    found = read_checkpoint(checkpoint)
    changed = {
        "spec": structs.replace(found.spec, classes=7),
        "preprocess": structs.replace(found.preprocess, resize=99),
    }
    monkeypatch.setattr(refit, "read_checkpoint", lambda path: structs.replace(found, **{field: changed[field]}))
    assert run(["refit", str(own_bundle), str(checkpoint), "-o", str(tmp_path / "new")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_a_gpu_a_build_without_weights_is_refused_in_words(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT for RTX 1.7 ends such a build with a failed check of its compiler."""
    assert run(["build", str(own_bundle), "--strip", "identical", "--target", "ada"]) == 5
    assert "leaves weights out only where it has a GPU to build on" in capsys.readouterr().err
