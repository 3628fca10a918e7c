"""What a machine lacks to run an engine, said precisely; on this one for real, elsewhere by a driver that answers so."""

from __future__ import annotations

import ctypes
import types

import pytest
from cuda.bindings import runtime as cudart

from vggdeploy.errors import MissingDependencyError
from vggdeploy.runtime import get_backend
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt import rtx as tensorrt_rtx
from vggdeploy.system.optional import installed
from vggdeploy.types import Device

ERRORS = cudart.cudaError_t
CUDA = Device("cuda")


def driver_is_here() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(driver_is_here(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_rtx_builds_and_does_not_run():
    found = get_backend("tensorrt-rtx").probe(CUDA)
    assert (found.runs, found.builds) == (False, True)
    assert "no NVIDIA driver" in found.reason and "libcuda.so.1" in found.reason
    assert "install the NVIDIA driver" in found.fix
    assert found.version


@pytest.mark.skipif(installed("tensorrt"), reason="tensorrt is installed here")
def test_tensorrt_that_is_not_installed_neither_runs_nor_builds():
    found = get_backend("tensorrt").probe(CUDA)
    assert (found.runs, found.builds) == (False, False)
    assert "pip install 'vggdeploy[gpu]'" in found.fix


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_never_runs_on_the_cpu(name):
    found = get_backend(name).probe(Device("cpu"))
    assert not found.runs
    assert "not on cpu" in found.reason


class Driver:
    """A CUDA runtime that answers what it is told to."""

    def __init__(self, status: object = ERRORS.cudaSuccess, *, count: int = 1, sm: tuple[int, int] = (8, 9)) -> None:
        self.status, self.count, self.sm = status, count, sm

    def __getattr__(self, name: str) -> object:
        return getattr(cudart, name)

    def cudaDriverGetVersion(self) -> tuple[object, int]:
        return ERRORS.cudaSuccess, 12040

    def cudaGetDeviceCount(self) -> tuple[object, int | None]:
        return self.status, self.count if self.status == ERRORS.cudaSuccess else None

    def cudaDeviceGetAttribute(self, attribute: object, index: int) -> tuple[object, int]:
        major = attribute == cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return ERRORS.cudaSuccess, self.sm[0] if major else self.sm[1]

    def cudaGetDeviceProperties(self, index: int) -> tuple[object, object]:
        return ERRORS.cudaSuccess, types.SimpleNamespace(name=b"NVIDIA Test GPU\0\0")


@pytest.fixture
def machine(monkeypatch):
    def put(driver: Driver) -> None:
        monkeypatch.setattr(cuda, "bindings", lambda: driver)
        monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: object())
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


def test_a_gpu_that_the_library_knows_runs(machine):
    machine(Driver(sm=(8, 9)))
    found = tensorrt_rtx.probe(CUDA)
    assert found.runs and found.builds
    assert found.device == "cuda:0 (NVIDIA Test GPU, sm89)"


def test_a_blackwell_has_a_three_digit_capability(machine):
    machine(Driver(sm=(12, 0)))
    assert "sm120" in tensorrt_rtx.probe(CUDA).device


def test_an_h100_is_sent_to_tensorrt(machine):
    machine(Driver(sm=(9, 0)))
    found = tensorrt_rtx.probe(CUDA)
    assert (found.runs, found.builds) == (False, True)
    assert "does not run on NVIDIA Test GPU (sm90)" in found.reason
    assert "--engine tensorrt" in found.fix


@pytest.mark.parametrize(
    ("driver", "reason", "fix"),
    [
        (Driver(ERRORS.cudaErrorInsufficientDriver), "supports CUDA 12.4", "cuda-bindings==12.*"),
        (Driver(ERRORS.cudaErrorNoDevice), "finds no GPU", "--gpus all"),
        (Driver(count=0), "finds no GPU", "nvidia-smi"),
        (Driver(ERRORS.cudaErrorSystemNotReady), "cudaErrorSystemNotReady", "nvidia-smi"),
    ],
)
def test_every_way_to_have_no_gpu_has_its_own_reason_and_fix(machine, driver, reason, fix):
    machine(driver)
    found = tensorrt_rtx.probe(CUDA)
    assert not found.runs
    assert reason in found.reason
    assert fix in found.fix


def test_hidden_gpus_are_not_called_missing(machine, monkeypatch):
    machine(Driver(ERRORS.cudaErrorNoDevice))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES='-1' hides every GPU" in tensorrt_rtx.probe(CUDA).reason


def test_an_index_past_the_last_gpu_is_refused(machine):
    machine(Driver(count=2))
    found = tensorrt_rtx.probe(Device("cuda", 2))
    assert not found.runs
    assert "no cuda:2: this machine has 2 GPU(s)" in found.reason


def test_missing_cuda_bindings_are_a_reason_and_not_a_crash(monkeypatch):
    def missing() -> None:
        raise MissingDependencyError("the Python package 'cuda.bindings.runtime' is not installed", "pip install it")

    monkeypatch.setattr(cuda, "bindings", missing)
    found = tensorrt_rtx.probe(CUDA)
    assert (found.runs, found.builds, found.fix) == (False, True, "pip install it")
