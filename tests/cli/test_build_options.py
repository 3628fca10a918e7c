"""``vggdeploy build``'s options: what they print and record, and the answer to every wrong value and old habit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.small import write_bundle

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.types import Precision


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tmp_path: Path, onnx_files: dict[Precision, Path]) -> Path:
    return write_bundle(
        tmp_path / "bundle", {p: onnx_files[p] for p in (Precision.FP32, Precision.FP16, Precision.INT8)}
    ).root


def test_what_was_asked_is_shown_and_recorded(bundle, capsys):
    options = ["--workspace", "2GiB", "--opt-level", "4", "--cuda-graph-batches", "1,4"]
    assert run(["build", str(bundle), "--target", "ada", *options]) == 0
    shown = capsys.readouterr().out
    assert "workspace 2147483648, opt_level 4, CUDA graphs for batches of 1, 4" in shown
    assert run(["inspect", str(bundle)]) == 0
    assert "CUDA graphs for batches of 1, 4" in capsys.readouterr().out


def test_int8_comes_from_the_quantised_onnx_and_is_proven(bundle, capsys):
    assert run(["build", str(bundle), "--precision", "int8", "--target", "sm89", "--json"]) == 0
    variant = json.loads(capsys.readouterr().out)["variant"]
    assert variant["name"] == "tensorrt-rtx-int8-sm89"
    assert variant["proof"]["layers"] == {"int8": 11}
    assert variant["build"]["source"] == "onnx-int8"


def test_a_second_build_says_that_it_is_a_copy_and_no_cache_builds(bundle, cache, capsys):
    call = ["build", str(bundle), "--target", "ada", "--json"]
    cached = []
    for more in ([], [], ["--no-cache"]):
        assert run([*call, *more]) == 0
        cached.append(json.loads(capsys.readouterr().out)["cached"])
    assert cached == [False, True, False]
    assert run(call[:-1]) == 0
    assert "copied from the cache" in capsys.readouterr().out
    assert len(list((cache / "engines").glob("*/model.engine"))) == 1


def test_rebuilds_report_their_spread(bundle, cache, capsys):
    assert run(["build", str(bundle), "--target", "ada", "--rebuilds", "3", "--json"]) == 0
    spread = json.loads(capsys.readouterr().out)["variant"]["build"]["rebuilds"]
    assert (spread["builds"], spread["distinct"]) == (3, 1)  # FP16 for Ada: byte for byte the same
    assert len(spread["sizes"]) == len(spread["seconds"]) == 3
    assert spread["p50_ms"] == []
    assert not cache.exists()  # a copy would say nothing
    assert Bundle.open(bundle).manifest.variant("tensorrt-rtx-fp16-sm89").build.rebuilds.builds == 3
    assert run(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "3 builds, byte for byte the same" in shown and "latency not measured" in shown


@pytest.mark.parametrize(
    ("options", "code", "cause", "fix"),
    [
        (["--workspace", "4"], 2, "the size '4' has no unit", "4GiB or 4MiB"),
        (["--workspace", "lots"], 2, "'lots' is not a size", "2GiB"),
        (["--workspace", "70kB"], 1, "within workspace limit", "a larger --workspace"),
        (["--opt-level", "9"], 2, "the optimisation level is 9", "--opt-level 3"),
        (["--opt-level", "high"], 2, "--opt-level", "vggdeploy build --help"),
        (["--timing-cache", "t.cache"], 5, "has no --timing-cache", "leave --timing-cache out"),
        (["--hardware-compatible", "ampere+"], 5, "has no --hardware-compatible", "--target"),
        (["--hardware-compatible", "same_cc"], 5, "has no --hardware-compatible", "--target"),
        (
            ["--hardware-compatible", "ampere"],
            2,
            "hardware compatibility 'ampere' is unknown",
            "did you mean 'ampere+'",
        ),
        (["--version-compatible"], 5, "has no --version-compatible", "no lean runtime"),
        (["--cuda-graph-batches", "1,x"], 2, "'1,x' is not a list of batch sizes", "1,8,32"),
        (["--cuda-graph-batches", "64"], 2, "a CUDA graph was asked for batches of 64", "widen --batch"),
        (["--rebuilds", "0"], 2, "--rebuilds is 0", "1 or more"),
        (["--precision", "tf32", "--target", "turing,ada"], 5, "tf32 needs a GPU from sm80 on: sm75", "--target sm89"),
        (["--precision", "bf16"], 1, "no ONNX in bf16", "onnx-fp32,onnx-bf16"),
        (["--sparse"], 5, "TensorRT for RTX 1.7.1.116 has no --sparse", "--engine tensorrt"),
        (["--tf32"], 2, "--tf32", "--precision tf32"),
        (["--bf16"], 2, "--bf16", "--precision bf16"),
        (["--precision", "fp32", "--target", "turing"], 1, "FP32 GEMM is not supported", "other GPU targets"),
        (["--half"], 2, "--half", "--precision fp16"),
        (["half=True"], 2, "half=True", "--precision fp16"),
        (["--memPoolSize", "workspace:2048"], 2, "--memPoolSize", "--workspace 2GiB"),
        (["--builderOptimizationLevel=5"], 2, "--builderOptimizationLevel", "--opt-level"),
        (["--timingCacheFile=t"], 2, "--timingCacheFile", "--timing-cache FILE"),
        (["--versionCompatible"], 2, "--versionCompatible", "--version-compatible"),
        (["--sparsity=enable"], 2, "--sparsity", "--sparse"),
    ],
)
def test_every_wrong_value_and_every_habit_has_its_answer(bundle, capsys, options, code, cause, fix):
    before = (bundle / "manifest.json").read_bytes()
    assert run(["build", str(bundle), *options]) == code
    shown = capsys.readouterr()
    assert cause in shown.err and fix in shown.err
    assert len(shown.err[shown.err.index("error:") :].strip().splitlines()) == 2
    assert (bundle / "manifest.json").read_bytes() == before
