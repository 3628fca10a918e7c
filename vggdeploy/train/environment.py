"""What a run borrows from the process and the machine: device, precision, threads, random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.machine import machine
from vggdeploy.model.summary import summarise
from vggdeploy.spec import ModelSpec
from vggdeploy.train.processes import own_gpu
from vggdeploy.train.recipe import Recipe
from vggdeploy.types import Device, Precision

# Multiply-accumulates of a batch from which bf16 is faster on a CPU that has it: below, casting costs more than it
# saves. (Quarter-width VGG-11, two AVX-512 cores: 0.5 to 1 × at 32 px and batch 64, 1.7 × at 64 px and 128.)
BF16_MACS = 4e9
_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def pick_device(device: Device | None) -> torch.device:
    """The device asked for, if it is here; without a wish a GPU (torchrun's processes one each), else the CPU."""
    if device is not None and "+" in device.kind:
        raise UsageError(f"{device} is a device of ONNX Runtime", "train with --device cpu, cuda or cuda:INDEX")
    if device is None:
        return torch.device(f"cuda:{own_gpu()}" if torch.cuda.is_available() else "cpu")
    index = device.index or own_gpu()
    if device.kind == "cuda" and index >= torch.cuda.device_count():
        raise IncompatibleError(
            f"PyTorch finds no CUDA device {index}",
            "install the NVIDIA driver, or train on the CPU: --device cpu",
        )
    return torch.device("cpu" if device.kind == "cpu" else f"cuda:{index}")


def pick_precision(recipe: Recipe, spec: ModelSpec, device: torch.device) -> Precision:
    """The precision that ``auto`` means: bf16 where the device has it (on a CPU: and is faster with it), FP16 on older
    GPUs, else FP32.

    Raises:
        IncompatibleError: FP16 was asked for, and there is no GPU.
    """
    if recipe.precision == "fp16" and device.type != "cuda":
        raise IncompatibleError("FP16 training needs a GPU", "train with --precision bf16, or fp32, on the CPU")
    if recipe.precision != "auto":
        return Precision(recipe.precision)
    if device.type == "cuda":
        # bf16 needs no loss scaling; before Ampere it is emulated, slowly.
        return Precision.BF16 if torch.cuda.get_device_capability(device) >= (8, 0) else Precision.FP16
    has = {"avx512_bf16", "amx_bf16"} & set(machine().features)
    return Precision.BF16 if has and summarise(spec).macs * recipe.batch_size >= BF16_MACS else Precision.FP32


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context that a forward pass has its precision from; none of its own for FP32."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


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
