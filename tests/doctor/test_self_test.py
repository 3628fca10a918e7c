"""``doctor --self-test``: what runs here is run, what cannot is named with its reason, and a wrong answer is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vggdeploy.cli.app import run
from vggdeploy.doctor import doctor as selftest
from vggdeploy.doctor.doctor import Outcome, SelfTest, self_test
from vggdeploy.errors import CudaError, IncompatibleError
from vggdeploy.records import from_json, to_json
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.cuda import check_driver
from vggdeploy.runtime.registry import BACKENDS


def has_driver() -> bool:
    try:
        check_driver()
    except IncompatibleError:
        return False
    return True


@pytest.fixture(scope="module")
def result() -> SelfTest:
    return self_test()


def test_everything_is_tried_and_nothing_fails(result: SelfTest) -> None:
    tried = {(p.what, p.device) for p in result.proofs}
    assert {(b.name, kind) for b in BACKENDS for kind in b.devices} <= tried
    assert ("tensorrt-rtx build", "any") in tried
    assert [p for p in result.proofs if p.outcome is Outcome.FAILED] == []


@pytest.mark.parametrize("what", ["torch", "torchscript", "torch-export", "onnxruntime"])
def test_the_cpu_computes_what_numpy_computes(result: SelfTest, what: str) -> None:
    [proof] = [p for p in result.proofs if (p.what, p.device) == (what, "cpu")]
    assert proof.outcome is Outcome.PASSED and "from NumPy" in proof.detail


def test_an_engine_is_built_for_real(result: SelfTest) -> None:
    [proof] = [p for p in result.proofs if p.what == "tensorrt-rtx build"]
    assert proof.outcome is Outcome.PASSED
    assert "2 in fp32" in proof.detail


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_what_needs_a_gpu_is_not_here_and_says_what_mends_it(result: SelfTest) -> None:
    on_gpu = [p for p in result.proofs if p.device.startswith("cuda")]
    assert len(on_gpu) >= 9
    for proof in on_gpu:
        assert proof.outcome is Outcome.NOT_HERE, proof
        assert proof.reason and proof.fix and not proof.detail


def test_the_result_is_json_both_ways(result: SelfTest) -> None:
    assert from_json(to_json(result), SelfTest, what="self-test") == result


def one(monkeypatch: pytest.MonkeyPatch, work: Callable[[], str]) -> None:
    monkeypatch.setattr(selftest, "_plan", lambda home: iter([("it", "cpu", work)]))


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (IncompatibleError("no GPU", "buy one"), Outcome.NOT_HERE, "no GPU"),
        (CudaError("cudaMalloc failed", "x", call="cudaMalloc"), Outcome.FAILED, "cudaMalloc failed"),
        (RuntimeError("library\nsays no"), Outcome.FAILED, "RuntimeError: library"),
    ],
)
def test_an_error_ends_its_own_proof_and_no_other(monkeypatch, error, outcome, reason) -> None:
    def work() -> str:
        raise error

    one(monkeypatch, work)
    [proof] = self_test().proofs
    assert (proof.outcome, proof.reason) == (outcome, reason)


@pytest.mark.parametrize("wrong", [lambda y: y + 0.01, lambda y: y * np.nan, lambda y: y[:, :2]])
def test_a_wrong_answer_is_a_failure_with_exit_code_3(monkeypatch, capsys, wrong) -> None:
    one(monkeypatch, lambda: selftest._compare(lambda image: wrong(tiny.reference(image, tiny.weights()))))
    assert run(["doctor", "--self-test", "--json"]) == 3
    [proof] = json.loads(capsys.readouterr().out)["proofs"]
    assert proof["outcome"] == "failed" and proof["reason"]


def test_the_table_ends_with_the_counts(monkeypatch, capsys) -> None:
    one(monkeypatch, lambda: "seen [red]")
    assert run(["doctor", "--self-test"]) == 0
    shown = capsys.readouterr().out
    assert "seen [red]" in shown
    assert shown.rstrip().endswith("1 passed, 0 failed, 0 not here")


def test_nothing_is_left_behind(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    homes = []

    def plan(home: Path):
        homes.append(home)
        yield "it", "cpu", lambda: str((home / "file").write_text("x"))

    monkeypatch.setattr(selftest, "_plan", plan)
    self_test()
    assert list(tmp_path.iterdir()) == [] and homes[0].parent == tmp_path


@pytest.mark.gpu
def test_the_gpu_is_proven() -> None:
    try:
        cuda.find_gpu(selftest.Device("cuda"))
    except IncompatibleError as error:
        pytest.skip(error.cause)
    found = {(p.what, p.device): p for p in self_test().proofs}
    for what in ("copies, streams and events", "NVML", "matrix product (cuBLAS, FP16)"):
        proof = found[what, "cuda"]
        assert proof.outcome is Outcome.PASSED, proof
    assert not any(p.outcome is Outcome.FAILED for p in found.values()), found
