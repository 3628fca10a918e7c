"""``vggdeploy build``: what it prints, what ``--json`` holds, and the exit code of every way to go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.small import CONVOLUTIONS, PRODUCTS, write_bundle

from vggdeploy.build.memory import session_memory
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.cli.render import size_text
from vggdeploy.system.optional import installed
from vggdeploy.types import Precision

LAYERS = CONVOLUTIONS + PRODUCTS


@pytest.fixture
def onnx_file(onnx_files: dict[Precision, Path]) -> Path:
    return onnx_files[Precision.FP16]


@pytest.fixture
def bundle(tmp_path: Path, onnx_file: Path) -> Path:
    return write_bundle(tmp_path / "bundle", {Precision.FP16: onnx_file}).root


def test_it_says_what_was_built_what_was_proven_and_what_comes_next(bundle, capsys):
    assert run(["build", str(bundle), "--target", "ada,sm120", "--batch", "1:2:4"]) == 0
    shown = capsys.readouterr()
    assert (
        "tensorrt-rtx-fp16-sm89-sm120" in shown.out and "TensorRT for RTX" in shown.out and "batch 1:2:4" in shown.out
    )
    assert "sm89, sm120" in shown.out
    assert f"{LAYERS} in fp16" in shown.out
    assert "unproven here" in shown.out and "pass" not in shown.out
    assert f"vggdeploy verify {bundle}" in shown.err
    for verb in ("inspect", "explain"):
        assert run([verb, str(bundle)]) == 0
        told = capsys.readouterr().out
        assert f"the golden pair proves it there: vggdeploy verify {bundle}" in told and "verify BUNDLE" not in told
    assert f"the golden pair proves it there: vggdeploy verify {bundle}" in shown.out


def test_json_is_one_document_and_nothing_else(bundle, capsys):
    assert run(["build", str(bundle), "--engine", "tensorrt-rtx", "--precision", "FP16", "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["schema_version"] == 1
    variant = document["variant"]
    assert variant["name"] == "tensorrt-rtx-fp16"
    assert variant["batch"] == {"min": 1, "opt": 4, "max": 16}
    assert variant["build"]["targets"] == ["sm80", "sm86", "sm89", "sm120", "sm121"]
    assert variant["proof"]["layers"] == {"fp16": LAYERS}
    assert variant["parity"]["verdict"] == "unproven"
    opened = Bundle.open(bundle)
    assert document["sha256"] == opened.sha256(variant["path"])
    assert document["size"] == opened.size(opened.manifest.variant("tensorrt-rtx-fp16"))


@pytest.mark.parametrize(
    ("options", "code", "cause", "fix"),
    [
        (["--precision", "fp61"], 2, "precision 'fp61' is unknown", "did you mean 'fp16'"),
        (["--engine", "tensort"], 2, "engine 'tensort' is unknown", "did you mean 'tensorrt'"),
        (["--target", "adda"], 2, "GPU target 'adda' is unknown", "did you mean 'ada'"),
        (["--target", "h100"], 2, "does not support 'h100' (Hopper, sm90)", "--engine tensorrt"),
        (["--target", ","], 2, "no GPU target", "--target ampere,ada,blackwell"),
        (["--engine", "tensorrt", "--target", "ada"], 2, "builds for the GPU of this machine", "leave --target out"),
        (["--batch", "8:4:2"], 2, "batch range 8:4:2", "1:8:32"),
        (["--batch", "0"], 2, "batch range 0:0:0", "1:8:32"),
        (["--batch", "many"], 2, "'many' is not a batch range", "MIN:OPT:MAX"),
        (["--fp16"], 2, "--fp16", "--precision fp16"),
        (["--precision", "int8"], 1, "no ONNX in int8", "--precision"),
    ],
)
def test_every_wrong_call_has_its_code_its_cause_and_its_fix(bundle, capsys, options, code, cause, fix):
    assert run(["build", str(bundle), *options]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert cause in shown.err
    assert fix in shown.err
    assert len(shown.err.strip().splitlines()) == 2
    assert [v.name for v in Bundle.open(bundle).manifest.variants] == ["onnx-fp16"]


@pytest.mark.skipif(installed("tensorrt"), reason="tensorrt is installed here")
def test_tensorrt_that_is_not_installed_is_exit_code_5(bundle, capsys):
    assert run(["build", str(bundle), "--engine", "tensorrt"]) == 5
    assert "pip install 'vggdeploy[gpu]'" in capsys.readouterr().err


def test_what_is_no_bundle_is_exit_code_1(tmp_path, capsys):
    assert run(["build", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("any_graph")
def test_a_damaged_onnx_is_exit_code_1_and_debug_shows_the_library_s_log(tmp_path, onnx_file, capsys):
    (tmp_path / "cut.onnx").write_bytes(onnx_file.read_bytes()[:4000])
    root = write_bundle(tmp_path / "cut", {Precision.FP16: tmp_path / "cut.onnx"}).root
    assert run(["build", str(root)]) == 1
    quiet = capsys.readouterr().err
    assert "cannot read model.onnx: Failed to parse the ONNX model" in quiet
    assert "Traceback" not in quiet
    assert run(["build", str(root), "--debug"]) == 1
    assert "MODEL_DESERIALIZE_FAILED" in capsys.readouterr().err


def test_an_fp32_onnx_that_calls_itself_fp16_is_exit_code_3(tmp_path, onnx_files, capsys):
    root = write_bundle(tmp_path / "false", {Precision.FP16: onnx_files[Precision.FP32]}).root
    assert run(["build", str(root)]) == 3
    assert f"{LAYERS} in fp32" in capsys.readouterr().err


def test_profiles_and_the_memory_of_a_session_are_shown(bundle, capsys):
    assert run(["build", str(bundle), "--target", "ada", "--batch", "1,8,16"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "batch 1, 2–8, 9–16" in shown
    assert "predicted from the layers" in shown  # no GPU was there to ask
    opened = Bundle.open(bundle)
    variant = opened.manifest.variant("tensorrt-rtx-fp16-sm89")
    told = [f"{size_text(m.total)} up to {m.batch}" for m in session_memory(opened.manifest, variant)]
    assert f"memory at least, for batches: {', '.join(told)}; weights " in shown
    assert run(["inspect", str(bundle)]) == 0
    assert ", ".join(told) in " ".join(capsys.readouterr().out.split())


def test_the_memory_of_a_session_is_in_the_json(bundle, capsys):
    assert run(["build", str(bundle), "--target", "ada", "--batch", "1,8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["memory"]
    assert [(m["batch"], m["contexts"], m["asked"]) for m in found] == [(1, 4, False), (8, 4, False)]
    assert all(m["total"] == m["weights"] + 4 * (m["activations"] + m["buffers"]) for m in found)
