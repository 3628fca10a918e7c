"""`bench --backend tensorrt-rtx` is one line: an engine that fits is found, or built, proven and left in the bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fakes.machine import Machine, machine_with_gpu
from fakes.worker import InlineWorker
from fixtures.small import write_bundle
from msgspec.structs import replace

from vggdeploy.bench import candidates, crew
from vggdeploy.bench.candidates import Entry, beside_engines
from vggdeploy.build import engines
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.runtime.base import Availability
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.types import Device, Precision, Verdict

NAME = "tensorrt-rtx-fp16-sm89"
QUICK = ["--seconds", "0.02", "--rounds", "3", "--batch", "1", "--json"]
ONE_LINE = ["--backend", "tensorrt-rtx", *QUICK]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, onnx_files: dict[Precision, Path]) -> Path:
    """A bundle without an engine."""
    return write_bundle(tmp_path / "bundle", {p: onnx_files[p] for p in (Precision.FP32, Precision.FP16)}).root


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, onnx_files: dict[Precision, Path]) -> Machine:
    monkeypatch.setattr(crew, "Worker", InlineWorker)  # in a process of its own the backend would not be replaced
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # it is not installed
    return machine_with_gpu(monkeypatch, onnx_files[Precision.FP32])


def test_one_line_builds_proves_measures_and_leaves_the_engine(root: Path, machine: Machine, capsys) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 0
    shown = capsys.readouterr()
    [row] = json.loads(shown.out)["rows"]
    assert (row["variant"], row["device"], row["verdict"], row["on_cpu"]) == (NAME, "cuda:0", "pass", "")
    assert f"{root} has no engine that TensorRT for RTX" in shown.err and "building one in FP16" in shown.err
    opened = Bundle.open(root)
    added = opened.manifest.variant(NAME)
    assert (added.verdict, added.precision) == (Verdict.PASS, Precision.FP16)
    assert added.parity.sha256 == row["sha256"] == opened.sha256(added.path)
    assert run(["bench", str(root), *ONE_LINE]) == 0  # the next time it is there
    assert "building" not in capsys.readouterr().err


def test_an_engine_of_another_gpu_or_release_is_no_engine_for_this_one(root: Path, machine: Machine, capsys) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 0
    capsys.readouterr()
    machine.gpu = Gpu(0, "NVIDIA GeForce RTX 5090", "sm120", "13.0")
    assert run(["bench", str(root), *ONE_LINE]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["variant"] == "tensorrt-rtx-fp16-sm120"
    assert NAME in {v.name for v in Bundle.open(root).manifest.variants}


def test_it_is_built_through_the_cache(root: Path, machine: Machine, tmp_path: Path, onnx_files, monkeypatch) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 0
    again = write_bundle(tmp_path / "again", {Precision.FP16: onnx_files[Precision.FP16]}).root
    monkeypatch.setattr("vggdeploy.build.request.build_engine", lambda *a, **k: pytest.fail("it was built again"))
    assert run(["bench", str(again), *ONE_LINE]) == 0


def test_no_build_is_an_error_with_the_command_to_type(root: Path, machine: Machine, capsys) -> None:
    before = (root / "manifest.json").read_bytes()
    assert run(["bench", str(root), *ONE_LINE, "--no-build"]) == 5
    err = capsys.readouterr().err
    assert "no variant for tensorrt-rtx" in err and f"vggdeploy build {root} --engine tensorrt-rtx" in err
    assert len(err.splitlines()) == 2
    assert (root / "manifest.json").read_bytes() == before
    assert run(["bench", str(root), *QUICK, "--no-build"]) == 2  # a flag that would mean nothing


def test_an_engine_that_answers_wrong_is_exit_3_and_neither_measured_nor_kept(root: Path, machine, capsys) -> None:
    machine.off = 1.0
    before = (root / "manifest.json").read_bytes()
    for _ in range(2):  # nor does the cache make it right
        assert run(["bench", str(root), *ONE_LINE]) == 3
        shown = capsys.readouterr()
        assert shown.out == "" and f"{NAME} misses the golden pair" in shown.err
    assert (root / "manifest.json").read_bytes() == before


def test_an_engine_that_fits_and_failed_parity_is_not_hidden_by_another(root: Path, machine: Machine, capsys) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 0
    opened = Bundle.open(root)
    failed = opened.manifest.variant(NAME)
    with update_bundle(opened) as draft:
        assert failed.parity is not None
        parity = failed.parity.failed(("planted",))
        draft.manifest = opened.manifest.with_variants(replace(failed, parity=parity))
    loads = len(machine.loads)
    assert run(["bench", str(root), *ONE_LINE]) == 3
    assert len(machine.loads) == loads
    assert "failed parity" in capsys.readouterr().err


def test_without_tensorrt_it_says_which_words_to_type(root: Path, machine: Machine, capsys) -> None:
    assert run(["bench", str(root), "--backend", "tensorrt", *QUICK]) == 5
    err = capsys.readouterr().err
    assert "'tensorrt' is needed" in err and "TensorRT for RTX runs on cuda:0" in err
    assert "fix: type: --backend tensorrt-rtx" in err
    assert len(err.splitlines()) == 2


def test_without_a_gpu_the_error_is_the_old_one(root: Path, capsys) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 5
    err = capsys.readouterr().err
    assert "no variant for tensorrt-rtx" in err and "cannot run here" in err and "building" not in err


def test_a_bundle_that_cannot_be_written_says_so(root: Path, machine: Machine, capsys, monkeypatch) -> None:
    def refuse(bundle: Bundle) -> None:
        raise UsageError("a mount")

    monkeypatch.setattr(engines, "update_bundle", refuse)
    assert run(["bench", str(root), *ONE_LINE]) == 2
    assert "cannot be written, so it does not get the engine" in capsys.readouterr().err


# Beside an engine


def test_what_cannot_use_the_gpu_runs_on_the_cpu_and_says_so(root: Path, machine: Machine, capsys) -> None:
    call = ["bench", str(root), *ONE_LINE, "--backend", "onnxruntime"]
    assert run(call) == 0
    rows = {row["variant"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows[NAME]["device"] == "cuda:0" and rows[NAME]["on_cpu"] == ""
    assert rows["onnx-fp32"]["device"] == "cpu"
    assert "CUDAExecutionProvider" in rows["onnx-fp32"]["on_cpu"]
    assert run([part for part in call if part != "--json"]) == 0
    assert "it ran on the CPU beside an engine on a GPU: " in capsys.readouterr().out


def entries(root: Path, *names: str) -> list[Entry]:
    bundle = Bundle.open(root)
    default = {"tensorrt-rtx": Device("cuda", 1)}
    found = [bundle.manifest.variant(name) for name in names]
    return [Entry(bundle, v, default.get(v.format, Device()), v.name) for v in found]


def test_libraries_that_can_use_the_gpu_run_on_the_engine_s_own(root: Path, machine, capsys, monkeypatch) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 0
    asked = []

    def runnable(variant, device):
        asked.append(device)
        return Availability(variant.name == "onnx-fp16", str(device), "it has no kernel")

    monkeypatch.setattr(candidates, "runnable", runnable)
    placed = beside_engines(entries(root, "onnx-fp32", "onnx-fp16", NAME))
    assert [(e.name, str(e.device), e.on_cpu) for e in placed] == [
        ("onnx-fp32", "cpu", "it has no kernel"), ("onnx-fp16", "cuda:1", ""), (NAME, "cuda:1", ""),
    ]  # fmt: skip
    assert asked == [Device("cuda", 1)] * 2  # the engine's GPU, and not the first
    alone = entries(root, "onnx-fp32", "onnx-fp16")
    assert beside_engines(alone) == alone  # without an engine nothing moves


def test_a_device_that_is_told_is_obeyed(root: Path, machine: Machine, capsys, monkeypatch) -> None:
    assert run(["bench", str(root), *ONE_LINE]) == 0
    capsys.readouterr()
    monkeypatch.setattr(candidates, "runnable", lambda *a: pytest.fail("nothing is to be moved"))
    assert run(["bench", str(root), "--backend", "onnxruntime", "--device", "cpu", *QUICK]) == 0
    assert {row["on_cpu"] for row in json.loads(capsys.readouterr().out)["rows"]} == {""}
