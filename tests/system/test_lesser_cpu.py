"""`tests/lesser_cpu/run` shows every library a lesser CPU: what is said of AVX2 alone is tried wherever a CPU allows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "lesser_cpu/run"
MISSING = 77

ASK = """
import json, onnxruntime, torch
from vggdeploy.system.machine import int8_saturates, machine
print(json.dumps([torch.backends.cpu.get_cpu_capability(), machine().features, int8_saturates()]))
"""


def as_cpu(level: str, code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [RUN, level, sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode == MISSING:
        pytest.skip(done.stderr.strip())
    return done


@pytest.mark.parametrize(
    ("level", "capability", "gone"),
    [
        ("avx512", ("AVX512", "AVX2"), {"avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16"}),
        ("avx2", ("AVX2",), {"avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8"}),
        ("sse4", ("DEFAULT",), {"avx", "avx2", "fma", "f16c", "avx512f"}),
    ],
)
def test_libraries_and_the_record_of_the_machine_see_the_same_lesser_cpu(
    level: str, capability: tuple[str, ...], gone: set[str]
) -> None:
    done = as_cpu(level, ASK)
    assert done.returncode == 0, done.stderr
    torch_sees, features, saturates = json.loads(done.stdout)
    assert torch_sees in capability
    assert not gone & set(features)
    assert saturates  # none of the three multiplies bytes into 32 bits


def test_there_onnx_runtime_adds_int8_in_16_bits_unless_it_is_opened_as_the_package_opens_it() -> None:
    """The reason for all of this. No switch of ONNX Runtime's makes it so, and on a CPU with VNNI it is never seen."""
    code = (
        "from parity.test_saturation import saturated_pairs\n"
        "from functools import partial\n"
        "from fixtures import int8\n"
        "assert saturated_pairs('onnxruntime', 16, 1)\n"
        "int8.LIBRARIES['onnxruntime'] = partial(int8.on_onnxruntime, exact=True)\n"
        "assert not saturated_pairs('onnxruntime', 16, 1)"
    )
    done = as_cpu("avx2", f"import sys\nsys.path[:0] = {[str(RUN.parent.parent), *sys.path]!r}\n{code}")
    assert done.returncode == 0, done.stderr


def test_a_program_still_dies_of_its_own_faults() -> None:
    for fault in ("import ctypes; ctypes.string_at(0)", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"):
        assert as_cpu("avx2", fault).returncode == 139


def test_the_handler_of_a_program_still_gets_its_signal() -> None:
    done = as_cpu("avx2", "import ctypes, faulthandler; faulthandler.enable(); ctypes.string_at(0)")
    assert done.returncode == 139
    assert "Fatal Python error: Segmentation fault" in done.stderr


def test_an_unknown_level_is_a_usage_error() -> None:
    assert subprocess.run([RUN, "mmx", "true"], capture_output=True, check=False).returncode == 64
