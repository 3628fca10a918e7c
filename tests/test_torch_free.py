"""The production runtime in a clean environment: the base and one runtime, and no torch anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.late

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with ``vggdeploy[cpu]`` alone, every package of it by the hashes of its lock file."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    locked = ["--require-hashes", "-r", ROOT / "locks/cpu.txt"]
    for what in (locked, ["--no-deps", ROOT]):
        subprocess.run([python, "-m", "pip", "install", "-q", *what], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    return python


def run(python: Path, *args: object) -> str:
    done = subprocess.run([python, *map(str, args)], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_is_not_there(clean_python: Path) -> None:
    found = run(
        clean_python, "-c", "from importlib.util import find_spec; print(find_spec('torch'), find_spec('onnx'))"
    )
    assert found.split() == ["None", "None"]


def test_the_whole_runtime_works(clean_python: Path, bundle_dir: Path, digit_png: Path) -> None:
    code = f"""
import sys, numpy as np, vggdeploy
with vggdeploy.load({str(bundle_dir)!r}) as engine:
    answer = engine.classify({str(digit_png)!r})
    logits = engine.run({{"image": np.zeros((3, 32, 32, 1), np.uint8)}})["logits"]
assert logits.shape == (3, 10), logits.shape
assert not {{"torch", "onnx", "torchvision", "safetensors"}} & set(sys.modules)
print(answer[0].label, engine.variant.name)
"""
    assert run(clean_python, "-c", code).split() == [digit_png.stem, "onnx-fp32"]


def test_openvino_works(clean_python: Path, bundle_dir: Path) -> None:
    code = f"""
import sys, numpy as np
from vggdeploy.bundle import Bundle
from vggdeploy.export.openvino import openvino_variant
from vggdeploy.runtime import open_session
from vggdeploy.types import Precision
bundle = Bundle.open({str(bundle_dir)!r})
inputs, outputs = bundle.golden()
with open_session(bundle, openvino_variant(bundle.manifest.variant("onnx-fp32"), Precision.FP32)) as session:
    logits = session.run(inputs)["logits"]
assert not {{"torch", "onnx", "nncf"}} & set(sys.modules)
print(np.abs(logits - outputs["logits"]).max() < 1e-4)
"""
    assert run(clean_python, "-c", code).split() == ["True"]


def test_the_commands_work(clean_python: Path, bundle_dir: Path, digit_png: Path) -> None:
    cli = ("-m", "vggdeploy")
    assert f": {digit_png.stem} " in run(clean_python, *cli, "predict", bundle_dir, digit_png)
    assert "onnx-fp32" in run(clean_python, *cli, "inspect", bundle_dir)
    assert "cannot" in run(clean_python, *cli, "doctor")
    assert "golden pair" in run(clean_python, *cli, "verify", bundle_dir)
    assert "images/s" in run(
        clean_python, *cli, "bench", bundle_dir, "--backend", "onnxruntime", "--seconds", "0.05", "--rounds", "3"
    )


def test_what_needs_torch_says_which_extra(clean_python: Path, bundle_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [clean_python, "-m", "vggdeploy", "export", bundle_dir / "checkpoint", "-o", tmp_path / "b"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "vggdeploy[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_module_imports_or_misses_only_what_it_is_about(clean_python: Path) -> None:
    """A module that needs no extra must import here; one that does may miss that extra's packages, nothing else."""
    code = """
import importlib, pkgutil, vggdeploy
allowed = {"torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors", "tensorrt", "tensorrt_rtx", "cuda"}
allowed |= {"ml_dtypes", "altair", "vl_convert", "mlperf_loadgen", "model_signing", "cryptography"}
allowed |= {"fastapi", "starlette", "uvicorn", "prometheus_client"}
allowed |= {"opentelemetry", "grpc", "grpc_health", "grpc_reflection", "google"}
for module in pkgutil.walk_packages(vggdeploy.__path__, "vggdeploy."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert error.name.split(".")[0] in allowed, (module.name, error)
        print(module.name)
"""
    missing = run(clean_python, "-c", code).split()
    heavy = (
        "vggdeploy.bench.loadgen.answers", "vggdeploy.bench.loadgen.drive", "vggdeploy.bench.loadgen.run",
        "vggdeploy.bench.loadgen.scenarios", "vggdeploy.bench.loadgen.sut", "vggdeploy.bench.remote.arrivals",
        "vggdeploy.bundle.signature", "vggdeploy.protocol.messages",
        "vggdeploy.doctor.gpu_day.backends", "vggdeploy.doctor.gpu_day.networks", "vggdeploy.doctor.gpu_day.roofs",
        "vggdeploy.data.torch", "vggdeploy.data.torchvision_source", "vggdeploy.evaluate.grad_cam",
        "vggdeploy.export.", "vggdeploy.fit.", "vggdeploy.model.",
        "vggdeploy.optimize.fine_tune", "vggdeploy.optimize.held_out", "vggdeploy.optimize.steps.activations",
        "vggdeploy.optimize.steps.bias", "vggdeploy.optimize.steps.fp8", "vggdeploy.optimize.steps.headroom",
        "vggdeploy.optimize.steps.low_rank", "vggdeploy.optimize.steps.prune", "vggdeploy.optimize.steps.sparse",
        "vggdeploy.optimize.steps.quantiser", "vggdeploy.optimize.steps.structure", "vggdeploy.parity.integer",
        "vggdeploy.parity.products", "vggdeploy.parity.saturation", "vggdeploy.report.axes", "vggdeploy.report.charts",
        "vggdeploy.report.first_screen", "vggdeploy.report.html",
        "vggdeploy.report.plots", "vggdeploy.report.row_charts", "vggdeploy.runtime.",
        "vggdeploy.search.", "vggdeploy.serve.", "vggdeploy.train.", "vggdeploy.verify.evidence",
        "vggdeploy.verify.examination", "vggdeploy.verify.localise", "vggdeploy.verify.segments", "vggdeploy.verify.structure",
    )  # fmt: skip
    assert [name for name in missing if not name.startswith(heavy)] == []
