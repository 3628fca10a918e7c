"""What a run borrows from the process and the machine: device, threads, random state, a place to write to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.types import Device


def pick_device(device: Device | None) -> torch.device:
    """The device asked for, if it is here; without a wish the first GPU, else the CPU."""
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device.kind == "cuda" and device.index >= torch.cuda.device_count():
        raise IncompatibleError(
            f"PyTorch finds no CUDA device {device.index}",
            "install the NVIDIA driver, or train on the CPU: --device cpu",
        )
    return torch.device(str(device))


def check_writable(target: Path) -> None:
    """Find out before the work, not after it, that the checkpoint could not be written."""
    parent = next(path for path in target.absolute().parents if path.exists())
    try:
        tempfile.TemporaryDirectory(prefix=f".{target.name}.try-", dir=parent).cleanup()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Compute with that many threads, for a while; yields how many they are."""
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads", "give at least 1")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Our own random state, given back afterwards, and on a GPU no algorithm that sums in a random order."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before
