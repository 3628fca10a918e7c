"""``pytest -m gpu`` on a machine that has a GPU, PyTorch and ONNX Runtime, and little else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the default tests need, and a machine with a GPU need not have.
ABSENT = (
    *("tensorrt_rtx", "tensorrt", "openvino", "nncf", "mlperf_loadgen", "altair", "vl_convert", "ray", "fastapi"),
    *("uvicorn", "model_signing", "tritonclient", "playwright", "jsonschema", "flask", "schemathesis", "cyclonedx"),
    *("torch_pruning", "optuna", "httpx", "httpx2", "cryptography", "OpenSSL"),
)
BLOCKER = f"""
import sys

class Without:
    # Whoever only asks whether they are there is told no, as where they are absent.
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.mark.late
def test_gpu_tests_run_with_little_installed_and_say_what_each_one_waits_for(tmp_path: Path) -> None:
    (tmp_path / "absent.py").write_text(BLOCKER)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins of the packages that are not to be there
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "absent", "-p", "no:cacheprovider", "-m", "gpu", "-q", "-rsfE"]
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False).stdout
    assert not re.search(r"^(ERROR|FAILED)|\d+ (passed|failed|error)", said, re.MULTILINE), said
    skips = re.findall(r"^SKIPPED \[(\d+)\] \S+: (.+)$", said, re.MULTILINE)
    assert sum(int(count) for count, _ in skips) >= 45, said
    assert all(re.search("GPU|CUDA|driver|TensorRT", reason) for _, reason in skips), skips
