"""The whole job on a real GPU: train, export, verify, bench and predict. Opt in with ``pytest -m gpu``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vggdeploy
from vggdeploy.cli.app import run
from vggdeploy.runtime import get_backend
from vggdeploy.types import Device

pytestmark = pytest.mark.gpu
CUDA = Device("cuda")


@pytest.fixture(autouse=True)
def gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(params=["torchscript", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> str:
    found = get_backend(request.param).probe(CUDA)
    if not found.runs:
        pytest.skip(f"{request.param} cannot run on a GPU here: {found.reason}")
    return str(request.param)


def test_training_takes_the_gpu_and_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "--dataset", "digits", "--arch", "vgg11_bn", "--width", "0.25", "--epochs", "8", "--json"]
    assert run([*line, "-o", str(tmp_path / "checkpoint")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "cuda" in json.dumps(said), said
    assert run(["evaluate", str(tmp_path / "checkpoint"), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["rate"] > 0.9


def test_every_variant_that_runs_there_keeps_its_parity(
    own_bundle: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(own_bundle), "--device", "cuda", "--backend", backend, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    verdicts = {one["variant"]: one["verdict"] for one in said["variants"]}
    assert verdicts and set(verdicts.values()) == {"pass"}, said


def test_bench_is_valid_on_a_gpu_of_ones_own(
    own_bundle: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", str(own_bundle), "--device", "cuda", "--backend", backend, "--duration", "3", "--json"]
    assert run(line) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["device"].startswith("cuda")]
    assert rows, "no row ran on the GPU"
    for row in rows:
        busy = [reason for reason in row["reasons"] if "GPU" in reason or "process" in reason]
        assert not busy, row


def test_an_engine_on_the_gpu_answers_as_the_one_on_the_cpu(bundle_dir: Path, backend: str) -> None:
    variant = "torchscript-fp32" if backend == "torchscript" else "onnx-fp32"
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    answers = {}
    for device in ("cpu", "cuda"):
        with vggdeploy.load(bundle_dir, variant=variant, device=device) as engine:
            name = engine.bundle.manifest.input.name
            shape = (5, *engine.bundle.manifest.input.item_shape)
            answers[device] = engine.run({name: np.resize(images, shape)})["logits"]
    np.testing.assert_allclose(answers["cuda"], answers["cpu"], rtol=1e-4, atol=1e-4)
