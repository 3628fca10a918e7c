"""What is recorded beside the times: the host's time of an image, the commit, the environment, a GPU's own facts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.gpu import Cudart
from fakes.nvml import Nvml
from PIL import Image

from vggdeploy import load
from vggdeploy.bench.gpu.nvml import gpu_turn
from vggdeploy.bench.host import encoded, host_times
from vggdeploy.bench.interference import conditions, git_commit
from vggdeploy.bench.messages import TurnReply
from vggdeploy.bundle import Bundle
from vggdeploy.preprocess import denormalise, normalise, prepare_batch
from vggdeploy.runtime.gpu import cuda
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import Device

RGB = PreprocessSpec(mode="RGB", resize=8, crop=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pixels(channels: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoded_input_is_the_same_picture(channels: int) -> None:
    import io

    images = pixels(channels)
    for file, image in zip(encoded(images, RGB), images, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))).reshape(image.shape), image)


def test_normalised_inputs_give_their_pixels_back() -> None:
    every = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 1, 1, 3))
    assert np.array_equal(denormalise(normalise(every, RGB), RGB), every)
    assert np.array_equal(prepare_batch(encoded(normalise(pixels(3), RGB), RGB), RGB), pixels(3))


@pytest.mark.alone
def test_the_parts_of_a_classification_make_up_the_whole(bundle: Bundle) -> None:
    import time

    with load(bundle.root, variant="onnx-fp32", threads=1) as engine:
        files = encoded(bundle.golden()[0]["image"], bundle.manifest.preprocess)
        found = host_times(engine, files, 2, 0.3)
        whole = []
        for _ in range(found.calls):
            start = time.perf_counter()
            engine.classify(files[:2])
            whole.append((time.perf_counter() - start) * 1e3 / 2)
    parts = found.preprocess_ms + found.run_ms + found.postprocess_ms
    assert 0.3 < parts / np.median(whole) < 3
    assert found.queue_ms is None
    assert "PNG" in found.source


def test_a_bundle_without_classes_classifies_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    features = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(outputs=[SimpleNamespace(name="fc7")])))
    assert host_times(features, [b""], 1, 0.1) is None


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-m", "first")
    git("tag", "v1")  # the commit is wanted, not its name
    return tmp_path


def test_the_commit_is_that_of_the_users_repository(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    commit = git_commit(repository)
    assert len(commit) == 40
    (repository / "file").write_text("two")
    assert git_commit(repository) == f"{commit}-dirty"
    assert git_commit(tmp_path_factory.mktemp("none")) is None


def test_the_monitor_that_a_repository_names_is_not_run(repository: Path) -> None:
    program, trace = repository / "program", repository / "ran"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(program)], cwd=repository, check=True)
    assert git_commit(repository)
    assert not trace.exists()


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_what_libraries_listen_to_is_recorded_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = conditions()
    assert found.environment["OMP_NUM_THREADS"] == "3"
    assert "SECRET_TOKEN" not in found.environment
    assert set(found.affinity) == os.sched_getaffinity(0)
    assert not found.pinned
    assert conditions([0]).affinity == (0,)


class Quick:
    """A candidate whose turn is over at once."""

    def warm_up(self, seconds: float) -> None:
        pass

    def turn(self, seconds: float, *, warm: bool) -> TurnReply:
        assert warm  # outside the watch
        return TurnReply(nanoseconds=(1,), cpu_seconds=1.0, joules=123.0)  # the CPU's, which is not asked for


def on_gpu(monkeypatch: pytest.MonkeyPatch, ours=(), **how) -> TurnReply:
    monkeypatch.setattr(cuda, "bindings", Cudart)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(**how))
    return gpu_turn(Quick(), 0.0, Device("cuda"), ours)


def test_a_gpus_energy_is_that_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_gpu(monkeypatch)
    assert found.joules == 5.0
    assert (found.gpu_others, found.slowed, found.not_checked) == (0.0, (), ())


def test_power_times_time_is_an_estimate_and_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_gpu(monkeypatch, lacks=("nvmlDeviceGetTotalEnergyConsumption",)).joules is None


def test_kernels_of_others_and_a_slowed_gpu_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_gpu(monkeypatch, others=2, reasons=0x40)
    assert found.gpu_others == pytest.approx(0.6)
    assert found.slowed == ("hardware thermal slowdown",)
    assert on_gpu(monkeypatch, others=2, ours=(10**7, 10**7 + 1)).gpu_others == 0.0


@pytest.mark.parametrize(
    ("how", "unchecked"),
    [
        ({"lacks": ("nvmlInit",)}, "GPU: NVML cannot start"),
        ({"lacks": ("nvmlDeviceGetComputeRunningProcesses",)}, "other processes on the GPU"),
        ({"lacks": ("nvmlDeviceGetProcessUtilization",), "others": 1}, "other processes on the GPU"),
    ],
)
def test_a_gpu_that_does_not_tell_is_not_checked(monkeypatch: pytest.MonkeyPatch, how: dict, unchecked: str) -> None:
    found = on_gpu(monkeypatch, **how)
    assert found.gpu_others is None
    assert found.not_checked[0].startswith(unchecked)
